"""Writing scripts: whole, atomically, and with a card's usual values filled in."""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = float | str | None
"""A number, a series ("620000 @5 100000"), a text, or None: a value the card does not have."""

GIB = 1 << 30

# An idle H100 SXM. Energy without a rate of its own is the integral of the power.
H100: Mapping[str, Value] = {
    "name": "NVIDIA H100 80GB HBM3",
    "pci_device_id": "0x233010de",
    "vbios": "96.00.A5.00.01",
    "power_milliwatts": 72000,
    "energy_millijoules": "count 1000000000",
    "power_limit_milliwatts": 700000,
    "enforced_limit_milliwatts": 700000,
    "default_limit_milliwatts": 700000,
    "min_limit_milliwatts": 200000,
    "max_limit_milliwatts": 700000,
    "graphics_clock_mhz": 345,
    "sm_clock_mhz": 345,
    "mem_clock_mhz": 2619,
    "video_clock_mhz": 765,
    "max_graphics_clock_mhz": 1980,
    "max_sm_clock_mhz": 1980,
    "max_mem_clock_mhz": 2619,
    "max_video_clock_mhz": 1545,
    "app_graphics_clock_mhz": 1980,
    "app_mem_clock_mhz": 2619,
    "event_reasons": 1,
    "supported_event_reasons": "0x1ff",
    "temperature_c": 31,
    "memory_temperature_c": 40,
    "shutdown_c": 92,
    "slowdown_c": 89,
    "mem_max_c": 95,
    "gpu_max_c": 87,
    "pstate": 0,
    "pcie_tx_kib": 0,
    "pcie_rx_kib": 0,
    "pcie_replay": 0,
    "pcie_gen": 5,
    "pcie_width": 16,
    "pcie_max_gen": 5,
    "pcie_max_width": 16,
    "pcie_gpu_max_gen": 5,
    "nvlinks": 18,
    "nvlink_version": 6,
    "nvlink_replay_errors": 0,
    "nvlink_recovery_errors": 0,
    "nvlink_crc_flit_errors": 0,
    "ecc_mode": 1,
    "ecc_pending": 1,
    "ecc_default": 1,
    "ecc_sbe_volatile": 0,
    "ecc_dbe_volatile": 0,
    "ecc_sbe_aggregate": 0,
    "ecc_dbe_aggregate": 0,
    "remapped_correctable": 0,
    "remapped_uncorrectable": 0,
    "remapped_pending": 0,
    "remapped_failure": 0,
    "rows_max": 2560,
    "rows_high": 0,
    "rows_partial": 0,
    "rows_low": 0,
    "rows_none": 0,
    "util_gpu": 0,
    "util_memory": 0,
    "util_encoder": 0,
    "util_decoder": 0,
    "memory_total": 80 * GIB - 463 * (1 << 20),
    "memory_used": 0,
    "memory_reserved": 600 * (1 << 20),
    "bar1_total": 128 * GIB,
    "bar1_used": 1 << 20,
    "cores": 16896,
    "sms": 132,
    "cc_major": 9,
    "cc_minor": 0,
    "architecture": 9,
    "brand": 2,
    "bus_width": 5120,
    "compute_mode": 0,
    "persistence": 1,
    "display_mode": 0,
    "display_active": 0,
    "mig_mode": 0,
    "mig_pending": 0,
    "mig_max": 7,
}
# Time under each clock limit, in ns: none.
IDLE_FIELDS: Mapping[int | str, Value] = dict.fromkeys((74, 75, 76, 269, 270, 271), "count 0 0")


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    number = float(value or 0)
    return str(int(number)) if number.is_integer() else repr(number)


def _quoted(key: str, value: Value) -> str:
    text = _text(value)
    return f'"{text}"' if key in {"name", "uuid", "serial", "vbios", "part_number"} else text


def _lines(
    subject: str,
    keys: Mapping[str, Value],
    gpm: Mapping[int, Value],
    fields: Mapping[int | str, Value],
) -> list[str]:
    named = [f"{subject} {k} {_quoted(k, v)}" for k, v in keys.items() if v is not None]
    metrics = [f"{subject} gpm {k} {_text(v)}" for k, v in gpm.items() if v is not None]
    counters = [f"{subject} field {k} {_text(v)}" for k, v in fields.items() if v is not None]
    return named + metrics + counters


def device(
    slot: int,
    *,
    base: Mapping[str, Value] = H100,
    gpm: Mapping[int, Value] | None = None,
    fields: Mapping[int | str, Value] | None = None,
    **keys: Value,
) -> list[str]:
    """The lines of one card: an idle H100's values, but for what is given; None takes one away."""
    values = {"serial": f"165012{slot:07d}", **base, **keys}
    return _lines(f"device {slot}", values, gpm or {}, {**IDLE_FIELDS, **(fields or {})})


def mig(
    slot: int,
    number: int,
    *,
    gi: int,
    ci: int = 0,
    gpm: Mapping[int, Value] | None = None,
    **keys: Value,
) -> list[str]:
    """The lines of one MIG device, a 3g.40gb but for what is given. MIG mode is the card's key."""
    values: dict[str, Value] = {
        "gi": gi,
        "ci": ci,
        "sms": 60,
        "gi_slices": 3,
        "ci_slices": 3,
        "copy_engines": 3,
        "decoders": 3,
        "memory_mib": 40448,
        "memory_total": 40448 << 20,
        "memory_used": 0,
        "bar1_total": 65535 << 20,
        "bar1_used": 0,
        **keys,
    }
    return _lines(f"device {slot} mig {number}", values, gpm or {}, {})


class Script:
    """A script file. Every write replaces the file whole, by rename."""

    def __init__(self, path: Path, *, driver: str = "595.58.03", cuda: int = 13020) -> None:
        self.path = path
        self.epoch = time.monotonic()
        self._head = [f"driver {driver}", f"cuda {cuda}", f"epoch {self.epoch!r}"]
        self._body: list[str] = []

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._body)

    def write(self, *parts: str | Iterable[str]) -> "Script":
        """Make these the script's lines: each part is one line or several."""
        self._body = [line for p in parts for line in ([p] if isinstance(p, str) else p)]
        return self._save()

    def add(self, *parts: str | Iterable[str]) -> "Script":
        """Put lines behind the others: where two set the same key, the later counts."""
        return self.write(self._body, *parts)

    def remove(self, line: str) -> "Script":
        """Take one line out again, as a hang that ends."""
        rest = list(self._body)
        rest.remove(line)
        return self.write(rest)

    def fire_xid(self, slot: int, code: int) -> "Script":
        """Let a card raise an Xid now, in every process that has the script loaded."""
        return self.add(f"event {slot} xid {code}")

    def clock(self) -> float:
        """Seconds on the script's own clock, the one of `@5` and `at 5`."""
        return time.monotonic() - self.epoch

    def _save(self) -> "Script":
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        scratch.write_text("\n".join([*self._head, *self._body, ""]))
        scratch.replace(self.path)
        return self

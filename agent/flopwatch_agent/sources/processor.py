"""The host's processor as a device, for hosts without an accelerator.

It has a clock, memory, and where the kernel lets us read them energy and temperature. It has none of the
counters of a card: those are "not supported", also utilisation, which NVML defines by resident kernels.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Final

import psutil

from flopwatch_agent.reading import FIELDS, Device, Reading
from flopwatch_agent.sources import SourceReport
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence

SLOT: Final = "cpu"
SLOW_READS: Final = 10
"""Clock and temperature are read in every tenth reading: on a big host they are hundreds of files."""

_SENSORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


class ProcessorSource:
    """All processors of the host, as one device of kind ``cpu``."""

    name = "processor"

    def __init__(self, *, proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> None:
        """Make the source. Args: proc_root, sys_root: where the kernel shows itself."""
        self._proc_root = proc_root
        self._cpu_root = sys_root / "devices/system/cpu"
        self._energy = PackageEnergy(sys_root / "class/powercap")
        self._device = Device(slot=SLOT, kind="cpu", sku=None)
        self._held: dict[str, Value] = {}
        self._before: tuple[float, int] | None = None
        self._reads = 0

    @property
    def devices(self) -> tuple[Device, ...]:
        """Return the one device."""
        return (self._device,)

    async def start(self) -> None:
        """Read the model's name."""
        self._device = Device(
            slot=SLOT,
            kind="cpu",
            sku=model_name(self._proc_root),
            clock_mhz_max=_mhz(self._cpu_root / "cpu0/cpufreq/cpuinfo_max_freq"),
        )

    async def read(self) -> SourceReport:
        """Return the processor's reading."""
        taken_unix_ms = time.time_ns() // 1_000_000
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        values: dict[str, Value] = dict.fromkeys(FIELDS, Absence.NOT_SUPPORTED)
        memory = psutil.virtual_memory()
        values["memory_used_bytes"] = float(memory.total - memory.available)
        values["memory_total_bytes"] = float(memory.total)
        values.update(self._read_energy(now_ns))
        if self._reads % SLOW_READS == 0:
            self._held = self._read_slow()
        self._reads += 1
        values.update(self._held)
        reading = Reading(
            device=self._device, taken_unix_ms=taken_unix_ms, boottime_ns=now_ns, values=values
        )
        return SourceReport(readings=(reading,))

    async def close(self) -> None:
        """Nothing is held."""

    def _read_energy(self, now_ns: int) -> dict[str, Value]:
        joules = self._energy.read()
        if joules is None:
            return {}
        before, self._before = self._before, (joules, now_ns)
        if before is None or now_ns <= before[1]:
            return {"energy_joules_total": joules, "power_watts": Absence.MISSING}
        watts = (joules - before[0]) / ((now_ns - before[1]) / 1e9)
        return {"energy_joules_total": joules, "power_watts": watts}

    def _read_slow(self) -> dict[str, Value]:
        held: dict[str, Value] = {}
        if (clock := self._clock_mhz()) is not None:
            held["sm_clock_mhz"] = clock
        if (temperature := _temperature_celsius()) is not None:
            held["temperature_celsius"] = temperature
        return held

    def _clock_mhz(self) -> float | None:
        """Return the mean clock of all processors."""
        scaling = [_mhz(path) for path in self._cpu_root.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
        clocks = [mhz for mhz in scaling if mhz is not None]
        if not clocks:
            lines = _lines(self._proc_root / "cpuinfo")
            clocks = [
                float(line.split(":")[1]) for line in lines if line.lower().startswith("cpu mhz")
            ]
        return sum(clocks) / len(clocks) if clocks else None


class PackageEnergy:
    """RAPL's counters of all processor packages, as one counter that does not wrap."""

    def __init__(self, powercap_root: Path) -> None:
        self._zones = sorted(
            zone
            for zone in powercap_root.glob("intel-rapl:*")
            if zone.name.count(":") == 1 and _text(zone / "name", "").startswith("package")
        )
        self._last: dict[Path, int] = {}
        self._microjoules = 0

    def read(self) -> float | None:
        """Return joules since the first read, or None where they cannot be read."""
        counts = {zone: _text(zone / "energy_uj", "") for zone in self._zones}
        if not counts or not all(count.isdigit() for count in counts.values()):
            return None
        for zone, text in counts.items():
            count = int(text)
            before = self._last.get(zone, count)
            if count < before:
                before -= int(_text(zone / "max_energy_range_uj", "0") or 0)
            self._microjoules += max(0, count - before)
            self._last[zone] = count
        return self._microjoules / 1e6


def model_name(proc_root: Path = Path("/proc")) -> str | None:
    """Return the processor's model as the kernel names it; None where it does not."""
    names = [
        line.partition(":")[2].strip()
        for line in _lines(proc_root / "cpuinfo")
        if line.startswith(("model name", "cpu model", "Model"))
    ]
    return next(filter(None, names), None) or platform.processor() or None


def _temperature_celsius() -> float | None:
    sensors = psutil.sensors_temperatures()
    for name in _SENSORS:
        if entries := [entry.current for entry in sensors.get(name, ()) if entry.current > 0]:
            return float(max(entries))
    return None


def _text(path: Path, otherwise: str) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return otherwise


def _lines(path: Path) -> list[str]:
    return _text(path, "").splitlines()


def _mhz(path: Path) -> float | None:
    text = _text(path, "")
    return int(text) / 1000 if text.isdigit() else None

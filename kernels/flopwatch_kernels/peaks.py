"""The peak table: what each accelerator's datasheet promises, and at which clock.

`peaks.csv` beside this file holds one line per (SKU, dtype), each with its source; the columns
that describe the SKU itself (names, ids, memory, power) repeat on each of its lines. Invariants:

- A device is found by its *full* normalised name or by its PCI device id, never by a part of a
  name. "NVIDIA L40S" is not an L40, "NVIDIA GB300" is not a B300, and "NVIDIA H100" alone is
  unknown, because three different cards could be meant. Unknown is None, never a default.
- A PCI id that NVIDIA's own table gives to more than one product is left out of the table. A
  virtual card reports the id of the physical one: look the name up first.
- `dense_flops` is dense (no 2:4 sparsity) and of one *visible device*: packages that show up as
  two devices (MI250X, TPU v7x) are listed whole in the csv and divided here.
- `ref_clock_mhz` is the clock behind the datasheet figure. It differs by dtype (H100 SXM: tensor
  1830, fp32 and fp64 1980) and is None where nobody has published it (B100, B300, GB300).
- A CPU has no datasheet peak and so no entry.

`PEAKS_VERSION` names the table in every stored figure: another table is another version, so a
correction never rewrites history.
"""

import csv
import difflib
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final, Literal

DTYPES: Final[tuple[str, ...]] = (
    "fp64",
    "fp64_tensor",
    "fp64_matrix",
    "fp32",
    "fp32_matrix",
    "tf32",
    "bf16",
    "fp16",
    "fp16_acc16",
    "fp8",
    "fp8_acc16",
    "fp6",
    "fp4",
    "int8",
    "int4",
)
"""Every dtype of the table. `*_tensor` and `*_matrix` are the matrix units' rate where the plain
name is the vector rate; `*_acc16` accumulates in 16 bits; all others accumulate in 32."""

_NVIDIA: Final = "10de"
_PCI_VENDOR_DEVICE: Final = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})")
_PCI_DEVICE: Final = re.compile(r"0x([0-9a-f]{4})")
_PCI_NVML: Final = re.compile(r"0x([0-9a-f]{4})([0-9a-f]{4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The datasheet peak of one SKU for one dtype, per visible device.

    Attributes:
        sku: The device's full name, as `Sku.name`.
        dtype: One of `DTYPES`.
        dense_flops: Dense datasheet peak, FLOP/s (operations/s for integer dtypes).
        sm_count: SMs (AMD: CUs, others as in the note) of the table's part; None where unknown.
            Read the real count from the device: B300 ships with 148 and 152.
        ref_clock_mhz: Clock at which `dense_flops` is quoted, MHz; None where not published.
        flop_per_clock_per_sm: Rate R, FLOP per clock and SM; None where unknown.
        memory_bytes_per_second: Datasheet memory bandwidth, B/s.
        tdp_watts: Power limit as shipped, W; None where unknown.
        source: Where the figure was read.
        clock_basis: "published", or "implied" where the clock was computed back from the peak and
            so proves nothing; None without a clock.
        formula_valid: True where sm_count * R * ref_clock is within 1.2 % of `dense_flops`, False
            where not (H20 is capped by export rules: 4.27x), None where it cannot be formed.
        note: What to watch for; may be empty.
    """

    sku: str
    dtype: str
    dense_flops: float
    sm_count: int | None
    ref_clock_mhz: float | None
    flop_per_clock_per_sm: int | None
    memory_bytes_per_second: float
    tdp_watts: float | None
    source: str
    clock_basis: Literal["published", "implied"] | None
    formula_valid: bool | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sku:
    """One product of the table.

    Attributes:
        key: Short name of the table, e.g. "H100-SXM5".
        name: Full name as NVML prints it, e.g. "NVIDIA H100 80GB HBM3".
        names: `name` and every other full name of the same product.
        vendor: "nvidia", "amd", "google", "aws" or "intel".
        pci_ids: "vendor:device" in lower-case hex; empty where none is unambiguous.
        visible_devices: Devices that one package shows up as; `peaks` are of one of them.
        max_clock_mhz: Highest clock of the datasheet, MHz; None where unknown.
        peaks: The peaks by dtype.
        id_source: Where names and ids were read.
    """

    key: str
    name: str
    names: tuple[str, ...]
    vendor: str
    pci_ids: tuple[str, ...]
    visible_devices: int
    max_clock_mhz: float | None
    peaks: Mapping[str, Peak]
    id_source: str

    @property
    def tensor_fp64_flops(self) -> float | None:
        """fp64 peak that a library GEMM can reach: the tensor rate where there is one, FLOP/s."""
        for dtype in ("fp64_tensor", "fp64_matrix", "fp64"):
            if dtype in self.peaks:
                return self.peaks[dtype].dense_flops
        return None


def find(name_or_pci_id: str) -> Sku | None:
    """The SKU with exactly this name or PCI device id, or None where it is unknown.

    Args:
        name_or_pci_id: A full device name in any case ("NVIDIA H100 80GB HBM3"), a key of the
            table ("H100-SXM5"), a PCI id as "10de:2330" or, for NVIDIA, "0x2330", or NVML's
            combined `pciDeviceId` "0x233010DE" (device first).

    Source: names and ids per SKU in the `id_source` column of peaks.csv.
    """
    wanted = _normalise(name_or_pci_id)
    pci_id = _pci_id(wanted)
    if pci_id is not None:
        return _BY_PCI_ID.get(pci_id)
    return _BY_NAME.get(wanted)


def peak_flops(sku: str, dtype: str) -> float | None:
    """Dense datasheet peak in FLOP/s, or None where the SKU or its dtype is not in the table.

    Args:
        sku: A device name or PCI id, as for `find`.
        dtype: One of `DTYPES`.
    """
    peak = _peak(sku, dtype)
    return None if peak is None else peak.dense_flops


def ref_clock_mhz(sku: str, dtype: str) -> float | None:
    """Clock in MHz at which the datasheet peak is quoted, or None where it is not known.

    None has two meanings on purpose the same: the SKU or dtype is not in the table, or nobody has
    published its clock (B100, B300, GB300). Either way no clock step can be formed.
    """
    peak = _peak(sku, dtype)
    return None if peak is None else peak.ref_clock_mhz


def names() -> tuple[str, ...]:
    """The full name of every SKU, in the table's order."""
    return tuple(sku.name for sku in skus())


def skus() -> tuple[Sku, ...]:
    """Every SKU, in the table's order."""
    return _TABLE


def nearest(name: str) -> str | None:
    """The most similar full name, for the text of an error only; None where nothing is close."""
    close = difflib.get_close_matches(_normalise(name), _BY_NAME, n=1, cutoff=0.5)
    return _BY_NAME[close[0]].name if close else None


def _peak(sku: str, dtype: str) -> Peak | None:
    found = find(sku)
    return None if found is None else found.peaks.get(dtype)


def _normalise(name: str) -> str:
    """Case and runs of blanks do not matter; every word and every letter does."""
    return " ".join(name.split()).casefold()


def _pci_id(text: str) -> str | None:
    """The id as vendor:device for the three written forms of one; None for anything else.

    Bare hex is a name, not an id: "B200" and "A100" are hex digits too.
    """
    if match := _PCI_VENDOR_DEVICE.fullmatch(text):
        return text
    if match := _PCI_NVML.fullmatch(text):
        return f"{match[2]}:{match[1]}"
    if match := _PCI_DEVICE.fullmatch(text):
        return f"{_NVIDIA}:{match[1]}"
    return None


def _number(text: str) -> float | None:
    return float(text) if text else None


def _integer(text: str) -> int | None:
    return int(text) if text else None


def _read_peak(row: Mapping[str, str], sku_name: str, devices: int) -> Peak:
    sm_count, tdp_watts = _integer(row["sm_count"]), _number(row["tdp_watts"])
    basis: dict[str, Literal["published", "implied"]] = {
        "published": "published",
        "implied": "implied",
    }
    return Peak(
        sku=sku_name,
        dtype=row["dtype"],
        dense_flops=float(row["dense_tflops"]) * 1e12 / devices,
        sm_count=None if sm_count is None else sm_count // devices,
        ref_clock_mhz=_number(row["ref_clock_mhz"]),
        flop_per_clock_per_sm=_integer(row["flop_per_clock_per_sm"]),
        memory_bytes_per_second=float(row["memory_gbps"]) * 1e9 / devices,
        tdp_watts=None if tdp_watts is None else tdp_watts / devices,
        source=row["source"],
        clock_basis=basis.get(row["clock_basis"]),
        formula_valid={"yes": True, "no": False}.get(row["formula_valid"]),
        note=row["note"],
    )


def _read_table(text: str) -> tuple[Sku, ...]:
    """The SKUs of a csv in the format of peaks.csv, in its order."""
    rows_by_key: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        rows_by_key.setdefault(row["key"], []).append(row)
    table = []
    for key, rows in rows_by_key.items():
        first = rows[0]
        full_names = tuple(first["names"].split(";"))
        devices = int(first["visible_devices"])
        table.append(
            Sku(
                key=key,
                name=full_names[0],
                names=full_names,
                vendor=first["vendor"],
                pci_ids=tuple(filter(None, first["pci_ids"].split(";"))),
                visible_devices=devices,
                max_clock_mhz=_number(first["max_clock_mhz"]),
                peaks=MappingProxyType(
                    {row["dtype"]: _read_peak(row, full_names[0], devices) for row in rows}
                ),
                id_source=first["id_source"],
            )
        )
    return tuple(table)


_CSV: Final = resources.files("flopwatch_kernels").joinpath("peaks.csv").read_bytes()
_TABLE: Final = _read_table(_CSV.decode())
_BY_NAME: Final = {_normalise(name): sku for sku in _TABLE for name in (*sku.names, sku.key)}
_BY_PCI_ID: Final = {pci_id: sku for sku in _TABLE for pci_id in sku.pci_ids}

PEAKS_VERSION: Final = f"2026-11-{hashlib.sha256(_CSV).hexdigest()[:8]}"
"""Edition of the sources and digest of peaks.csv; stored with every figure made from the table."""

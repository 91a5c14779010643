"""What holds a card back right now: a hint from one reading, by stated thresholds. Pure.

A hint names where to look first. It is one second of counters and no diagnosis: a profiler is.

| hint | where |
|---|---|
| idle | SMs active < 2 %; without SM counters: no kernel resident at all |
| throttled | heat or a power brake holds the clock below 95 % of the highest, a power limit below 75 % |
| compute | a tensor pipe active ≥ 50 %, or another arithmetic pipe ≥ 60 % |
| memory | DRAM active ≥ 60 % |
| link | PCIe ≥ 60 % of its width and generation, or NVLink ≥ 100 GB/s one way |
| input | SMs active < 50 %: they wait for data, for the host, for launches |
| latency | warps sit on the SMs, but nothing is near a limit: small kernels, or waiting for other ranks |

Sources: 60 % is where Nsight Compute's "speed of light" calls a unit highly used; SMs below 50 % "likely
indicates ineffective GPU usage" (DCGM user guide, profiling metrics); tensor pipes rarely pass 60–70 % in
the best training runs, so half is compute-bound; the highest copies reach 90 % of DRAM bandwidth.
A card at its power limit with most of its clock is what dense products do, and no fault.
PCIe: per-lane rates of the generations, one way. 100 GB/s is a fifth to a third of what NVLink 3–5 carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

IDLE_RATIO: Final = 0.02
BUSY_RATIO: Final = 0.5
LIMIT_RATIO: Final = 0.6
TENSOR_RATIO: Final = 0.5
HOT_CLOCK_RATIO: Final = 0.95
LIMITED_CLOCK_RATIO: Final = 0.75
NVLINK_BYTES_PER_SECOND: Final = 100e9

_REASONS: Final = (
    (0x08 | 0x40, "heat (hardware)"),
    (0x80, "power brake"),
    (0x20, "heat (software)"),
    (0x04, "power limit"),
    (0x10, "sync boost"),
    (0x02, "application clock"),
)
"""Bits of NVML's clock event reasons, the gravest first. The others say idle, or display."""

_HOT: Final = 0x08 | 0x40 | 0x80 | 0x20
_LIMITED: Final = 0x04 | 0x10
_PIPES: Final = ("fp64", "fp32", "fp16", "integer")
_LANE_BYTES_PER_SECOND: Final = {
    1: 0.25e9,
    2: 0.5e9,
    3: 0.985e9,
    4: 1.969e9,
    5: 3.938e9,
    6: 7.563e9,
}


def throttle(reasons: float | None) -> str | None:
    """Return why the clock is held now, ``""`` where it is not, or None where nobody says."""
    if reasons is None:
        return None
    return next((name for bits, name in _REASONS if int(reasons) & bits), "")


def hint(values: Mapping[str, float], clock_mhz_max: float | None) -> str | None:
    """Return what holds the card back, or None where the counters to tell are not there.

    Args:
        values: fields of a reading.
    """
    sm = values.get("sm_active_ratio")
    if sm is None:
        return "idle" if values.get("gpu_utilization_ratio") == 0.0 else None
    if sm < IDLE_RATIO:
        return "idle"
    if _throttled(values, clock_mhz_max):
        return "throttled"
    tensor, dram = values.get("tensor_active_ratio"), values.get("dram_active_ratio")
    pipes = max(values.get(f"{pipe}_active_ratio", 0.0) for pipe in _PIPES)
    if (tensor is not None and tensor >= TENSOR_RATIO) or pipes >= LIMIT_RATIO:
        return "compute"
    if dram is not None and dram >= LIMIT_RATIO:
        return "memory"
    if _linked(values):
        return "link"
    if sm < BUSY_RATIO:
        return "input"
    return None if tensor is None or dram is None else "latency"


def _throttled(values: Mapping[str, float], clock_mhz_max: float | None) -> bool:
    reasons, mhz = values.get("clock_event_reasons"), values.get("sm_clock_mhz")
    if reasons is None or mhz is None or not clock_mhz_max:
        return False
    ratio = mhz / clock_mhz_max
    hot, limited = int(reasons) & _HOT, int(reasons) & _LIMITED
    return bool((hot and ratio < HOT_CLOCK_RATIO) or (limited and ratio < LIMITED_CLOCK_RATIO))


def _linked(values: Mapping[str, float]) -> bool:
    nvlink = max(values.get(f"nvlink_{way}_bytes_per_second", 0.0) for way in ("tx", "rx"))
    if nvlink >= NVLINK_BYTES_PER_SECOND:
        return True
    pcie = max(values.get(f"pcie_{way}_bytes_per_second", 0.0) for way in ("tx", "rx"))
    lane = _LANE_BYTES_PER_SECOND.get(int(values.get("pcie_link_generation", 0)), 0.0)
    width = lane * values.get("pcie_link_width", 0.0)
    return width > 0.0 and pcie >= LIMIT_RATIO * width

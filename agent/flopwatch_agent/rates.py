"""What the peak table says of one card and dtype, as factors for sums. Pure.

A dtype is known only where the job declares it or where a pipe runs nothing else (integer, double
precision). Elsewhere the FLOPs lie between those of the slowest and of the fastest dtype that fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flopwatch_kernels import peaks

# Which dtypes may run on which tensor pipe (science of this project, §2.5). What is on neither the
# integer nor the double-precision pipe cannot be told apart by counters.
_IMMA_DTYPES: Final = ("int8", "int4")
_DFMA_DTYPES: Final = ("fp64_tensor", "fp64_matrix")
_OTHER_DTYPES: Final = ("tf32", "bf16", "fp16", "fp8", "fp6", "fp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """FLOPs of one tensor pipe, by the slowest and the fastest dtype it may run.

    Attributes:
        lo_per_mhz_ms: FLOPs per (share of time active × MHz × ms), slowest.
        hi_per_mhz_ms: the same, fastest of the dtypes with a reference clock.
        hi_per_ms: FLOPs per ms active, fastest of those without one.
    """

    lo_per_mhz_ms: float
    hi_per_mhz_ms: float
    hi_per_ms: float

    def bounds(self, active_mhz_ms: float, active_ms: float) -> tuple[float, float]:
        """Return (lo, hi) in FLOPs."""
        lo = self.lo_per_mhz_ms * active_mhz_ms
        return lo, max(lo, self.hi_per_mhz_ms * active_mhz_ms, self.hi_per_ms * active_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the peak table says of one SKU and dtype; made once per pair.

    Attributes:
        peak_flops: dense datasheet peak, FLOP/s; None: not in the table.
        ref_mhz: clock of that peak; None: not published.
        max_mhz: highest clock; bounds u where ``ref_mhz`` is None.
        imma, dfma: the pipes that have dtypes of their own; None: no peak known.
        other: (integer pipe known, double pipe known) → what the rest may be.
    """

    peak_flops: float | None
    ref_mhz: float | None
    max_mhz: float | None
    imma: Pipe | None
    dfma: Pipe | None
    other: Mapping[tuple[bool, bool], Pipe | None]


def rates(sku: str | None, dtype: str, device_max_mhz: float | None) -> Rates:
    """Look up one SKU and dtype; `device_max_mhz` is what the device itself says, if it does."""
    found = peaks.find(sku) if sku is not None else None
    if found is None:
        return Rates(
            peak_flops=None, ref_mhz=None, max_mhz=device_max_mhz, imma=None, dfma=None, other={}
        )
    max_mhz = device_max_mhz or found.max_clock_mhz
    peak = found.peaks.get(dtype)
    return Rates(
        peak_flops=None if peak is None else peak.dense_flops,
        ref_mhz=None if peak is None else peak.ref_clock_mhz,
        max_mhz=max_mhz,
        imma=_pipe(found, _IMMA_DTYPES, max_mhz),
        dfma=_pipe(found, _DFMA_DTYPES, max_mhz),
        other={
            (imma, dfma): _pipe(
                found,
                _OTHER_DTYPES + (() if imma else _IMMA_DTYPES) + (() if dfma else _DFMA_DTYPES),
                max_mhz,
            )
            for imma in (False, True)
            for dfma in (False, True)
        },
    )


def _pipe(sku: peaks.Sku, dtypes: tuple[str, ...], max_mhz: float | None) -> Pipe | None:
    found = [sku.peaks[dtype] for dtype in dtypes if dtype in sku.peaks]
    slowest = [
        peak.dense_flops / (peak.ref_clock_mhz or max_mhz or float("inf")) / 1e3 for peak in found
    ]
    if not found:
        return None
    return Pipe(
        lo_per_mhz_ms=min(slowest),
        hi_per_mhz_ms=max(
            (p.dense_flops / p.ref_clock_mhz / 1e3 for p in found if p.ref_clock_mhz), default=0.0
        ),
        hi_per_ms=max((p.dense_flops / 1e3 for p in found if not p.ref_clock_mhz), default=0.0),
    )

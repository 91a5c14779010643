"""How much of its peak a card reaches now, from one reading. Pure.

HFU: what the tensor pipes did, u = A · f / f_ref (`docs/architecture.md`). It is not MFU, which counts a
model's own FLOPs only and is known where jobs declare them; elsewhere it lies within [0.72 u, u]. Both
bounds are wider by what counters and clock may be off (`flopwatch_kernels.uncertainty`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from flopwatch_agent.rates import rates
from flopwatch_agent.reading import Reading, Share
from flopwatch_kernels import peaks, uncertainty
from flopwatch_proto.rows import Absence

_rates = lru_cache(maxsize=256)(rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Ratios of the card's dense datasheet peak for `dtype`; None is not known.

    Attributes:
        hfu: None also where the peak's reference clock is not published, and only bounds are known.
        hfu_lo, hfu_hi: bounds that hold it in 95 of 100 cases.
        mfu: of the model FLOPs declared.
        mfu_lo, mfu_hi: bounds where nothing is declared; both `mfu` where it is.
    """

    dtype: str
    peak_flops: float | None = None
    hfu: float | None = None
    hfu_lo: float | None = None
    hfu_hi: float | None = None
    mfu: float | None = None
    mfu_lo: float | None = None
    mfu_hi: float | None = None


def estimate(
    reading: Reading,
    shares: Sequence[Share],
    dtype: str,
    model_flops_per_second: float | None = None,
) -> Estimate:
    """Return the estimate of a card.

    Args:
        dtype: of the cluster, where no job declares one.
        model_flops_per_second: what the card's jobs declared; None: nothing.
    """
    named = [share.dtype for share in shares if share.dtype in peaks.DTYPES]
    dtype = named[0] if named and named[0] is not None else dtype
    device = reading.device
    found = _rates(device.sku, dtype, device.clock_mhz_max)
    if found.peak_flops is None:
        return Estimate(dtype=dtype)
    mfu = None if model_flops_per_second is None else model_flops_per_second / found.peak_flops
    lo = hi = None
    sigma = uncertainty.hardware(reading.method) or 0.0
    active, mhz = (_value(reading, name) for name in ("tensor_active_ratio", "sm_clock_mhz"))
    if active is not None and mhz is not None:
        if found.ref_mhz:
            lo = hi = active * mhz / found.ref_mhz
        else:  # the reference clock is not published, but no clock is above the highest
            lo = active * mhz / found.max_mhz if found.max_mhz else 0.0
            hi = max(lo, active)
    if lo is None or hi is None:
        return Estimate(dtype=dtype, peak_flops=found.peak_flops, mfu=mfu, mfu_lo=mfu, mfu_hi=mfu)
    of_hfu, of_mfu = (
        bounds(lo, hi, sigma) for bounds in (uncertainty.hfu_bounds, uncertainty.mfu_bounds)
    )
    return Estimate(
        dtype=dtype,
        peak_flops=found.peak_flops,
        hfu=lo if found.ref_mhz else None,
        hfu_lo=of_hfu.lo,
        hfu_hi=of_hfu.hi,
        mfu=mfu,
        mfu_lo=of_mfu.lo if mfu is None else mfu,
        mfu_hi=of_mfu.hi if mfu is None else mfu,
    )


def _value(reading: Reading, name: str) -> float | None:
    value = reading.values.get(name)
    return None if value is None or isinstance(value, Absence) else value

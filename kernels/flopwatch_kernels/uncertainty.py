"""How far a figure made of counters may be off: relative standard uncertainties, and 95 % bounds. Pure.

    u_F²   = u_counter² + u_clock² + u_kappa²                      FLOPs executed: HFU
    MFU    in [lo, hi] of the factors that only the job can supply: recompute, tile, convention

Counter, clock and kappa are independent of each other, so their squares add. Over cards they are not: a
wrong kappa is wrong on every card of a SKU. So the uncertainty of a sum is the mean of its parts', weighted
by what each adds, and never falls with the number of cards. What is a bound and no spread (a dtype that
nobody knows, a recompute that nobody declared) stays a bound: adding it in squares would promise a middle.

Source: GUM (JCGM 100:2008) 5.1 and 5.2; the sizes are those of the science notes of this project, §3.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

COVERAGE: Final = 1.96
"""Standard uncertainties in the half-width of a 95 % interval."""

COUNTER: Final = 0.005
"""A counter of activity against what ran."""

CLOCKS: Final = {"cycle_counters": 0.0, "gpm": 0.004, "dcgm": 0.018}
"""The mean clock: counted in cycles; sampled once a second; or as dcgm-exporter serves it, every ten."""

KAPPA: Final = 0.01
"""Calibration: the rate that the peak table gives a dtype against that of a product of known FLOPs."""

TILE: Final = 0.03
"""Padding of tiles and tails of waves, where the job does not say its shapes."""

MODEL_OF_HARDWARE_MIN: Final = 0.72
"""Least share of executed FLOPs that are model FLOPs: full recompute (3/4) with 4 % of padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """An interval that holds the true value in 95 of 100 cases, or more."""

    lo: float
    hi: float


def hardware(method: str, kappa_sigma: float = KAPPA) -> float | None:
    """Return the relative standard uncertainty of executed FLOPs; None for a method without counters.

    Args:
        method: one of `CLOCKS`.
        kappa_sigma: of the calibration; a card of its own calibration may have less.
    """
    clock = CLOCKS.get(method)
    return None if clock is None else math.sqrt(COUNTER**2 + clock**2 + kappa_sigma**2)


def mixed(parts: Mapping[str, float]) -> float | None:
    """Return the relative standard uncertainty of a sum over methods; None where nothing was counted.

    Args:
        parts: method → what it adds to the sum; methods without counters are passed over.
    """
    counted = {name: amount for name, amount in parts.items() if name in CLOCKS and amount > 0}
    whole = sum(counted.values())
    if not whole:
        return None
    return sum((hardware(name) or 0.0) * amount for name, amount in counted.items()) / whole


def hfu_bounds(lo: float, hi: float, sigma: float) -> Bounds:
    """Widen the bounds of an HFU by the spread of its counters.

    Args:
        lo, hi: equal where the reference clock is known.
        sigma: relative standard uncertainty.
    """
    return Bounds(lo=lo * (1 - COVERAGE * sigma), hi=hi * (1 + COVERAGE * sigma))


def mfu_bounds(
    hfu_lo: float, hfu_hi: float, sigma: float, *, recompute: float | None = None
) -> Bounds:
    """Bounds of the MFU of a job that declares no model FLOPs.

    Args:
        recompute: share of executed FLOPs that were recomputed; None: between none and a whole forward.
    """
    hi = hfu_hi * (1.0 if recompute is None else 1 - recompute)
    lo = hfu_lo * (MODEL_OF_HARDWARE_MIN if recompute is None else 1 - recompute)
    spread = COVERAGE * (sigma if recompute is None else math.hypot(sigma, TILE))
    return Bounds(lo=lo * (1 - spread), hi=hi * (1 + spread))

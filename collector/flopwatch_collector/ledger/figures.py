"""Figures: ratios of sums over a sheet, with their bounds. Pure. The shapes of the HTTP API.

    I = in service − UNSEEN     A = ALLOCATED / I     V = (I − MISSING − FAILED − MAINT) / I
    S = ALLOCATED / (I − MISSING − FAILED − MAINT)    A = V × S exactly: the same integers
    hfu = Σ u·C / Σ C           over allocated capacity C with counters; ± s
    mfu in [(M + 0.72 (1 − s) Σ u·C') / Σ C, (M + (1 + s) Σ u·C') / Σ C]      M declared, C' not declared
    s: half-width of the 95 % interval of what was counted (`flopwatch_kernels.uncertainty`)
    yield = A × hfu

Unknown is None, never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_kernels import uncertainty
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

DECLARED_ENOUGH: Final = 0.999
"""Share of capacity that must be declared for an exact MFU."""

Figures = dict[str, Any]


def figures(sheet: Sheet, window_ms: int) -> Figures:
    """Return every figure of a cluster, or of anything that has lines, over a window."""
    allocated = sheet.where(np.isin(sheet.bucket, ALLOCATED_BUCKETS))
    hfu = _hfu(allocated, "")
    allocation = _allocation(sheet)
    return {
        "cards": _cards(sheet, window_ms),
        "allocation": allocation,
        "active_allocation": {"value": _ratio(sheet.time(Bucket.ACTIVE), _seen(sheet))},
        "availability": {"value": _ratio(_usable(sheet), _seen(sheet))},
        "schedulable_allocation": {"value": _ratio(sheet.time(*ALLOCATED_BUCKETS), _usable(sheet))},
        "hfu": {
            **hfu,
            "basis": "datasheet",
            "methods": _shares(allocated, "efficiency_method", "method", unknown="none"),
        },
        "mfu": {
            **_mfu(allocated, ""),
            "basis": "datasheet",
            "dtypes": _shares(allocated, "dtype", "dtype", unknown="unknown"),
        },
        "hfu_achievable": _hfu(allocated, "achievable_"),
        "mfu_achievable": _mfu(allocated, "achievable_"),
        "yield": {"value": _product(allocation["value"], hfu["value"])},
    }


def _seen(sheet: Sheet) -> int:
    return sheet.time() - sheet.time(Bucket.UNSEEN)


def _usable(sheet: Sheet) -> int:
    return _seen(sheet) - sheet.time(Bucket.MISSING, Bucket.FAILED, Bucket.MAINT)


def _cards(sheet: Sheet, window_ms: int) -> Figures:
    return {
        "in_service": sheet.time() / window_ms,
        "allocated": sheet.time(*ALLOCATED_BUCKETS) / window_ms,
        "active": sheet.time(Bucket.ACTIVE) / window_ms,
        "unseen": sheet.time(Bucket.UNSEEN) / window_ms,
        "rogue": sheet.where(sheet.rogue).time() / window_ms,
        "excused": 0,
        **_free(sheet, window_ms),
    }


def _free(sheet: Sheet, window_ms: int) -> Figures:
    """FREE cards, those waited for, those not; None where no roster told its queue. The rest is not known."""
    free = sheet.time(Bucket.FREE)
    demand, no_demand = (sheet.time(column=f"free_{n}_ms") for n in ("demand", "no_demand"))
    known = not free or demand or no_demand
    return {
        "free": free / window_ms,
        "free_demand": demand / window_ms if known else None,
        "free_no_demand": no_demand / window_ms if known else None,
    }


def _allocation(sheet: Sheet) -> Figures:
    allocated, whole = sheet.time(*ALLOCATED_BUCKETS), sheet.time()
    return {
        "value": _ratio(allocated, _seen(sheet)),
        "lo": _ratio(allocated, whole),
        "hi": _ratio(allocated + sheet.time(Bucket.UNSEEN), whole),
        "coverage": _ratio(sheet.time(column="row_ms"), whole),
    }


def _hfu(allocated: Sheet, prefix: str) -> Figures:
    """HFU over allocated capacity with counters; by the datasheet, or by the measured ceiling."""
    counted = allocated.sum(f"{prefix}counted_{'flops' if prefix else 'capacity_flops'}")
    whole = allocated.sum("achievable_flops" if prefix else "capacity_flops")
    value = _ratio(allocated.sum(f"{prefix}u_flops"), counted)
    if prefix:
        return {"value": value}
    names = ("u_lo_flops", "u_hi_flops")
    lo, hi = (_ratio(allocated.sum(name), counted) for name in names)
    bounds = None
    if lo is not None and hi is not None:
        bounds = uncertainty.hfu_bounds(lo, hi, _sigma(allocated, names[1]))
    exact = value is not None and lo is not None and hi is not None and hi - lo <= 1e-6
    return {
        "value": value if exact else None,
        "lo": None if bounds is None else bounds.lo,
        "hi": None if bounds is None else bounds.hi,
        "coverage": _ratio(counted, whole),
    }


def _mfu(allocated: Sheet, prefix: str) -> Figures:
    part = "flops" if prefix else "capacity_flops"
    measured = allocated.sum(f"{prefix}measured_{part}")
    declared = allocated.sum(f"{prefix}declared_{part}")
    model = allocated.sum("achievable_model_flops" if prefix else "model_flops")
    stem = "achievable_undeclared" if prefix else "undeclared_u"
    names = (f"{stem}_lo_flops", f"{stem}_hi_flops")
    undeclared_lo, undeclared_hi = (allocated.sum(name) for name in names)
    share = _ratio(declared or 0.0, measured)
    value = _ratio(model, measured) if share and share >= DECLARED_ENOUGH else None
    lo = hi = value
    if value is None and not (model is None and undeclared_lo is None):
        rest = uncertainty.mfu_bounds(
            undeclared_lo or 0.0, undeclared_hi or 0.0, _sigma(allocated, names[1])
        )
        lo, hi = (_ratio((model or 0.0) + end, measured) for end in (rest.lo, rest.hi))
    return {"value": value, "lo": lo, "hi": hi, "declared_share": share}


def _sigma(allocated: Sheet, name: str) -> float:
    """Return the relative standard uncertainty of a sum of counted FLOPs; 0 where it is of nothing."""
    methods, values = allocated.texts["efficiency_method"], np.nan_to_num(allocated.sums[name])
    added = {str(m): float(values[methods == m].sum()) for m in np.unique(methods)}
    return uncertainty.mixed(added) or 0.0


def _shares(allocated: Sheet, column: str, name: str, *, unknown: str) -> list[Figures]:
    """Return [{name: …, "share": of allocated card-time}], largest first."""
    total = allocated.time()
    texts, place = np.unique(allocated.texts[column], return_inverse=True)
    card_ms = np.zeros(len(texts), np.int64)
    np.add.at(card_ms, place, allocated.ints["card_ms"])
    shares: Counter[str] = Counter()
    for text, ms in zip(texts, card_ms, strict=True):
        shares[str(text) or unknown] += int(ms)
    ordered = sorted(shares.items(), key=lambda kv: (-kv[1], kv[0]))
    return [{name: text, "share": ms / total} for text, ms in ordered if ms]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _product(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def lost_points(sheet: Sheet) -> Mapping[str, float]:
    """Return bucket → points of allocation lost to it: what lies between A and 100 %."""
    seen = _seen(sheet)
    if not seen:
        return {}
    lossy = [b for b in Bucket if b not in ALLOCATED_BUCKETS and b is not Bucket.UNSEEN]
    points = {b.name: 100 * sheet.time(b) / seen for b in lossy}
    return {name: value for name, value in points.items() if value > 0}

"""The waterfall: where every FLOP of the delivered cards went. Pure.

Steps stand in a fixed order and add up to the card-time in service exactly. Each is card-seconds (`share`
is of these), FLOPs by each card's own peak, and kWh of the step's own time. A step that nobody can know is
null; what it would hold stays in the step after it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Floats
from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

OWNERS: Final = {
    "missing": "hardware",
    "failed": "hardware",
    "maint": "facility",
    "unseen": "hardware",
    "held": "facility",
    "stranded": "scheduling",
    "free": "scheduling",
    "no_process": "workload",
    "sm_idle": "workload",
    "clock": "facility",
    "tensor_gap": "workload",
    "unattributed": "workload",
    "dtype": "workload",
    "tile": "workload",
    "recompute": "workload",
    "eval_checkpoint": "workload",
    "rework": "workload",
    "hardware_flops": "output",
    "model_flops": "output",
}
"""Every step in order, with who can act on it."""

_BUCKET_STEPS: Final = {
    "missing": Bucket.MISSING,
    "failed": Bucket.FAILED,
    "maint": Bucket.MAINT,
    "unseen": Bucket.UNSEEN,
    "held": Bucket.HELD,
    "stranded": Bucket.STRANDED,
    "free": Bucket.FREE,
}
_SUM_STEPS: Final = {
    "no_process": "no_process_step_ms",
    "sm_idle": "sm_idle_step_ms",
    "clock": "clock_step_ms",
    "tensor_gap": "tensor_gap_step_ms",
    "unattributed": "unattributed_step_ms",
    "recompute": "recompute_step_ms",
    "hardware_flops": "hardware_step_ms",
    "model_flops": "model_step_ms",
}


def waterfall(sheet: Sheet) -> list[dict[str, Any]]:
    """Return the steps: step, owner, card_seconds, share, flops, kwh, usd."""
    card_ms = sheet.ints["card_ms"].astype(np.float64)
    whole = float(card_ms.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        flops_per_ms = sheet.sums["capacity_flops"] / card_ms
        joules_per_ms = sheet.sums["energy_joules"] / card_ms
    allocated = np.isin(sheet.bucket, ALLOCATED_BUCKETS)
    steps = []
    for step, owner in OWNERS.items():
        spent: Floats | None = None
        if step in _BUCKET_STEPS:
            spent = np.where(sheet.bucket == _BUCKET_STEPS[step], card_ms, 0.0)
        elif step in _SUM_STEPS:
            values = np.where(allocated, sheet.sums[_SUM_STEPS[step]], 0.0)
            known = ~np.isnan(values)
            if known.any() or not len(values):
                spent = np.where(known, values, 0.0)
        steps.append(_step(step, owner, spent, whole, flops_per_ms, joules_per_ms))
    return steps


def _step(
    step: str,
    owner: str,
    spent: Floats | None,
    whole: float,
    flops_per_ms: Floats,
    joules_per_ms: Floats,
) -> dict[str, Any]:
    if spent is None:
        nothing = dict.fromkeys(("card_seconds", "share", "flops", "kwh", "usd"))
        return {"step": step, "owner": owner, **nothing}
    total = float(spent.sum())
    joules = _priced(spent, joules_per_ms)
    return {
        "step": step,
        "owner": owner,
        "card_seconds": total / 1000,
        "share": total / whole if whole else None,
        "flops": _priced(spent, flops_per_ms),
        "kwh": None if joules is None else joules / 3.6e6,
        "usd": None,
    }


def _priced(spent: Floats, per_ms: Floats) -> float | None:
    """Return Σ spent × rate; None where any of the time has no known rate."""
    used = spent != 0
    if not used.any():
        return 0.0
    total = float((spent[used] * per_ms[used]).sum())
    return None if np.isnan(total) else total

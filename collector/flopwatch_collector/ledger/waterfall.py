"""The waterfall: where every FLOP of the delivered cards went. Pure.

Steps stand in a fixed order and add up to the card-time in service exactly. Each is card-seconds (`share`
is of these), FLOPs by each card's own peak, and kWh of the step's own time. A step that nobody can know is
null; what it would hold stays in the step after it.

Up to `unattributed` steps are sums of lines. Those after it divide what the tensor pipes did, in this order:

    dtype             what a reference dtype would have done beyond it; only where a cluster has one
    recompute         beyond the model FLOPs declared; negative where more is declared than was run
    eval_checkpoint   all of it, in rows whose phase is an evaluation or a checkpoint
    rework            of each job's rest, the share of its steps that a restart lost
    hardware, model   what is left, undeclared and declared

A step may say what it is made of (`parts`): exactly, then parts add up to the step, or bounded, then each
has bounds and their middle, null where they say nothing; as bounds overlap, middles need not add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Bools, Floats
from flopwatch_collector.ledger.lines import CLOCK_REASONS
from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_kernels import peaks
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
_INTERRUPTIONS: Final = ("eval", "checkpoint")
_PHASES: Final = ("steady", "startup", *_INTERRUPTIONS)
DISAGREEMENT_MIN: Final = -0.02
"""Recompute below this share of the model FLOPs: the declaration and the counters disagree."""


def dtype_ratios(sheet: Sheet, reference_dtype: str | None) -> Floats:
    """Return per line peak(its dtype) / peak(the reference dtype); NaN where one is not known."""
    peak = np.full(len(sheet.bucket), np.nan)
    if reference_dtype is not None:
        for sku, dtype in {*zip(sheet.texts["sku"], sheet.texts["dtype"], strict=True)}:
            own = peaks.peak_flops(str(sku), str(dtype))
            reference = peaks.peak_flops(str(sku), reference_dtype)
            if own and reference:
                mine = (sheet.texts["sku"] == sku) & (sheet.texts["dtype"] == dtype)
                peak[mine] = own / reference
    return peak


def waterfall(
    sheet: Sheet,
    lost_card_steps: Mapping[str, float] | None = None,
    ratios: Floats | None = None,
) -> list[dict[str, Any]]:
    """Return the steps: step, owner, card_seconds, share, flops, kwh, usd, parts.

    Args:
        lost_card_steps: job → steps that its restarts lost × its cards (`rework`).
        ratios: `dtype_ratios` of the lines: FLOPs are then of the reference dtype's peak.
    """
    card_ms = sheet.ints["card_ms"].astype(np.float64)
    whole = float(card_ms.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        flops_per_ms = sheet.sums["capacity_flops"] / card_ms
        joules_per_ms = sheet.sums["energy_joules"] / card_ms
    ratios = np.full(len(card_ms), np.nan) if ratios is None else ratios
    flops_per_ms = flops_per_ms / np.where(np.isnan(ratios), 1.0, ratios)
    spent = _spent(sheet, card_ms, lost_card_steps or {}, ratios)
    parts = _parts(sheet, spent)
    steps = []
    for step, owner in OWNERS.items():
        made = _step(step, owner, spent.get(step), whole, flops_per_ms, joules_per_ms)
        steps.append(made | {"parts": parts.get(step, [])})
        if step == "recompute":
            steps[-1]["disagreement"] = _disagrees(sheet)
    return steps


def _disagrees(sheet: Sheet) -> bool:
    """Return whether jobs declare more FLOPs than their tensor pipes ran, beyond what counters err."""
    model, recompute = sheet.sum("model_step_ms") or 0.0, sheet.sum("recompute_step_ms") or 0.0
    return recompute < DISAGREEMENT_MIN * model


def _spent(
    sheet: Sheet, card_ms: Floats, lost_card_steps: Mapping[str, float], ratios: Floats
) -> dict[str, Floats | None]:
    """Return step → card-milliseconds per line; None where nobody knows."""
    allocated = np.isin(sheet.bucket, ALLOCATED_BUCKETS)
    spent: dict[str, Floats | None] = {
        step: np.where(sheet.bucket == bucket, card_ms, 0.0)
        for step, bucket in _BUCKET_STEPS.items()
    }
    for step, name in _SUM_STEPS.items():
        spent[step] = _known(np.where(allocated, sheet.sums[name], 0.0), allocated)
    output = [spent["hardware_flops"], spent["model_flops"]]
    if (allocated & ~np.isnan(ratios)).any():
        beyond = np.where(np.isnan(ratios), 0.0, 1.0 - ratios)
        spent["dtype"] = _take([*output, spent["recompute"]], beyond)
    phase = sheet.texts["phase"]
    taken = np.isin(phase, _INTERRUPTIONS)
    # None of it is an answer only where every job tells its phase.
    if taken[allocated].any() or np.isin(phase[allocated], _PHASES).all():
        spent["eval_checkpoint"] = _take(output, taken.astype(np.float64))
    if not allocated.any() or sheet.sum("steps_count") is not None:
        spent["rework"] = _take(output, _lost_shares(sheet, lost_card_steps))
    return spent


def _known(values: Floats, allocated: Bools) -> Floats | None:
    """Return the values with 0 for what is null; None where all of the allocated time is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0) if known[allocated].any() or not allocated.any() else None


def _take(output: Sequence[Floats | None], share: Floats) -> Floats:
    """Take a share of each line's output away; return what was taken."""
    taken = np.zeros_like(share)
    for values in output:
        if values is not None:
            part = values * share
            values -= part
            taken += part
    return taken


def _lost_shares(sheet: Sheet, lost_card_steps: Mapping[str, float]) -> Floats:
    """Return per line the share of its job's steps that were lost; 0 where the job made none here."""
    shares = np.zeros(len(sheet.bucket))
    for job, lost in lost_card_steps.items():
        mine = sheet.texts["job"] == job
        made = float(np.nansum(sheet.sums["steps_count"][mine]))
        if made > 0:
            shares[mine] = min(1.0, lost / made)
    return shares


def _parts(sheet: Sheet, spent: Mapping[str, Floats | None]) -> dict[str, list[dict[str, Any]]]:
    """Return step → its parts: name, card_seconds, lo, hi, bounded."""
    parts = {}
    if (clock := spent["clock"]) is not None:
        parts["clock"] = _clock_parts(sheet, float(clock.sum()))
    if (gap := spent["tensor_gap"]) is not None:
        parts["tensor_gap"] = _gap_parts(sheet, gap)
    if (taken := spent.get("eval_checkpoint")) is not None:
        phase = sheet.texts["phase"]
        parts["eval_checkpoint"] = [
            _part(p, float(taken[phase == p].sum())) for p in _INTERRUPTIONS
        ]
    return parts


def _clock_parts(sheet: Sheet, whole: float) -> list[dict[str, Any]]:
    sums = {n: sheet.sum(f"clock_{n}_step_ms") for n in (*CLOCK_REASONS, "application", "boost")}
    left = whole - sum(ms for ms in sums.values() if ms is not None)
    unknown = left if abs(left) > 1e-9 * max(1.0, abs(whole)) else 0.0
    return [*(_part(n, ms) for n, ms in sums.items()), _part("unknown", unknown)]


def _gap_parts(sheet: Sheet, gap: Floats) -> list[dict[str, Any]]:
    """Return memory, link and the rest, each between its bounds; no middle where they say nothing."""
    whole = float(gap.sum())
    bounds: dict[str, tuple[float, float]] = {}
    for name in ("memory", "link"):
        lo, hi = (sheet.sums[f"tensor_gap_{name}_{end}_step_ms"] for end in ("lo", "hi"))
        bounds[name] = float(np.nansum(lo)), float(np.where(np.isnan(hi), gap, hi).sum())
    (memory_lo, memory_hi), (link_lo, link_hi) = bounds.values()
    bounds["other"] = (
        max(0.0, whole - memory_hi - link_hi),
        max(0.0, whole - memory_lo - link_lo),
    )
    return [_bounded_part(name, lo, hi, whole) for name, (lo, hi) in bounds.items()]


def _part(name: str, ms: float | None) -> dict[str, Any]:
    seconds = None if ms is None else ms / 1000
    return {"name": name, "card_seconds": seconds, "lo": seconds, "hi": seconds, "bounded": False}


def _bounded_part(name: str, lo_ms: float, hi_ms: float, whole_ms: float) -> dict[str, Any]:
    nothing = whole_ms > 0 and lo_ms <= 1e-9 * whole_ms and hi_ms >= (1 - 1e-9) * whole_ms
    middle = None if nothing else (lo_ms + hi_ms) / 2
    return _part(name, middle) | {"lo": lo_ms / 1000, "hi": hi_ms / 1000, "bounded": True}


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

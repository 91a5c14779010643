"""From the sums of a row to its steps of the waterfall and its parts of capacity. Pure, vectorised.

Allocated card-time D of a row splits, in this order, into (all weighted milliseconds):

    unattributed   D − covered            the driver said nothing
    no_process     covered − resident     nobody was on the card
    sm_idle        B − S                  B: what remains, busy time with counters
    clock          S − S·f/f_ref          negative when the card ran above its reference clock
    tensor_gap     S·f/f_ref − A·f/f_ref  SMs busy, tensor pipes not
    rest           A·f/f_ref = u          hardware_step, or for a declared job:
    recompute      u − M                  M: declared model FLOPs / peak; keeps its sign
    model          M

so the steps of a row add up to D whatever is known; what nobody can know goes to `unattributed`. `clock` and
`tensor_gap` are split further in `splits.py`.
Source: the telescoping product of science notes §7, in card-time instead of ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwatch_collector.ledger.evidence import Bools, Floats
from flopwatch_collector.ledger.splits import MEMORY_REACHED, clock_split, gap_split, link_busy_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSums:
    """Arrays per row (or part of a row). Times in ms; NaN where null.

    Attributes:
        allocated: the row's bucket, as judged, is an allocated one.
        working: False where the bucket itself says that no work is possible (suspended, gang wait).
        nvlink_per_ms, pcie_per_ms: bytes per ms and direction that the card's links can move; NaN: not known.
    """

    allocated: Bools
    working: Bools
    card_ms: Floats
    covered_ms: Floats
    counted_ms: Floats
    resident_ms: Floats
    nvlink_per_ms: Floats
    pcie_per_ms: Floats
    sums: dict[str, Floats]


def derive(row: RowSums) -> dict[str, Floats]:
    """Return DERIVED_SUMS of each row; NaN outside allocated card-time."""
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = _steps(row)
        derived = {**steps, **_splits(row, steps), **_parts(row)}
    return {name: np.where(row.allocated, value, np.nan) for name, value in derived.items()}


def _no_process(row: RowSums) -> Floats:
    """Return card-time with an answer and without a process; never so much that S exceeds the rest."""
    resident = np.where(row.working, row.resident_ms, 0.0)
    idle = np.clip(row.covered_ms - resident, 0.0, None)
    active = np.nan_to_num(row.sums["sm_active_ms"])
    return np.minimum(idle, np.clip(row.covered_ms - active, 0.0, None))


def _bounded(row: RowSums) -> Bools:
    """Return where counters exist but the SKU has no reference clock: only bounds of u are known."""
    sums = row.sums
    return (
        (row.counted_ms <= 0)
        & ~np.isnan(sums["sm_active_ms"])
        & ~np.isnan(sums["tensor_active_ms"])
        & ~np.isnan(sums["u_hi_flops"])
        & np.isnan(sums["u_flops"])
    )


def _steps(row: RowSums) -> dict[str, Floats]:
    sums = row.sums
    bounded = _bounded(row)
    no_process = _no_process(row)
    busy = row.covered_ms - no_process
    share = np.where(bounded, 1.0, np.clip(row.counted_ms / row.covered_ms, 0.0, 1.0))
    peak_known = ~np.isnan(sums["capacity_flops"])
    counted = np.where((share > 0) & peak_known, busy * np.nan_to_num(share), 0.0)
    has = (counted > 0) | ((share > 0) & peak_known)
    tensor = np.maximum(np.nan_to_num(sums["tensor_active_ms"]), 0.0)
    active = np.maximum(np.nan_to_num(sums["sm_active_ms"]), tensor)
    counted = np.where(has, np.maximum(counted, active), 0.0)
    active = np.where(has, active, 0.0)
    rest = np.where(bounded, tensor, np.nan_to_num(sums["tensor_active_clock_ms"]))
    rest = np.where(has, rest, 0.0)
    active_clock = np.where(bounded, active, np.nan_to_num(sums["sm_active_clock_ms"]))
    active_clock = np.where(has, np.maximum(active_clock, rest), 0.0)
    # A processor has no datasheet peak; its measured ceiling stands in, so that its FLOPs have a place.
    peak = np.where(peak_known, sums["capacity_flops"], sums["achievable_flops"]) / row.card_ms
    declared = ~np.isnan(sums["model_flops"]) & (peak > 0)
    model = np.where(declared, np.nan_to_num(sums["model_flops"] / peak), 0.0)
    unattributed = row.card_ms - no_process - counted - np.where(declared & ~has, model, 0.0)
    return {
        "no_process_step_ms": no_process,
        "sm_idle_step_ms": counted - active,
        "clock_step_ms": np.where(bounded & row.allocated, np.nan, active - active_clock),
        "tensor_gap_step_ms": active_clock - rest,
        "unattributed_step_ms": unattributed,
        "recompute_step_ms": np.where(declared & has, rest - model, 0.0),
        "hardware_step_ms": np.where(declared, 0.0, rest),
        "model_step_ms": model,
    }


def _splits(row: RowSums, steps: dict[str, Floats]) -> dict[str, Floats]:
    sums = row.sums
    tensor = np.maximum(np.nan_to_num(sums["tensor_active_ms"]), 0.0)
    return {
        **clock_split(steps["clock_step_ms"], row.covered_ms, sums),
        **gap_split(
            steps["tensor_gap_step_ms"],
            np.maximum(np.nan_to_num(sums["sm_active_ms"]), tensor),
            tensor,
            sums["dram_active_ms"] / MEMORY_REACHED,
            link_busy_ms(sums, row.nvlink_per_ms, row.pcie_per_ms),
        ),
    }


def _parts(row: RowSums) -> dict[str, Floats]:
    sums = row.sums
    share = np.where(_bounded(row), row.covered_ms, row.counted_ms) / row.card_ms
    share = np.clip(np.nan_to_num(share), 0.0, 1.0)
    idle = np.clip(np.nan_to_num(_no_process(row) / row.card_ms), 0.0, 1.0)
    declared = ~np.isnan(sums["model_flops"])
    parts = {}
    for prefix, whole in (("", sums["capacity_flops"]), ("achievable_", sums["achievable_flops"])):
        known = ~np.isnan(whole)
        suffix = "flops" if prefix else "capacity_flops"
        parts[f"{prefix}counted_{suffix}"] = whole * share
        parts[f"{prefix}declared_{suffix}"] = np.where(declared, whole, whole * idle)
        parts[f"{prefix}measured_{suffix}"] = np.where(
            declared, whole, whole * np.maximum(share, idle)
        )
        open_ = known & ~declared
        lo = np.where(open_, sums["u_lo_flops"], np.nan)
        hi = np.where(open_, sums["u_hi_flops"], np.nan)
        if prefix:
            parts["achievable_undeclared_lo_flops"] = lo
            parts["achievable_undeclared_hi_flops"] = hi
            parts["achievable_u_flops"] = np.where(known, sums["u_flops"], np.nan)
            parts["achievable_model_flops"] = np.where(known, sums["model_flops"], np.nan)
        else:
            parts["undeclared_u_flops"] = np.where(open_, sums["u_flops"], np.nan)
            parts["undeclared_u_lo_flops"] = lo
            parts["undeclared_u_hi_flops"] = hi
    return parts

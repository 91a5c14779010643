"""A line of account: card-time of one slot in one bucket under one identity, with everything summed.

Raw rows, rosters and silence become lines (`account`); minutes and hours store lines; every figure is a
ratio of sums over lines (`figures`). A line's columns are the group keys below, whole milliseconds of
card-time, and sums that are null where nothing was known.

The sums that `account` derives are made inside each row, so that they add like the rest:

- the waterfall of allocated time, in card-milliseconds (``*_step_ms``), which add up to ``card_ms``, and the
  parts or bounds of parts of two of its steps;
- the parts of capacity that a ratio may divide by (``*_capacity_flops``), so that numerator and
  denominator always cover the same card-time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flopwatch_proto import rows
from flopwatch_proto.rows import Kind

LINE_TEXTS: Final = (
    "job",
    "team",
    "user",
    "workload_class",
    "phase",
    "sku",
    "device_kind",
    "dtype",
    "convention",
    "efficiency_method",
    "allocation_source",
)
"""Identity of a line, beside cluster, node, slot, start, bucket and rogue. Empty text: not known."""

LINE_INTS: Final = (
    "card_ms",
    "row_ms",
    "covered_ms",
    "counted_ms",
    "resident_ms",
    "provisional_ms",
    "free_demand_ms",
    "free_no_demand_ms",
)
"""Card-time: all, with a row, with an answer of the driver, with counters, with a process, not final;
FREE while cards were waited for, FREE while none were. FREE time in neither: no roster told its queue."""

STEP_SUMS: Final = (
    "no_process_step_ms",
    "sm_idle_step_ms",
    "clock_step_ms",
    "tensor_gap_step_ms",
    "unattributed_step_ms",
    "recompute_step_ms",
    "hardware_step_ms",
    "model_step_ms",
)
"""The waterfall of allocated card-time. Null ``clock_step_ms``: no reference clock."""

CLOCK_REASONS: Final = ("power", "thermal_sw", "thermal_hw", "power_brake", "sync_boost")
"""Why a driver holds a card below its application clock; each has a ``throttled_*_ms``."""

SPLIT_SUMS: Final = (
    *(f"clock_{reason}_step_ms" for reason in CLOCK_REASONS),
    "clock_application_step_ms",  # what no reason explains: the clock that was asked for
    "clock_boost_step_ms",  # above the reference clock: negative
    "tensor_gap_memory_lo_step_ms",
    "tensor_gap_memory_hi_step_ms",
    "tensor_gap_link_lo_step_ms",
    "tensor_gap_link_hi_step_ms",
)
"""Parts of steps (`splits`). Null: nobody knows; lines of before they were kept are null, too."""

PART_SUMS: Final = (
    "counted_capacity_flops",  # capacity with counters
    "measured_capacity_flops",  # capacity with counters or a declaration
    "declared_capacity_flops",  # capacity with a declaration, or surely without work (no process)
    "undeclared_u_flops",  # u × capacity where nothing was declared
    "undeclared_u_lo_flops",
    "undeclared_u_hi_flops",
    "achievable_counted_flops",  # measured ceiling × time, where there are counters
    "achievable_measured_flops",  # the same, where there are counters or a declaration
    "achievable_declared_flops",  # the same, where there is a declaration or no process
    "achievable_u_flops",  # u × capacity where a ceiling is known
    "achievable_undeclared_lo_flops",
    "achievable_undeclared_hi_flops",
    "achievable_model_flops",  # model FLOPs where a ceiling is known
)

LINE_SUMS: Final = (
    *(q.name for q in rows.QUANTITIES if q.kind is Kind.SUM),
    *STEP_SUMS,
    *SPLIT_SUMS,
    *PART_SUMS,
)
DERIVED_SUMS: Final = frozenset((*STEP_SUMS, *SPLIT_SUMS, *PART_SUMS))
LINE_MAXIMA: Final = tuple(q.name for q in rows.QUANTITIES if q.kind is Kind.MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Columns of lines that an answer is made of; the fewer, the less is read."""

    texts: tuple[str, ...]
    sums: tuple[str, ...]


EVERYTHING: Final = Wanted(texts=LINE_TEXTS, sums=LINE_SUMS)
OF_FIGURES: Final = Wanted(
    texts=("job", "phase", "sku", "device_kind", "dtype", "efficiency_method"),
    sums=(
        "capacity_flops",
        "achievable_flops",
        "u_flops",
        "u_lo_flops",
        "u_hi_flops",
        "model_flops",
        "steps_count",
        "energy_joules",
        *STEP_SUMS,
        *SPLIT_SUMS,
        *PART_SUMS,
    ),
)
"""What figures and the waterfall are made of."""

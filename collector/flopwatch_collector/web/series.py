"""Figures over time, for plots: sums per step of time and cluster from stored lines, then ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.ledger.rollup import HOUR_MS, MINUTE_MS
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.schema import newest_lines
from flopwatch_collector.web.asked import DAY_MS
from flopwatch_kernels import uncertainty
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

POINTS_MAX: Final = 2_000
MINUTES_SPAN_MS_MAX: Final = 8 * DAY_MS
"""Longer spans are read from hours."""

_ALLOCATED: Final = f"bucket IN ({', '.join(str(int(b)) for b in ALLOCATED_BUCKETS)})"
# What is added by a method is off by that method's spread, as in the figures.
_SPREAD: Final = " + ".join(
    f"{uncertainty.COVERAGE * (uncertainty.hardware(method) or 0.0)} * (efficiency_method = '{method}')"
    for method in uncertainty.CLOCKS
)
_SUMS: Final = {
    "whole": "sum(card_ms)",
    "seen": f"sumIf(card_ms, bucket != {int(Bucket.UNSEEN)})",
    "allocated": f"sumIf(card_ms, {_ALLOCATED})",
    "active": f"sumIf(card_ms, bucket = {int(Bucket.ACTIVE)})",
    "usable": "sumIf(card_ms, bucket NOT IN ("
    f"{int(Bucket.UNSEEN)}, {int(Bucket.MISSING)}, {int(Bucket.FAILED)}, {int(Bucket.MAINT)}))",
    "u": f"sumIf(u_flops, {_ALLOCATED})",
    "counted": f"sumIf(counted_capacity_flops, {_ALLOCATED})",
    "measured": f"sumIf(measured_capacity_flops, {_ALLOCATED})",
    "model": f"sumIf(model_flops, {_ALLOCATED})",
    "undeclared_lo": f"sumIf(undeclared_u_lo_flops * (1 - ({_SPREAD})), {_ALLOCATED})",
    "undeclared_hi": f"sumIf(undeclared_u_hi_flops * (1 + {_SPREAD}), {_ALLOCATED})",
    "a_u": f"sumIf(achievable_u_flops, {_ALLOCATED})",
    "a_counted": f"sumIf(achievable_counted_flops, {_ALLOCATED})",
}

Sums = Mapping[str, float | None]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _mfu(sums: Sums, undeclared: str, factor: float) -> float | None:
    model, rest = sums["model"], sums[undeclared]
    if model is None and rest is None:
        return None
    return _ratio((model or 0.0) + factor * (rest or 0.0), sums["measured"])


def _yield(sums: Sums) -> float | None:
    allocation, hfu = (
        _ratio(sums["allocated"], sums["seen"]),
        _ratio(sums["u"], sums["counted"]),
    )
    return None if allocation is None or hfu is None else allocation * hfu


METRICS: Final[Mapping[str, Callable[[Sums], float | None]]] = {
    "allocation": lambda s: _ratio(s["allocated"], s["seen"]),
    "active_allocation": lambda s: _ratio(s["active"], s["seen"]),
    "availability": lambda s: _ratio(s["usable"], s["seen"]),
    "schedulable_allocation": lambda s: _ratio(s["allocated"], s["usable"]),
    "hfu": lambda s: _ratio(s["u"], s["counted"]),
    "mfu_lo": lambda s: _mfu(s, "undeclared_lo", uncertainty.MODEL_OF_HARDWARE_MIN),
    "mfu_hi": lambda s: _mfu(s, "undeclared_hi", 1.0),
    "hfu_achievable": lambda s: _ratio(s["a_u"], s["a_counted"]),
    "yield": _yield,
}
"""Name → ratio of a step's sums; the same as the figures of a window of that step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A window in steps. Attributes: step_ms: a multiple of a minute, or of an hour for long ones."""

    window: Window
    step_ms: int

    @property
    def starts(self) -> range:
        """The start of every step."""
        first = self.window.start // self.step_ms * self.step_ms
        return range(first, self.window.end, self.step_ms)


def steps_of(window: Window, step_ms: int | None) -> Steps:
    """Return the steps of a window: the asked ones, on the grain of what is stored and bounded."""
    span = window.end - window.start
    grain = MINUTE_MS if span <= MINUTES_SPAN_MS_MAX else HOUR_MS
    least = max(grain, span / POINTS_MAX if step_ms is not None else span / 120)
    step = max(step_ms or 0, int(least))
    return Steps(window=window, step_ms=-(-step // grain) * grain)


def sums_by_step(reader: Reader, steps: Steps, by_cluster: bool) -> dict[str, dict[int, Any]]:
    """Return cluster (or "real", "simulated" without clusters) → start of step → its sums."""
    hourly = steps.step_ms >= HOUR_MS and (
        steps.window.end - steps.window.start > MINUTES_SPAN_MS_MAX
    )
    table = "fleet_hour" if hourly else "fleet_minute"
    subject = "cluster" if by_cluster else "if(simulated, 'simulated', 'real')"
    where = "start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64}"
    found = reader.query(
        f"SELECT {subject} AS subject, intDiv(start_unix_ms, {{step:Int64}}) * {{step:Int64}} AS at, "
        f"max(device_kind != 'cpu') AS cards, "
        f"{', '.join(f'{sql} AS {name}' for name, sql in _SUMS.items())} "
        f"{newest_lines(table, where)} "
        f"{'' if by_cluster else _ONLY_CARDS}GROUP BY subject, at ORDER BY subject, at",
        {"start": steps.starts.start, "end": steps.window.end, "step": steps.step_ms},
    )
    sums: dict[str, dict[int, Any]] = {}
    for record in found.to_pylist():
        sums.setdefault(record["subject"], {})[record["at"]] = record
    return sums


_ONLY_CARDS: Final = "AND device_kind != 'cpu' "


def series(reader: Reader, metric: str, by: str, steps: Steps) -> dict[str, Any]:
    """Return `/api/v1/series`: one value per step, null where nothing is known."""
    sums = sums_by_step(reader, steps, by == "cluster")
    if by == "fleet":
        chosen = sums.get("real") or sums.get("simulated") or {}
        sums = {"fleet": chosen} if chosen else {}
    return {
        "metric": metric,
        "by": by,
        "start": rfc3339(steps.starts.start),
        "end": rfc3339(steps.window.end),
        "step_s": steps.step_ms / 1000,
        "times": [rfc3339(at) for at in steps.starts],
        "series": [
            {"name": name, "values": values_of(points, steps, metric)}
            for name, points in sums.items()
        ],
    }


def values_of(points: Mapping[int, Sums], steps: Steps, metric: str) -> list[float | None]:
    """Return a figure at every step; None where no line is stored."""
    figure = METRICS[metric]
    return [figure(points[at]) if at in points else None for at in steps.starts]


def first_minute(reader: Reader) -> int | None:
    """Return the oldest minute with an account, of any cluster."""
    found = reader.query(
        "SELECT count() AS n, min(start_unix_ms) AS first FROM written "
        "WHERE grain = 'fleet_minute' AND lines > 0"
    )
    return int(found["first"][0].as_py()) if found["n"][0].as_py() else None

"""Which part of a window comes from which tier: days, hours, minutes, intervals, raw rows. Reads only.

A day, hour or minute stands where it was written after all it is made of, and no late row has marked a minute
of it since; an interval stands where no row came after it was judged. What stands nowhere is judged from raw
rows. So an answer never depends on when it was asked for, only on what is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Bools, Ints, Window
from flopwatch_collector.ledger.intervals import standing_intervals
from flopwatch_collector.ledger.rollup import HOUR_MS, MINUTE_MS
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.dirty import dirty_minutes
from flopwatch_collector.telemetry.schema import DAY_MS
from flopwatch_proto.rows import INTERVAL_MS

RAW_MS_MAX: Final = 600_000
"""Raw rows of no more time are judged at once."""
SPANS_MAX: Final = 8
"""Intervals are looked for in so many spans; where there are more, late rows are, and raw rows are judged."""
HOURS_FROM_MS: Final = 2 * HOUR_MS
DAYS_FROM_MS: Final = 2 * DAY_MS
_NONE: Final[Ints] = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Starts of what is read from each tier, and spans of raw rows."""

    days: Ints
    hours: Ints
    minutes: Ints
    intervals: Ints
    raw: list[Window]

    @property
    def stored(self) -> tuple[Ints, ...]:
        """Starts by tier, in the order in which `window` names the tables."""
        return self.minutes, self.hours, self.days, self.intervals


@dataclass(frozen=True, slots=True)
class _Written:
    """What was written of a grain, by time, and the generation of each."""

    starts: Ints
    generations: Ints

    def where(self, mask: Bools) -> _Written:
        return _Written(self.starts[mask], self.generations[mask])


_NOTHING: Final = _Written(_NONE, _NONE)


def plans(
    reader: Reader, clusters: Sequence[str], window: Window, *, with_slots: bool
) -> dict[str, Plan]:
    """Return the plan of each cluster. Lines with slots have neither days nor intervals."""
    dirty: dict[str, list[int]] = {}
    for cluster, minute in dirty_minutes(reader):
        dirty.setdefault(cluster, []).append(minute)
    marks = {cluster: np.array(dirty.get(cluster, []), np.int64) for cluster in clusters}
    days = dict.fromkeys(clusters, _NONE)
    if window.end - window.start > DAYS_FROM_MS and not with_slots:
        days = _standing_days(reader, clusters, window, marks)
    spans = _without_days(window, days)
    minutes = [_written(reader, "fleet_minute", span) for span in spans]
    hours = [
        _written(reader, "fleet_hour", span)
        for span in spans
        if span.end - span.start >= HOUR_MS and window.end - window.start > HOURS_FROM_MS
    ]
    served = _in_service(reader, window)
    made = {
        cluster: _plan(
            Window(start=window.start, end=window.end),
            served.get(cluster),
            days[cluster],
            _joined([found.get(cluster, _NOTHING) for found in hours]),
            _joined([found.get(cluster, _NOTHING) for found in minutes]),
            marks[cluster],
        )
        for cluster in clusters
    }
    return made if with_slots else _with_intervals(reader, made)


def _plan(
    window: Window,
    served: Window | None,
    days: Ints,
    hours: _Written,
    minutes: _Written,
    dirty: Ints,
) -> Plan:
    inside = (minutes.starts >= window.start) & (minutes.starts + MINUTE_MS <= window.end)
    inside &= ~np.isin(minutes.starts // DAY_MS * DAY_MS, days)
    clean = minutes.where(inside & ~np.isin(minutes.starts, dirty))
    starts = hours.where(~np.isin(hours.starts // DAY_MS * DAY_MS, days))
    standing = _standing_hours(starts, clean, window)
    whole = np.isin(clean.starts // HOUR_MS * HOUR_MS, standing)
    raw = [] if served is None else _rest(served, days, clean.starts)
    return Plan(days=days, hours=standing, minutes=clean.starts[~whole], intervals=_NONE, raw=raw)


def _standing_hours(hours: _Written, clean: _Written, window: Window) -> Ints:
    """Return the hours of which all 60 minutes are clean, and none was written after it."""
    inside = (hours.starts >= window.start) & (hours.starts + HOUR_MS <= window.end)
    hours = hours.where(inside)
    low = np.searchsorted(clean.starts, hours.starts)
    full = np.searchsorted(clean.starts, hours.starts + HOUR_MS) - low == HOUR_MS // MINUTE_MS
    hours, low = hours.where(full), low[full]
    newest = clean.generations[low[:, None] + np.arange(HOUR_MS // MINUTE_MS)]
    standing: Bools = newest.max(axis=1, initial=0) <= hours.generations
    return hours.starts[standing]


def _standing_days(
    reader: Reader, clusters: Sequence[str], window: Window, dirty: dict[str, Ints]
) -> dict[str, Ints]:
    """Return the days of which no minute is dirty or was written after it. They were whole when written."""
    first = -(-window.start // DAY_MS) * DAY_MS
    last = window.end // DAY_MS * DAY_MS
    written = _written(reader, "fleet_day", Window(start=first, end=last))
    newest = _by_cluster(
        reader.query(
            "SELECT cluster, intDiv(start_unix_ms, {day:Int64}) * {day:Int64} AS start, "
            "max(generation) AS newest FROM written WHERE grain = 'fleet_minute' "
            "AND start_unix_ms >= {first:Int64} AND start_unix_ms < {last:Int64} "
            "GROUP BY cluster, start ORDER BY cluster, start",
            {"day": DAY_MS, "first": first, "last": last},
        )
    )
    standing = {}
    for cluster in clusters:
        days, minutes = written.get(cluster, _NOTHING), newest.get(cluster, _NOTHING)
        days = days.where(np.isin(days.starts, minutes.starts))
        made_of = minutes.generations[np.searchsorted(minutes.starts, days.starts)]
        late = np.isin(days.starts, dirty[cluster] // DAY_MS * DAY_MS)
        standing[cluster] = days.starts[(made_of <= days.generations) & ~late]
    return standing


def _without_days(window: Window, days: dict[str, Ints]) -> list[Window]:
    """Return the parts of a window that some cluster has no day for."""
    spans: list[Window] = []
    at = window.start
    for day in sorted(set.intersection(*(set(d.tolist()) for d in days.values()))):
        if at < day:
            spans.append(Window(start=at, end=day))
        at = day + DAY_MS
    return [*spans, Window(start=at, end=window.end)] if at < window.end else spans


def _rest(served: Window, days: Ints, minutes: Ints) -> list[Window]:
    """Return what is neither in days nor in minutes, in bounded spans."""
    starts = np.arange(served.start // MINUTE_MS * MINUTE_MS, served.end, MINUTE_MS, dtype=np.int64)
    known = np.isin(starts // DAY_MS * DAY_MS, days) | np.isin(starts, minutes)
    return _spans(starts[~known], MINUTE_MS, served)


def _spans(starts: Ints, length_ms: int, inside: Window) -> list[Window]:
    """Return adjacent steps of time as bounded spans, cut to what is inside of a window."""
    spans: list[Window] = []
    for start in starts.tolist():
        at, end = max(start, inside.start), min(start + length_ms, inside.end)
        if spans and spans[-1].end == at and end - spans[-1].start <= RAW_MS_MAX:
            spans[-1] = replace(spans[-1], end=end)
        else:
            spans.append(Window(start=at, end=end))
    return spans


def _with_intervals(reader: Reader, made: dict[str, Plan]) -> dict[str, Plan]:
    """Return plans in which intervals stand for raw rows where there are any."""
    spans = sorted({(span.start, span.end) for plan in made.values() for span in plan.raw})
    looked: list[Window] = []
    for start, end in spans:
        if looked and start <= looked[-1].end:
            looked[-1] = replace(looked[-1], end=max(end, looked[-1].end))
        else:
            looked.append(Window(start=start, end=end))
    # The newest: intervals are not kept for long.
    found: dict[str, list[int]] = {}
    for cluster, start in standing_intervals(reader, _aligned(looked[-SPANS_MAX:])):
        found.setdefault(cluster, []).append(start)
    return {
        cluster: _taking(plan, np.array(sorted(found.get(cluster, [])), np.int64))
        for cluster, plan in made.items()
    }


def _aligned(spans: Sequence[Window]) -> list[Window]:
    cut = [
        Window(
            start=-(-span.start // INTERVAL_MS) * INTERVAL_MS,
            end=span.end // INTERVAL_MS * INTERVAL_MS,
        )
        for span in spans
    ]
    return [span for span in cut if span.start < span.end]


def _taking(plan: Plan, intervals: Ints) -> Plan:
    """Return a plan with intervals in place of raw rows where they are known."""
    taken: list[int] = []
    raw: list[Window] = []
    for span in plan.raw:
        first = span.start // INTERVAL_MS * INTERVAL_MS
        starts = np.arange(first, span.end, INTERVAL_MS, dtype=np.int64)
        inside = (starts >= span.start) & (starts + INTERVAL_MS <= span.end)
        known = inside & np.isin(starts, intervals)
        taken += starts[known].tolist()
        raw += _spans(starts[~known], INTERVAL_MS, span)
    return replace(plan, intervals=np.array(taken, np.int64), raw=raw)


def _in_service(reader: Reader, window: Window) -> dict[str, Window]:
    """Return the part of a window in which each cluster can have had a slot in service."""
    table = reader.query(
        "SELECT cluster, min(from_unix_ms) AS first, "
        "max(if(to_unix_ms = 0, {end:Int64}, to_unix_ms)) AS last "
        "FROM slot FINAL GROUP BY cluster",
        {"end": window.end},
    )
    served = {}
    for cluster, first, last in zip(*table.to_pydict().values(), strict=True):
        start = max(window.start, first)
        served[cluster] = Window(start=start, end=max(start, min(window.end, last)))
    return served


def _written(reader: Reader, grain: str, span: Window) -> dict[str, _Written]:
    """Return what was written of a grain in a span, by cluster."""
    return _by_cluster(
        reader.query(
            "SELECT cluster, start_unix_ms, max(generation) AS generation FROM written "
            "WHERE grain = {grain:String} AND start_unix_ms >= {low:Int64} "
            "AND start_unix_ms < {high:Int64} "
            "GROUP BY cluster, start_unix_ms ORDER BY cluster, start_unix_ms",
            {"grain": grain, "low": span.start, "high": span.end},
        )
    )


def _by_cluster(table: Any) -> dict[str, _Written]:
    """Return (start, generation) by cluster, of a table with these columns, sorted."""
    clusters = np.array(table.column(0).to_pylist(), np.str_)
    starts, generations = (np.asarray(table.column(i).to_numpy(), np.int64) for i in (1, 2))
    names, first = np.unique(clusters, return_index=True)
    return {
        str(name): _Written(starts[a:b], generations[a:b])
        for name, a, b in zip(names, first, [*first[1:], len(starts)], strict=False)
    }


def _joined(parts: Sequence[_Written]) -> _Written:
    if not parts:
        return _NOTHING
    return _Written(
        np.concatenate([p.starts for p in parts]), np.concatenate([p.generations for p in parts])
    )

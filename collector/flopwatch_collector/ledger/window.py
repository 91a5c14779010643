"""Any window of time as a sheet: stored lines where they stand, raw evidence where they do not.

Whole minutes that are written and clean come from the lines; minutes that late data touched, and the
ragged edges of the window, are judged from raw rows. So an answer never depends on when it was asked for,
only on what is known. Over long windows, hours replace their minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Ints, Window
from flopwatch_collector.ledger.gather import gather
from flopwatch_collector.ledger.lines import LINE_INTS, LINE_SUMS, LINE_TEXTS
from flopwatch_collector.ledger.rollup import CHUNK_MINUTES, HOUR_MS, MINUTE_MS
from flopwatch_collector.ledger.sheet import Sheet, joined, sheet_of_lines, sheet_of_table
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.dirty import dirty_minutes
from flopwatch_collector.telemetry.schema import newest_lines
from flopwatch_proto.rows import INTERVAL_MS

LIVE_DELAY_MS: Final = 11_000
"""The newest boundary that is answered for: rows of it have had the time to arrive."""


def asked_window(now_unix_ms: int, length_ms: int, end_unix_ms: int | None = None) -> Window:
    """Return the window as used: half open, moved back to a multiple of the grain.

    The grain is the row interval up to an hour, minutes up to two days, hours above. Without an end it is
    the newest boundary that has had time to arrive.
    """
    grain = INTERVAL_MS
    if length_ms > HOUR_MS:
        grain = MINUTE_MS if length_ms <= 48 * HOUR_MS else HOUR_MS
    end = now_unix_ms - LIVE_DELAY_MS if end_unix_ms is None else end_unix_ms
    end = end // grain * grain
    return Window(start=(end - length_ms) // grain * grain, end=end)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Which parts of a window come from where; starts of minutes and hours, spans of raw rows."""

    minutes: list[int]
    hours: list[int]
    raw: list[Window]


def sheet_of_window(
    reader: Reader, cluster: str, window: Window, now_unix_ms: int, node: str | None = None
) -> Sheet:
    """Return the lines of a cluster, or of one of its nodes, over a window."""
    plan = _plan(reader, cluster, window)
    fine = node is not None
    sheets = []
    for table, starts in (
        ("line_hour" if fine else "fleet_hour", plan.hours),
        ("line_minute" if fine else "fleet_minute", plan.minutes),
    ):
        if starts:
            sheets.append(_stored(reader, cluster, table, starts, node))
    seats = None
    for span in reversed(plan.raw):
        # Spans that begin earlier have the seats of a later one: what begins after them is outside.
        evidence = gather(reader, cluster, span, node, seats)
        seats = evidence.seats
        sheets.append(sheet_of_lines(evidence.judge(span, now_unix_ms).without_slots()))
    return joined(sheets)


def _plan(reader: Reader, cluster: str, window: Window) -> _Plan:
    first = -(-window.start // MINUTE_MS) * MINUTE_MS
    last = window.end // MINUTE_MS * MINUTE_MS
    minutes, made = _written(reader, cluster, "fleet_minute", first - HOUR_MS, last)
    dirty = np.array([minute for _, minute in dirty_minutes(reader, cluster)], np.int64)
    standing = (minutes >= first) & ~np.isin(minutes, dirty)
    clean, made = minutes[standing], made[standing]
    hours = np.zeros(0, np.int64)
    if window.end - window.start > 2 * HOUR_MS:
        starts, generations = _written(reader, cluster, "fleet_hour", first - HOUR_MS, last)
        inside = (starts >= window.start) & (starts + HOUR_MS <= window.end)
        starts, generations = starts[inside], generations[inside]
        # An hour stands for its minutes where all 60 are clean and none was written after it.
        low = np.searchsorted(clean, starts)
        full = np.searchsorted(clean, starts + HOUR_MS) - low == HOUR_MS // MINUTE_MS
        low, starts, generations = low[full], starts[full], generations[full]
        newest = made[low[:, None] + np.arange(HOUR_MS // MINUTE_MS)].max(axis=1, initial=0)
        hours = starts[newest <= generations]
    in_hours = np.isin(clean // HOUR_MS * HOUR_MS, hours)
    return _Plan(
        minutes=clean[~in_hours].tolist(),
        hours=hours.tolist(),
        raw=_rest(_in_service(reader, cluster, window), clean),
    )


def _in_service(reader: Reader, cluster: str, window: Window) -> Window:
    """Return the part of a window in which the cluster can have had a slot in service."""
    table = reader.query(
        "SELECT count() AS n, min(from_unix_ms) AS first, "
        "max(if(to_unix_ms = 0, {end:Int64}, to_unix_ms)) AS last "
        "FROM slot FINAL WHERE cluster = {cluster:String}",
        {"cluster": cluster, "end": window.end},
    )
    record = table.to_pylist()[0]
    if not record["n"]:
        return Window(start=window.start, end=window.start)
    start = max(window.start, record["first"])
    return Window(start=start, end=max(start, min(window.end, record["last"])))


def _rest(window: Window, clean: Ints) -> list[Window]:
    """Return the spans of a window outside the clean minutes, in bounded pieces."""
    spans: list[Window] = []
    first = window.start // MINUTE_MS * MINUTE_MS
    minutes = np.arange(first, window.end, MINUTE_MS, dtype=np.int64)
    whole = (minutes >= window.start) & (minutes + MINUTE_MS <= window.end)
    for minute in minutes[~(whole & np.isin(minutes, clean))].tolist():
        at, end = max(minute, window.start), min(minute + MINUTE_MS, window.end)
        fits = spans and spans[-1].end == at and end - spans[-1].start <= CHUNK_MINUTES * MINUTE_MS
        spans.append(Window(start=spans.pop().start if fits else at, end=end))
    return spans


def _written(reader: Reader, cluster: str, grain: str, low: int, high: int) -> tuple[Ints, Ints]:
    """Return what was written, by time, and the generation of each."""
    table = reader.query(
        "SELECT start_unix_ms, max(generation) AS generation FROM written "
        "WHERE grain = {grain:String} AND cluster = {cluster:String} "
        "AND start_unix_ms >= {low:Int64} AND start_unix_ms < {high:Int64} "
        "GROUP BY start_unix_ms ORDER BY start_unix_ms",
        {"grain": grain, "cluster": cluster, "low": low, "high": high},
    )
    return (
        np.asarray(table["start_unix_ms"].to_numpy(), np.int64),
        np.asarray(table["generation"].to_numpy(), np.int64),
    )


def _stored(reader: Reader, cluster: str, table: str, starts: list[int], node: str | None) -> Sheet:
    keys = ["bucket", "rogue", *LINE_TEXTS]
    sums = [f"sum({n}) AS {n}" for n in (*LINE_INTS, *LINE_SUMS)]
    where = "cluster = {cluster:String} AND start_unix_ms IN {starts:Array(Int64)}"
    parameters: dict[str, Any] = {"cluster": cluster, "starts": starts}
    of_node = ""
    if node is not None:
        of_node, parameters["node"] = "AND node = {node:String} ", node
    return sheet_of_table(
        reader.query(
            f"SELECT {', '.join([*keys, *sums])} {newest_lines(table, where)} {of_node}"
            f"GROUP BY {', '.join(keys)}",
            parameters,
        )
    )

"""Any window of time as a sheet: stored lines where they stand, raw evidence where they do not.

Whole minutes that are written and clean come from the lines; minutes that late data touched, and the
ragged edges of the window, are judged from raw rows. So an answer never depends on when it was asked for,
only on what is known. Over long windows, hours replace their minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Window
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
    for span in plan.raw:
        evidence = gather(reader, cluster, span, node)
        sheets.append(sheet_of_lines(evidence.judge(span, now_unix_ms).without_slots()))
    return joined(sheets)


def _plan(reader: Reader, cluster: str, window: Window) -> _Plan:
    first = -(-window.start // MINUTE_MS) * MINUTE_MS
    last = window.end // MINUTE_MS * MINUTE_MS
    written = {
        grain: _written(reader, cluster, grain, first - HOUR_MS, last)
        for grain in ("fleet_minute", "fleet_hour")
    }
    dirty = {minute for _, minute in dirty_minutes(reader, cluster)}
    clean = {m for m in written["fleet_minute"] if first <= m < last} - dirty
    hours = [
        hour
        for hour, generation in written["fleet_hour"].items()
        if window.start <= hour
        and hour + HOUR_MS <= window.end
        and window.end - window.start > 2 * HOUR_MS
        and all(
            m in clean and written["fleet_minute"][m] <= generation
            for m in range(hour, hour + HOUR_MS, MINUTE_MS)
        )
    ]
    in_hours = {m for hour in hours for m in range(hour, hour + HOUR_MS, MINUTE_MS)}
    return _Plan(
        minutes=sorted(clean - in_hours),
        hours=sorted(hours),
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


def _rest(window: Window, clean: set[int]) -> list[Window]:
    """Return the spans of a window outside the clean minutes, in bounded pieces."""
    spans: list[Window] = []
    at = window.start
    while at < window.end:
        end = min(at // MINUTE_MS * MINUTE_MS + MINUTE_MS, window.end)
        if at not in clean or end - at < MINUTE_MS:
            fits = (
                spans and spans[-1].end == at and end - spans[-1].start <= CHUNK_MINUTES * MINUTE_MS
            )
            start = spans.pop().start if fits else at
            spans.append(Window(start=start, end=end))
        at = end
    return spans


def _written(reader: Reader, cluster: str, grain: str, low: int, high: int) -> dict[int, int]:
    table = reader.query(
        "SELECT start_unix_ms, max(generation) AS generation FROM written "
        "WHERE grain = {grain:String} AND cluster = {cluster:String} "
        "AND start_unix_ms >= {low:Int64} AND start_unix_ms < {high:Int64} GROUP BY start_unix_ms",
        {"grain": grain, "cluster": cluster, "low": low, "high": high},
    )
    starts = np.asarray(table["start_unix_ms"].to_numpy(), np.int64).tolist()
    return dict(zip(starts, table["generation"].to_pylist(), strict=True))


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

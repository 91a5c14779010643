"""When things are said to have happened: what is refused for its time, and which minutes it changes. Pure."""

from __future__ import annotations

from typing import Final

from flopwatch_collector.telemetry.dirty import MINUTE_MS
from flopwatch_collector.telemetry.schema import DAY_MS
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import PermanentError

LATE_MS_MAX: Final = 35 * DAY_MS
FUTURE_MS_MAX: Final = 10 * MINUTE_MS
UNIX_MS_MAX: Final = 4_102_444_800_000  # year 2100: what the engine can put into a partition
ROSTER_MINUTES_MAX: Final = 6
_TIMES: Final = (
    ("roster", "taken_unix_ms"),
    ("event", "time_unix_ms"),
    ("probe", "start_unix_ms"),
)
_RAW: Final = frozenset({"interval", "host", "roster"})
"""Tables that are kept only as long as raw rows."""


def late_ms_max(raw_kept_ms: int) -> int:
    """Return how late a row may be where raw rows are kept for so long.

    The rows beside it must still be there, or its minute would be written anew without them. They lie on
    its own day or the one before, and days go whole: so one day less than raw rows are kept.
    """
    return min(LATE_MS_MAX, raw_kept_ms - DAY_MS)


def check_times(tables: dict[str, Columns], now_unix_ms: int, oldest_unix_ms: int) -> None:
    for table, column in _TIMES:
        if table in tables:
            times = tables[table][column]
            check_starts(table, min(times), max(times), now_unix_ms, oldest_unix_ms)
    if "slot" in tables:
        slot = tables["slot"]
        if min(slot["from_unix_ms"]) <= 0 or max(slot["from_unix_ms"]) > UNIX_MS_MAX:
            raise PermanentError("bad_rows: a slot whose state begins at no sensible time")


def check_starts(table: str, first: int, last: int, now_unix_ms: int, oldest_unix_ms: int) -> None:
    if last > now_unix_ms + FUTURE_MS_MAX:
        late_ms = last - now_unix_ms
        raise PermanentError(f"future: {table} rows lie {late_ms} ms ahead of this clock")
    if first <= 0:
        raise PermanentError(f"bad_rows: {table} rows without a time")
    if table in _RAW and first < oldest_unix_ms:
        days = (now_unix_ms - oldest_unix_ms) / DAY_MS
        raise PermanentError(f"too_old: {table} rows older than {days:g} days")


def minutes_said(tables: dict[str, Columns], oldest_unix_ms: int) -> frozenset[int]:
    """Return the minutes whose lines change beside those of rows: those that a roster speaks for.

    A slot that enters or leaves service touches the minute in which it does; whoever makes lines knows
    how far that reaches. What was written before the oldest moment stands: its rows may be gone.
    """
    spans: set[tuple[int, int]] = set()
    if "roster" in tables:
        roster = tables["roster"]
        pairs = set(zip(roster["taken_unix_ms"], roster["valid_until_unix_ms"], strict=True))
        longest = (ROSTER_MINUTES_MAX - 1) * MINUTE_MS
        spans |= {(start, min(end, start + longest)) for start, end in pairs}
    if "slot" in tables:
        slot = tables["slot"]
        edges = (*slot["from_unix_ms"], *(end for end in slot["to_unix_ms"] if end > 0))
        spans |= {(edge, edge + 1) for edge in edges if edge >= oldest_unix_ms}
    return frozenset(
        minute
        for start, end in spans
        for minute in range(start - start % MINUTE_MS, max(end, start + 1), MINUTE_MS)
    )

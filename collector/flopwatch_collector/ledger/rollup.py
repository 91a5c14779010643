"""Rollups: minutes from raw rows, hours from minutes, days from hours, whenever late data touched them.

A minute is due when it is dirty, when it ended and was never written, or when it holds provisional time
that is now old enough to be judged. It is recomputed from complete raw rows only and written whole under
a new generation; one of the last hours is made of its intervals, which are written with it (`intervals`).
An hour is due when one of its minutes was rewritten after it; a day is due when all its hours are there, and
one of them was rewritten after it.

One collector runs this at a time: where several share a store, the holder of a lease. The lease's fence
leads the generation, so that what a holder wrote that had lost it, and did not know, never stands; and such
a one clears no marks. A run is bounded: at most ``CHUNK_MINUTES`` of one cluster, fewer of a large one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from flopwatch_collector.ledger.absence import MISSING_AFTER_MS
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import Seats, Window
from flopwatch_collector.ledger.gather import gather
from flopwatch_collector.ledger.intervals import KNOWN_MS, ROWS_MAX, Declared, Intervals, judged
from flopwatch_collector.ledger.lines import LINE_INTS, LINE_MAXIMA, LINE_SUMS, LINE_TEXTS
from flopwatch_collector.ledger.stored import Columns, added, columns_of, one_after_the_other
from flopwatch_collector.telemetry.dirty import clear, dirty_minutes
from flopwatch_collector.telemetry.schema import DAY_MS, newest_lines
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import RetryableError
from flopwatch_proto.rows import INTERVAL_MS, Bucket

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
SETTLE_MS: Final = 15_000
"""How long after its end a minute waits for rows on their way before it is first written."""
CHUNK_MINUTES: Final = 10
CHUNK_DAYS: Final = 10
INTERVALS_OF_MS: Final = 2 * HOUR_MS
"""Minutes that are no older are written with their intervals: windows of up to an hour begin at one."""
_REVISIT_MS: Final = MISSING_AFTER_MS + MINUTE_MS


@dataclass(slots=True)
class Rollup:
    """Keeps all tiers in step with raw rows. Holds only what it may forget on a restart.

    Attributes:
        fence: of the lease under which it runs; 0: it needs none.
        held: whether the lease is still held.
        intervals: the newest ones, which somebody else runs beside this.
    """

    store: TelemetryStore
    fence: int = 0
    held: Callable[[], bool] = lambda: True
    intervals: Intervals = field(init=False)
    _provisional: dict[tuple[str, int], int] = field(default_factory=dict)
    _stale_hours: set[tuple[str, int]] = field(default_factory=set)
    _stale_days: set[tuple[str, int]] = field(default_factory=set)
    _loaded: bool = False
    _cut: set[tuple[str, int]] = field(default_factory=set)
    _seats: dict[str, tuple[Seats, dict[tuple[str, str, int], int]]] = field(default_factory=dict)
    _generation: int = 0

    def __post_init__(self) -> None:
        self.intervals = Intervals(self.store, self.fence)

    def run(self, now_unix_ms: int) -> int:
        """Write what is due of every cluster, a chunk of each; return how many minutes were written."""
        if not self._loaded:
            self._load(now_unix_ms)
        self._generation = self.intervals.next_generation(now_unix_ms)
        dirty: dict[str, set[int]] = {}
        for cluster, minute in dirty_minutes(self.store):
            dirty.setdefault(cluster, set()).add(minute)
        written = 0
        for cluster, declared in self.intervals.declared().items():
            due = self._due(cluster, declared.seats, dirty.get(cluster, set()), now_unix_ms)
            most = ROWS_MAX * INTERVAL_MS // (MINUTE_MS * len(declared.seats.key))
            for chunk in _chunks(sorted(due), min(max(most, 1), CHUNK_MINUTES))[:1]:
                late = dirty.get(cluster, set()).intersection(chunk)
                neighbours = self._silent_neighbours(cluster, late) - set(chunk)
                written += self._write_minutes(cluster, declared, chunk, now_unix_ms)
                self._cut -= {(cluster, m) for m in chunk}
                self._cut |= {(cluster, m) for m in neighbours}
        self._write_hours(now_unix_ms)
        self._write_days(now_unix_ms)
        return written

    # ---- what is due

    def _load(self, now_unix_ms: int) -> None:
        """Remember, after a restart, the minutes that were provisional and the hours behind them."""
        since = now_unix_ms - DAY_MS
        recent = newest_lines("fleet_minute", "start_unix_ms > {since:Int64}")
        table = self.store.query(
            f"SELECT DISTINCT cluster, start_unix_ms {recent} AND provisional_ms > 0",
            {"since": since},
        )
        for record in table.to_pylist():
            minute = record["start_unix_ms"]
            self._provisional[record["cluster"], minute] = minute + _REVISIT_MS
        late = self.store.oldest_unix_ms(now_unix_ms)
        self._stale_hours |= self._outdated("fleet_hour", HOUR_MS, "fleet_minute", late)
        self._stale_days |= self._outdated("fleet_day", DAY_MS, "fleet_hour", 0)
        self._loaded = True

    def _outdated(self, grain: str, length_ms: int, of: str, since: int) -> set[tuple[str, int]]:
        """Return what of a grain was not written after everything that it is made of."""
        parts = self.store.query(
            "SELECT cluster, intDiv(start_unix_ms, {length:Int64}) * {length:Int64} AS start, "
            "max(generation) AS newest FROM written "
            "WHERE grain = {of:String} AND start_unix_ms > {since:Int64} GROUP BY cluster, start",
            {"of": of, "length": length_ms, "since": since},
        )
        done = self.store.query(
            "SELECT cluster, start_unix_ms, max(generation) AS newest FROM written "
            "WHERE grain = {grain:String} GROUP BY cluster, start_unix_ms",
            {"grain": grain},
        )
        known = {(c, t): g for c, t, g in zip(*done.to_pydict().values(), strict=True)}
        return {
            (cluster, start)
            for cluster, start, newest in zip(*parts.to_pydict().values(), strict=True)
            if known.get((cluster, start), -1) < newest
        }

    def _due(self, cluster: str, seats: Seats, dirty: set[int], now_unix_ms: int) -> set[int]:
        settled = now_unix_ms - SETTLE_MS
        oldest = self.store.oldest_unix_ms(now_unix_ms)
        self._follow_seats(cluster, seats, settled)
        first = max(int(seats.start.min()), oldest) // MINUTE_MS * MINUTE_MS
        last = min(int(seats.end.max()), settled)
        table = self.store.query(
            "SELECT DISTINCT start_unix_ms FROM written WHERE grain = 'fleet_minute' "
            "AND cluster = {cluster:String} AND start_unix_ms >= {first:Int64}",
            {"cluster": cluster, "first": first},
        )
        written = np.asarray(table["start_unix_ms"].to_numpy(), np.int64)
        unwritten = set(np.setdiff1d(np.arange(first, last, MINUTE_MS), written).tolist())
        revisit = {
            m for (c, m), at in self._provisional.items() if c == cluster and at <= now_unix_ms
        }
        cut = {m for c, m in self._cut if c == cluster}
        due = unwritten | revisit | dirty | cut
        # What is dirty has all its rows, however old it is: they stay until it is written.
        return {m for m in due if (first <= m or m in dirty) and m + MINUTE_MS <= settled}

    def _follow_seats(self, cluster: str, seats: Seats, settled_unix_ms: int) -> None:
        """Make minutes due again in which slots turn out to have been in service, or not to have been."""
        known, before = self._seats.get(cluster, (None, None))
        if seats is known:
            return
        now = {
            (*seats.names[k], int(start)): int(end)
            for k, start, end in zip(seats.key, seats.start, seats.end, strict=True)
        }
        self._seats[cluster] = seats, now
        before = now if before is None else before
        # Of seats that are new or gone all of their time changed, of others what lies between the ends.
        ends = before | now
        changed = [(seat[-1], ends[seat]) for seat in before.keys() ^ now.keys()]
        changed += [
            (min(before[seat], now[seat]), max(before[seat], now[seat]))
            for seat in before.keys() & now.keys()
            if before[seat] != now[seat]
        ]
        if changed:
            first = min(start for start, _ in changed) // MINUTE_MS * MINUTE_MS
            last = min(max(end for _, end in changed), settled_unix_ms)
            self._cut |= {(cluster, m) for m in range(first, last, MINUTE_MS)}

    def _silent_neighbours(self, cluster: str, late: set[int]) -> set[int]:
        """Return written minutes around late data whose silence the late data may have cut in two."""
        if not late:
            return set()
        around = "cluster = {cluster:String} AND start_unix_ms BETWEEN {low:Int64} AND {high:Int64}"
        table = self.store.query(
            f"SELECT DISTINCT start_unix_ms {newest_lines('fleet_minute', around)} "
            "AND bucket IN {silent:Array(UInt8)}",
            {
                "cluster": cluster,
                "low": min(late) - MISSING_AFTER_MS,
                "high": max(late) + MISSING_AFTER_MS,
                "silent": [int(Bucket.UNSEEN), int(Bucket.MISSING)],
            },
        )
        marks = np.array(sorted(late), np.int64)
        silent = np.asarray(table["start_unix_ms"].to_numpy(), np.int64)
        near = [m for m in silent if np.abs(marks - m).min() <= MISSING_AFTER_MS]
        return {int(m) for m in near}

    # ---- writing

    def _write_minutes(
        self, cluster: str, declared: Declared, minutes: list[int], now_unix_ms: int
    ) -> int:
        began = self.store.marks.begin(now_unix_ms)
        known = self.store.marks.known_until(now_unix_ms)
        generation = self.intervals.next_generation(now_unix_ms)
        made: list[tuple[int, Lines]] = []
        recent: list[tuple[int, Lines]] = []
        if minutes[0] >= now_unix_ms - INTERVALS_OF_MS:
            for minute in minutes:
                starts = range(minute, minute + MINUTE_MS, INTERVAL_MS)
                parts = list(judged(self.store, cluster, starts, declared, now_unix_ms))
                made.append((minute, added([lines for _, lines in parts])))
                recent += [(at, lines.without_slots()) for at, lines in parts]
        else:
            span = Window(start=minutes[0], end=minutes[-1] + MINUTE_MS)
            evidence = gather(self.store, cluster, span)
            for minute in minutes:
                window = Window(start=minute, end=minute + MINUTE_MS)
                made.append((minute, evidence.within(window).judge(window, now_unix_ms)))
        simulated = declared.seats.simulated
        recent = [of for of in recent if of[0] + INTERVAL_MS + KNOWN_MS <= known]
        if recent:
            self.intervals.write(cluster, recent, simulated, generation, known)
        for table, fine in (("line_minute", True), ("fleet_minute", False)):
            columns = [
                (m, columns_of(lines if fine else lines.without_slots(), fine, simulated))
                for m, lines in made
            ]
            self._append(table, cluster, columns, now_unix_ms)
        if not self.held():
            raise RetryableError("the lease of the rollup is not held any more")
        clear(self.store, cluster, minutes, began)
        for minute, lines in made:
            self._provisional.pop((cluster, minute), None)
            if lines.ints["provisional_ms"].any():
                self._provisional[cluster, minute] = minute + _REVISIT_MS
            self._stale_hours.add((cluster, minute // HOUR_MS * HOUR_MS))
        return len(minutes)

    def _write_hours(self, now_unix_ms: int) -> None:
        over = [h for h in self._stale_hours if h[1] + HOUR_MS + SETTLE_MS <= now_unix_ms]
        for cluster, hour in sorted(over)[:CHUNK_MINUTES]:
            for minutes, hours in (("line_minute", "line_hour"), ("fleet_minute", "fleet_hour")):
                span = Window(start=hour, end=hour + HOUR_MS)
                self._add_up(cluster, span, minutes, hours, now_unix_ms)
            self._stale_hours.discard((cluster, hour))
            self._stale_days.add((cluster, hour // DAY_MS * DAY_MS))

    def _write_days(self, now_unix_ms: int) -> None:
        """Write days that are over, and whole: readers rely on it."""
        waiting = {(cluster, hour // DAY_MS * DAY_MS) for cluster, hour in self._stale_hours}
        over = {d for d in self._stale_days if d[1] + DAY_MS + SETTLE_MS <= now_unix_ms}
        for cluster, day in sorted(over - waiting)[:CHUNK_DAYS]:
            span = Window(start=day, end=day + DAY_MS)
            if self._is_whole(cluster, span):
                self._add_up(cluster, span, "fleet_hour", "fleet_day", now_unix_ms)
            # What it lacks makes it due again when it is written.
            self._stale_days.discard((cluster, day))

    def _is_whole(self, cluster: str, span: Window) -> bool:
        """Return whether every hour and minute of a span is written."""
        table = self.store.query(
            "SELECT grain, uniqExact(start_unix_ms) AS n FROM written "
            "WHERE grain IN ('fleet_hour', 'fleet_minute') AND cluster = {cluster:String} "
            "AND start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64} GROUP BY grain",
            {"cluster": cluster, "start": span.start, "end": span.end},
        )
        length = span.end - span.start
        written = dict(zip(*table.to_pydict().values(), strict=True))
        return written == {"fleet_hour": length // HOUR_MS, "fleet_minute": length // MINUTE_MS}

    def _add_up(self, cluster: str, span: Window, of: str, into: str, now_unix_ms: int) -> None:
        """Write the lines of a longer grain: the sums of those of the shorter one."""
        place = ["node", "slot"] if into == "line_hour" else []
        keys = [*place, "bucket", "rogue", *LINE_TEXTS, "simulated"]
        sums = [f"sum({n}) AS {n}" for n in (*LINE_INTS, *LINE_SUMS)]
        tops = [f"max({n}) AS {n}" for n in LINE_MAXIMA]
        where = "cluster = {cluster:String} AND start_unix_ms >= {low:Int64} AND start_unix_ms < {high:Int64}"
        table = self.store.query(
            f"SELECT {', '.join([*keys, *sums, *tops])} {newest_lines(of, where)} "
            f"GROUP BY {', '.join(keys)}",
            {"cluster": cluster, "low": span.start, "high": span.end},
        )
        columns = {n: table[n].combine_chunks() for n in table.column_names}
        self._append(into, cluster, [(span.start, columns)], now_unix_ms)

    def _append(
        self, table: str, cluster: str, made: list[tuple[int, Columns]], now_unix_ms: int
    ) -> None:
        self.store.append_lines(
            table,
            one_after_the_other(made),
            cluster=cluster,
            starts_unix_ms=[start for start, _ in made],
            generation=self._generation,
            stored_unix_ms=now_unix_ms,
        )


def _chunks(minutes: list[int], most: int) -> list[list[int]]:
    """Return runs of minutes, each within a span of as many minutes as one chunk may have."""
    chunks: list[list[int]] = []
    for minute in minutes:
        if chunks and minute - chunks[-1][0] < most * MINUTE_MS:
            chunks[-1].append(minute)
        else:
            chunks.append([minute])
    return chunks

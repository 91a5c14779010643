"""Lines by interval: the present and the ragged edges of windows, of clusters, without slots.

An interval is judged when its rows have had time to come, once, and again when some came late. It carries the
time by which all rows were in it (``stored_unix_ms``); what was stored after that is late (`late_intervals`),
and readers then judge its raw rows. A run looks only at the last minutes: older intervals are written with
their minute, which is made of them, and are kept for hours.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import ROSTER_HOLDS_MS, Seats, Window
from flopwatch_collector.ledger.gather import ROW_MS_MAX, gather, seats_in_service
from flopwatch_collector.ledger.stored import columns_of, one_after_the_other
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.rows import INTERVAL_MS

INTERVAL_SETTLE_MS: Final = 11_000
"""How long after its end an interval waits for rows on their way before it is first written."""
KNOWN_MS: Final = 5_000
"""How long after its end all rows that are stored must be known to be in it."""
RECENT_MS: Final = 180_000
WRITTEN_MAX: Final = 6
"""Intervals of a cluster that one run writes: the newest; what waits is written with its minute."""
FENCE_SHIFT: Final = 42
"""Generations are unix ms, which need 42 bits until the year 2109."""
ROWS_MAX: Final = 300_000
"""Rows that are judged at a time, where an interval has no more."""

Known = dict[tuple[str, int], int]
"""(cluster, start of an interval) → time by which all stored rows are in its lines."""


@dataclass(slots=True)
class Intervals:
    """Writes intervals. Safe to use from two threads: its own, and that of the minutes.

    Attributes:
        fence: of the lease under which it runs; 0: it needs none.
    """

    store: TelemetryStore
    fence: int = 0
    _generation: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _declared: dict[str, Declared] = field(default_factory=dict)

    def run(self, now_unix_ms: int) -> int:
        """Write what is due of the last minutes of every cluster; return how many intervals were written.

        Raises:
            RetryableError: the store failed; the next run goes on.
        """
        known = self.store.marks.known_until(now_unix_ms)
        last = min(known - KNOWN_MS, now_unix_ms - INTERVAL_SETTLE_MS) // INTERVAL_MS * INTERVAL_MS
        span = Window(start=last - RECENT_MS, end=last)
        standing = standing_intervals(self.store, [span])
        written = 0
        for cluster, declared in self.declared().items():
            seats = declared.seats
            due = [
                start
                for start in range(span.end - INTERVAL_MS, span.start - 1, -INTERVAL_MS)
                if (cluster, start) not in standing and _serves(seats, start)
            ]
            for run in _runs(sorted(due[:WRITTEN_MAX])):
                generation = self.next_generation(now_unix_ms)
                made = list(judged(self.store, cluster, run, declared, now_unix_ms))
                coarse = [(start, lines.without_slots()) for start, lines in made]
                self.write(cluster, coarse, seats.simulated, generation, known)
                written += len(made)
        return written

    def next_generation(self, now_unix_ms: int) -> int:
        """Return a generation that nobody else writes under; ask for it before rows are read."""
        with self._lock:
            self._generation = max((self.fence << FENCE_SHIFT) + now_unix_ms, self._generation + 1)
            return self._generation

    def write(
        self,
        cluster: str,
        made: Sequence[tuple[int, Lines]],
        simulated: bool,
        generation: int,
        known_unix_ms: int,
    ) -> None:
        """Write the lines of intervals, without slots, in one insert; those of a lost lease do not stand.

        Raises:
            RetryableError: the store failed.
        """
        block = one_after_the_other([(t, columns_of(ls, False, simulated)) for t, ls in made])
        constant = {
            "cluster": cluster,
            "generation": generation,
            "stored_unix_ms": known_unix_ms,
        }
        count = len(block["start_unix_ms"])
        self.store.append("fleet_interval", block | {n: [v] * count for n, v in constant.items()})

    def declared(self) -> dict[str, Declared]:
        """Return what is declared of every cluster with seats, read anew only where a declaration came."""
        stamps = self.store.query(
            "SELECT cluster, count() AS n, max(stored_unix_ms) AS stored, "
            "max(from_unix_ms) AS newest FROM slot GROUP BY cluster ORDER BY cluster"
        )
        for cluster, *stamp in zip(*stamps.to_pydict().values(), strict=True):
            known = self._declared.get(cluster)
            if known is None or known.stamp != tuple(stamp):
                seats = seats_in_service(self.store, cluster)
                self._declared[cluster] = Declared(tuple(stamp), seats, newest_unix_ms=stamp[2])
        return {c: known for c, known in list(self._declared.items()) if len(known.seats.key)}


@dataclass(frozen=True, slots=True)
class Declared:
    """The seats of a cluster, and when the newest declaration begins: they are those of windows after it."""

    stamp: tuple[int, ...]
    seats: Seats
    newest_unix_ms: int

    def of(self, window: Window) -> Seats | None:
        """Return the seats for a window; None where they are to be read."""
        return self.seats if self.newest_unix_ms < window.end else None


def judged(
    reader: Reader, cluster: str, starts: Sequence[int], declared: Declared, now_unix_ms: int
) -> Iterator[tuple[int, Lines]]:
    """Yield the lines of adjacent intervals, with slots; so many rows at a time as memory allows."""
    at_once = max(1, ROWS_MAX // max(len(declared.seats.key), 1))
    for i in range(0, len(starts), at_once):
        part = starts[i : i + at_once]
        span = Window(start=part[0], end=part[-1] + INTERVAL_MS)
        evidence = gather(reader, cluster, span, seats=declared.of(span))
        for start in part:
            window = Window(start=start, end=start + INTERVAL_MS)
            yield start, evidence.within(window).judge(window, now_unix_ms)


def standing_intervals(reader: Reader, spans: Sequence[Window]) -> Known:
    """Return the intervals in some spans whose lines hold every row that is stored, of all clusters."""
    written: Known = {}
    for span in spans:
        table = reader.query(
            "SELECT cluster, start_unix_ms, argMax(stored_unix_ms, generation) AS known "
            "FROM fleet_interval WHERE start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64} "
            "GROUP BY cluster, start_unix_ms",
            {"start": span.start, "end": span.end},
        ).to_pydict()
        here: Known = {
            (cluster, start): known for cluster, start, known in zip(*table.values(), strict=True)
        }
        if here:
            starts = [start for _, start in here]
            there = Window(start=min(starts), end=max(starts) + INTERVAL_MS)
            for late in late_intervals(reader, there, here):
                here.pop(late, None)
        written |= here
    return written


def late_intervals(reader: Reader, span: Window, known: Known) -> set[tuple[str, int]]:
    """Return intervals of a span for which rows or rosters were stored that may not be in their lines."""
    lead = ROW_MS_MAX // INTERVAL_MS
    first = span.start - ROW_MS_MAX
    least = np.full((span.end - first) // INTERVAL_MS, 2**62, np.int64)
    for (_, start), until in known.items():
        # A row may reach from a minute before: what is stored by then is in every interval it reaches.
        place = (start - first) // INTERVAL_MS
        np.minimum.at(least, np.arange(place - lead, place + 1), until)
    rows = reader.query(
        "SELECT cluster, start_unix_ms, max(start_unix_ms + duration_ms) AS end_unix_ms, "
        "max(stored_unix_ms) AS stored FROM interval "
        "WHERE start_unix_ms > {first:Int64} AND start_unix_ms < {end:Int64} AND stored_unix_ms > "
        "{known:Array(Int64)}[intDiv(start_unix_ms - {first:Int64}, {interval:Int64}) + 1] "
        "GROUP BY cluster, start_unix_ms",
        {"first": first, "end": span.end, "known": least.tolist(), "interval": INTERVAL_MS},
    )
    rosters = reader.query(
        "SELECT cluster, taken_unix_ms AS start_unix_ms, "
        "taken_unix_ms + {holds:Int64} AS end_unix_ms, max(stored_unix_ms) AS stored FROM roster "
        "WHERE node = '' AND taken_unix_ms > {first:Int64} AND taken_unix_ms < {end:Int64} "
        "AND stored_unix_ms > taken_unix_ms + {known:Int64} GROUP BY cluster, taken_unix_ms",
        {
            "first": span.start - ROSTER_HOLDS_MS,
            "end": span.end,
            "holds": ROSTER_HOLDS_MS,
            "known": KNOWN_MS,
        },
    )
    late = set()
    for table in (rows, rosters):
        for cluster, start, end, stored in zip(*table.to_pydict().values(), strict=True):
            begin = max(start // INTERVAL_MS * INTERVAL_MS, span.start)
            for at in range(begin, min(end, span.end), INTERVAL_MS):
                if known.get((cluster, at), stored) < stored:
                    late.add((cluster, at))
    return late


def _serves(seats: Seats, start: int) -> bool:
    """Return whether a slot is in service at some time of an interval."""
    return bool(((seats.start < start + INTERVAL_MS) & (seats.end > start)).any())


def _runs(starts: Sequence[int]) -> list[list[int]]:
    """Return adjacent intervals together."""
    runs: list[list[int]] = []
    for start in starts:
        if runs and runs[-1][-1] + INTERVAL_MS == start:
            runs[-1].append(start)
        else:
            runs.append([start])
    return runs


def seconds_to_next(now_unix_ms: int) -> float:
    """Return how long until the next interval has had time to come."""
    return (INTERVAL_MS - (now_unix_ms - INTERVAL_SETTLE_MS) % INTERVAL_MS) / 1000

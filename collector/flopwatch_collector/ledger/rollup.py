"""Rollups: minutes from raw rows, hours from minutes, whenever late data touched them.

A minute is due when it is dirty, when it ended and was never written, or when it holds provisional time
that is now old enough to be judged. It is recomputed from complete raw rows only and written whole under
a new generation. An hour is due when one of its minutes was rewritten after it.

One collector runs this at a time: where several share a store, the holder of a lease. The lease's fence
leads the generation, so that what a holder wrote that had lost it, and did not know, never stands; and such
a one clears no marks. A run is bounded: at most ``CHUNK_MINUTES`` of one cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from flopwatch_collector.ledger.absence import MISSING_AFTER_MS
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import Seats, Window
from flopwatch_collector.ledger.gather import Evidence, gather, seats_in_service
from flopwatch_collector.ledger.lines import LINE_INTS, LINE_MAXIMA, LINE_SUMS, LINE_TEXTS
from flopwatch_collector.telemetry.dirty import clear, dirty_minutes
from flopwatch_collector.telemetry.schema import DAY_MS, RAW_KEPT_DAYS, newest_lines
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import RetryableError
from flopwatch_proto.rows import Bucket

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
SETTLE_MS: Final = 15_000
"""How long after its end a minute waits for rows on their way before it is first written."""
CHUNK_MINUTES: Final = 10
FENCE_SHIFT: Final = 42
"""Generations are unix ms, which need 42 bits until the year 2109."""
Columns = dict[str, pa.Array]
_REVISIT_MS: Final = MISSING_AFTER_MS + MINUTE_MS


@dataclass(slots=True)
class Rollup:
    """Keeps minutes and hours in step with raw rows. Holds only what it may forget on a restart.

    Attributes:
        fence: of the lease under which it runs; 0: it needs none.
        held: whether the lease is still held.
    """

    store: TelemetryStore
    fence: int = 0
    held: Callable[[], bool] = lambda: True
    _provisional: dict[tuple[str, int], int] = field(default_factory=dict)
    _stale_hours: set[tuple[str, int]] = field(default_factory=set)
    _loaded: bool = False
    _cut: set[tuple[str, int]] = field(default_factory=set)
    _known: dict[str, tuple[tuple[int, int], Seats]] = field(default_factory=dict)
    _seats: dict[str, dict[tuple[str, str, int], int]] = field(default_factory=dict)
    _generation: int = 0

    def run(self, now_unix_ms: int) -> int:
        """Write what is due of every cluster, a chunk of each; return how many minutes were written."""
        if not self._loaded:
            self._load(now_unix_ms)
        generation = (self.fence << FENCE_SHIFT) + now_unix_ms
        self._generation = max(generation, self._generation + 1)
        dirty: dict[str, set[int]] = {}
        for cluster, minute in dirty_minutes(self.store):
            dirty.setdefault(cluster, set()).add(minute)
        written = 0
        for cluster in self._clusters():
            due = self._due(cluster, dirty.get(cluster, set()), now_unix_ms)
            for chunk in _chunks(sorted(due))[:1]:
                late = dirty.get(cluster, set()).intersection(chunk)
                neighbours = self._silent_neighbours(cluster, late) - set(chunk)
                written += self._write_minutes(cluster, chunk, now_unix_ms)
                self._cut -= {(cluster, m) for m in chunk}
                self._cut |= {(cluster, m) for m in neighbours}
        self._write_hours(now_unix_ms)
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
        hours = self.store.query(
            "SELECT cluster, intDiv(start_unix_ms, 3600000) * 3600000 AS hour, max(generation) AS newest "
            "FROM written FINAL WHERE grain = 'fleet_minute' AND start_unix_ms > {since:Int64} "
            "GROUP BY cluster, hour",
            {"since": now_unix_ms - RAW_KEPT_DAYS * DAY_MS},
        )
        done = self.store.query(
            "SELECT cluster, start_unix_ms, generation FROM written FINAL WHERE grain = 'fleet_hour'",
            {},
        )
        known = {(r["cluster"], r["start_unix_ms"]): r["generation"] for r in done.to_pylist()}
        for record in hours.to_pylist():
            if known.get((record["cluster"], record["hour"]), -1) <= record["newest"]:
                self._stale_hours.add((record["cluster"], record["hour"]))
        self._loaded = True

    def _clusters(self) -> list[str]:
        table = self.store.query("SELECT DISTINCT cluster FROM slot ORDER BY cluster", {})
        return [str(c) for c in table["cluster"].to_pylist()]

    def _due(self, cluster: str, dirty: set[int], now_unix_ms: int) -> set[int]:
        settled = now_unix_ms - SETTLE_MS
        oldest = now_unix_ms - RAW_KEPT_DAYS * DAY_MS
        seats = self._seats_of(cluster)
        if not len(seats.key):
            return set()
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

    def _seats_of(self, cluster: str) -> Seats:
        """Return the cluster's seats, made anew only when a declaration came."""
        newest = self.store.query(
            "SELECT count() AS n, max(stored_unix_ms) AS t FROM slot WHERE cluster = {cluster:String}",
            {"cluster": cluster},
        ).to_pylist()[0]
        stamp = (newest["n"], newest["t"])
        if cluster not in self._known or self._known[cluster][0] != stamp:
            self._known[cluster] = (stamp, seats_in_service(self.store, cluster))
        return self._known[cluster][1]

    def _follow_seats(self, cluster: str, seats: Seats, settled_unix_ms: int) -> None:
        """Make minutes due again in which slots turn out to have been in service, or not to have been."""
        now = {
            (*seats.names[k], int(start)): int(end)
            for k, start, end in zip(seats.key, seats.start, seats.end, strict=True)
        }
        before = self._seats.get(cluster, now)
        self._seats[cluster] = now
        changed = [start for *_, start in before.keys() ^ now.keys()]
        changed += [
            min(before[seat], now[seat])
            for seat in before.keys() & now.keys()
            if before[seat] != now[seat]
        ]
        if changed and min(changed) < settled_unix_ms:
            first = min(changed) // MINUTE_MS * MINUTE_MS
            self._cut |= {(cluster, m) for m in range(first, settled_unix_ms, MINUTE_MS)}

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

    def _write_minutes(self, cluster: str, minutes: list[int], now_unix_ms: int) -> int:
        span = Window(start=minutes[0], end=minutes[-1] + MINUTE_MS)
        began = self.store.marks.begin(now_unix_ms)
        evidence = gather(self.store, cluster, span)
        made = [(m, self._judge(evidence, m, now_unix_ms)) for m in minutes]
        for table, fine in (("line_minute", True), ("fleet_minute", False)):
            columns = [
                (
                    m,
                    _columns(
                        lines if fine else lines.without_slots(), fine, evidence.seats.simulated
                    ),
                )
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

    def _judge(self, evidence: Evidence, minute: int, now_unix_ms: int) -> Lines:
        window = Window(start=minute, end=minute + MINUTE_MS)
        return evidence.within(window).judge(window, now_unix_ms)

    def _write_hours(self, now_unix_ms: int) -> None:
        over = [h for h in self._stale_hours if h[1] + HOUR_MS + SETTLE_MS <= now_unix_ms]
        for cluster, hour in sorted(over)[:CHUNK_MINUTES]:
            for minute_table, hour_table in (
                ("line_minute", "line_hour"),
                ("fleet_minute", "fleet_hour"),
            ):
                self._write_hour(cluster, hour, minute_table, hour_table, now_unix_ms)
            self._stale_hours.discard((cluster, hour))

    def _write_hour(
        self, cluster: str, hour: int, minutes: str, hours: str, now_unix_ms: int
    ) -> None:
        place = ["node", "slot"] if hours == "line_hour" else []
        keys = [*place, "bucket", "rogue", *LINE_TEXTS, "simulated"]
        sums = [f"sum({n}) AS {n}" for n in (*LINE_INTS, *LINE_SUMS)]
        tops = [f"max({n}) AS {n}" for n in LINE_MAXIMA]
        where = "cluster = {cluster:String} AND start_unix_ms >= {low:Int64} AND start_unix_ms < {high:Int64}"
        table = self.store.query(
            f"SELECT {', '.join([*keys, *sums, *tops])} {newest_lines(minutes, where)} "
            f"GROUP BY {', '.join(keys)}",
            {"cluster": cluster, "low": hour, "high": hour + HOUR_MS},
        )
        columns = {n: table[n].combine_chunks() for n in table.column_names}
        self._append(hours, cluster, [(hour, columns)], now_unix_ms)

    def _append(
        self, table: str, cluster: str, made: list[tuple[int, Columns]], now_unix_ms: int
    ) -> None:
        counts = [len(columns["bucket"]) for _, columns in made]
        joined: dict[str, Any] = {
            name: pa.concat_arrays([columns[name] for _, columns in made]) for name in made[0][1]
        }
        joined["start_unix_ms"] = np.repeat([start for start, _ in made], counts).tolist()
        self.store.append_lines(
            table,
            joined,
            cluster=cluster,
            starts_unix_ms=[start for start, _ in made],
            generation=self._generation,
            stored_unix_ms=now_unix_ms,
        )


def _columns(lines: Lines, with_slots: bool, simulated: bool) -> Columns:
    columns: Columns = {}
    if with_slots:
        for i, name in enumerate(("node", "slot")):
            columns[name] = pa.array([n[i] for n in lines.names], pa.string()).take(
                pa.array(lines.key)
            )
    columns["bucket"] = pa.array(lines.bucket)
    columns["rogue"] = pa.array(lines.rogue)
    for i, name in enumerate(LINE_TEXTS):
        columns[name] = pa.array([g[i] for g in lines.groups], pa.string()).take(
            pa.array(lines.group)
        )
    columns["simulated"] = pa.array(np.full(len(lines.key), simulated))
    columns |= {n: pa.array(v) for n, v in lines.ints.items()}
    for name, values in (*lines.sums.items(), *lines.maxima.items()):
        columns[name] = pa.array(values, mask=np.isnan(values))
    return columns


def _chunks(minutes: list[int]) -> list[list[int]]:
    """Return runs of minutes of at most CHUNK_MINUTES, each within a span of as many minutes."""
    chunks: list[list[int]] = []
    for minute in minutes:
        if chunks and minute - chunks[-1][0] < CHUNK_MINUTES * MINUTE_MS:
            chunks[-1].append(minute)
        else:
            chunks.append([minute])
    return chunks

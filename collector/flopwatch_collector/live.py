"""The present, in memory: what rules read. Never waits for the store, never for a reader.

Ingest hands over what it has just stored; the store fills it once at start. Kept, per cluster: the rows
of the last few minutes, the rosters that may still hold, the declared slots, and when each slot last
spoke. `observe` judges one interval with the same rules of account as history (`ledger.account`), so the
figure that pages is the figure on the page.

Silence counts from the later of a slot's last word and the moment this collector was ready: a collector
that was away has heard nothing, which says nothing about the cards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from flopwatch_collector.agents import Agents
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import (
    FOREVER,
    NEVER,
    ROSTER_COLUMNS,
    SLOT_COLUMNS,
    Rosters,
    Seats,
    Window,
    rosters_of,
    rows_of,
    seats_of,
)
from flopwatch_collector.ledger.gather import Evidence, heard_in_rosters
from flopwatch_collector.ledger.sheet import Sheet, joined, sheet_of_lines
from flopwatch_collector.live_tables import (
    COLUMNS,
    in_memory,
    newest_rows,
    overlapping,
    records,
    table_of,
    typed,
)
from flopwatch_collector.observe import allocation_observation, mfu_observation
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.telemetry import Reader
from flopwatch_proto.codec import Columns
from flopwatch_proto.rows import INTERVAL_MS, SlotState
from flopwatch_proto.v1 import telemetry_pb2 as pb

MFU_WINDOW_MS: Final = 120_000
KEPT_MS: Final = MFU_WINDOW_MS + 60_000
SPOKEN_MS: Final = 20 * 60_000
"""How far back words are looked up at start: beyond it a silence is MISSING in any case."""


@dataclass(slots=True)
class _Cluster:
    """What is known now of one cluster.

    Attributes:
        goodbyes: node → when it took leave, and until when its silence is expected.
    """

    simulated: bool
    chunks: dict[int, list[Columns | pa.Table]] = field(default_factory=dict)
    rosters: dict[tuple[str, int], pa.Table] = field(default_factory=dict)
    slots: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    heard: dict[tuple[str, str], int] = field(default_factory=dict)
    goodbyes: dict[str, tuple[int, int]] = field(default_factory=dict)
    sheets: dict[int, Sheet] = field(default_factory=dict)
    newest_row_unix_ms: int | None = None
    seats: Seats | None = None
    said: Rosters | None = None

    def forget_sheets(self, since_unix_ms: int) -> None:
        """Judge again, when asked, what ends after a moment."""
        self.sheets = {t: s for t, s in self.sheets.items() if t + INTERVAL_MS <= since_unix_ms}


class Live:
    """Everything that rules need, by cluster. Safe to call from several threads."""

    def __init__(self, ready_unix_ms: int, mfu_settings: Callable[[str], RuleSettings]) -> None:
        """ready_unix_ms: when this collector began; mfu_settings: of a cluster: basis and classes."""
        self._ready_unix_ms = ready_unix_ms
        self._mfu_settings = mfu_settings
        self.agents = Agents()
        self._clusters: dict[str, _Cluster] = {}
        self._lock = threading.Lock()

    # ---- what ingest hands over

    def hello(self, hello: pb.Hello, now_unix_ms: int) -> None:
        """Take who opened a stream."""
        with self._lock:
            self.agents.hello(hello, now_unix_ms)

    def add(
        self, cluster: str, node: str, simulated: bool, columns: Columns, stored_unix_ms: int
    ) -> None:
        """Take interval rows of one node, just stored."""
        starts = columns["start_unix_ms"]
        if not starts or max(starts) < stored_unix_ms - KEPT_MS:
            self._hear(cluster, simulated, node, columns, stored_unix_ms)
            return
        columns = {
            **columns,
            "node": [node] * len(starts),
            "stored_unix_ms": [stored_unix_ms] * len(starts),
        }
        with self._lock:
            known = self._cluster(cluster, simulated)
            for interval in {start // INTERVAL_MS * INTERVAL_MS for start in starts}:
                known.sheets.pop(interval, None)
            known.chunks.setdefault(min(starts) // INTERVAL_MS * INTERVAL_MS, []).append(columns)
        self._hear(cluster, simulated, node, columns, stored_unix_ms)

    def _hear(
        self, cluster: str, simulated: bool, node: str, columns: Columns, now_unix_ms: int
    ) -> None:
        with self._lock:
            known = self._cluster(cluster, simulated)
            self.agents.heard(cluster, node, now_unix_ms)
            for slot, start, duration in zip(
                columns["slot"], columns["start_unix_ms"], columns["duration_ms"], strict=True
            ):
                end = start + duration
                if end > known.heard.get((node, slot), NEVER):
                    known.heard[node, slot] = end
                if known.newest_row_unix_ms is None or end > known.newest_row_unix_ms:
                    known.newest_row_unix_ms = end
            said, until = known.goodbyes.get(node, (NEVER, NEVER))
            back = max(columns["start_unix_ms"], default=NEVER)
            if back >= said > NEVER:
                # It is back; the interval in which it came is judged with its leave.
                known.goodbyes[node] = said, min(until, back + INTERVAL_MS)

    def roster(self, cluster: str, simulated: bool, columns: Mapping[str, Sequence[Any]]) -> None:
        """Take one roster as columns of the table `roster`, its header row included."""
        if not columns["taken_unix_ms"]:
            return
        taken = columns["taken_unix_ms"][0]
        with self._lock:
            known = self._cluster(cluster, simulated)
            known.rosters[columns["source"][0], taken] = typed(columns, "roster", ROSTER_COLUMNS)
            known.said = None
            known.forget_sheets(taken)

    def slots(self, cluster: str, simulated: bool, columns: Mapping[str, Sequence[Any]]) -> None:
        """Take declarations of slots as columns of the table `slot`."""
        with self._lock:
            known = self._cluster(cluster, simulated)
            for record in records(columns, SLOT_COLUMNS):
                name = record["node"], record["slot"], record["from_unix_ms"]
                before = known.slots.get(name)
                known.slots[name] = record
                known.seats = None
                if before is None or before | {"to_unix_ms": 0} != record | {"to_unix_ms": 0}:
                    known.said = None  # rosters are by key, and keys may have moved
                    known.forget_sheets(record["from_unix_ms"])
                elif before["to_unix_ms"] != record["to_unix_ms"]:
                    # A lease that is renewed ends later, and changes nothing that was judged.
                    ends = (before["to_unix_ms"] or FOREVER, record["to_unix_ms"] or FOREVER)
                    known.forget_sheets(min(ends))

    def goodbye(self, cluster: str, node: str, back_in_ms: int, now_unix_ms: int) -> None:
        """Take a node's leave: its silence is expected for twice as long as it said."""
        with self._lock:
            self.agents.heard(cluster, node, now_unix_ms, leaves=True)
            if cluster in self._clusters:
                until = now_unix_ms + 2 * back_in_ms
                self._clusters[cluster].goodbyes[node] = now_unix_ms, until

    def status(
        self,
        cluster: str,
        node: str,
        simulated: bool,
        status: pb.Status,
        columns: Columns,
        now_unix_ms: int,
    ) -> None:
        """Take a node's picture of now: its newest rows, which wait behind a backlog."""
        self.add(cluster, node, simulated, columns, now_unix_ms)
        with self._lock:
            self.agents.status(cluster, node, status, now_unix_ms)

    def load(self, reader: Reader, now_unix_ms: int) -> None:
        """Fill from the store: what was stored before this collector started."""
        since = {"since": now_unix_ms - SPOKEN_MS, "recent": now_unix_ms - KEPT_MS}
        simulated: dict[str, bool] = {}
        for record in reader.query(
            "SELECT cluster, max(simulated) AS s FROM slot GROUP BY cluster"
        ).to_pylist():
            simulated[record["cluster"]] = bool(record["s"])
        for name, is_simulated in simulated.items():
            parameters = {**since, "cluster": name}
            slots = reader.query(
                f"SELECT {', '.join(SLOT_COLUMNS)} FROM slot FINAL WHERE cluster = {{cluster:String}}",
                parameters,
            )
            self.slots(name, is_simulated, slots.to_pydict())
            self._load_rosters(reader, name, is_simulated, parameters)
            rows = in_memory(
                reader.query(
                    f"SELECT {', '.join(COLUMNS)} FROM interval FINAL "
                    "WHERE cluster = {cluster:String} AND start_unix_ms > {recent:Int64}",
                    parameters,
                )
            )
            heard = reader.query(
                "SELECT node, slot, max(start_unix_ms + duration_ms) AS heard FROM interval "
                "WHERE cluster = {cluster:String} AND start_unix_ms > {since:Int64} GROUP BY node, slot",
                parameters,
            )
            with self._lock:
                known = self._cluster(name, is_simulated)
                if rows.num_rows:
                    starts = (
                        np.asarray(rows["start_unix_ms"].to_numpy()) // INTERVAL_MS * INTERVAL_MS
                    )
                    for interval in np.unique(starts):
                        known.chunks[int(interval)] = [rows.filter(pa.array(starts == interval))]
                for record in heard.to_pylist():
                    known.heard[record["node"], record["slot"]] = record["heard"]
                known.newest_row_unix_ms = max(known.heard.values(), default=None)

    def _load_rosters(
        self, reader: Reader, name: str, simulated: bool, parameters: Mapping[str, Any]
    ) -> None:
        table = reader.query(
            f"SELECT {', '.join(ROSTER_COLUMNS)} FROM roster FINAL WHERE cluster = {{cluster:String}} "
            "AND taken_unix_ms > {since:Int64} ORDER BY source, taken_unix_ms, node, slot",
            parameters,
        )
        whole: dict[tuple[str, int], dict[str, list[Any]]] = {}
        for record in table.to_pylist():
            columns = whole.setdefault((record["source"], record["taken_unix_ms"]), {})
            for column, value in record.items():
                columns.setdefault(column, []).append(value)
        for columns in whole.values():
            self.roster(name, simulated, columns)

    # ---- what rules ask

    def clusters(self) -> tuple[str, ...]:
        """Return the clusters ever heard of."""
        with self._lock:
            return tuple(sorted(self._clusters))

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        """Return what is known of a cluster at a tick, one observation per rule that reads.

        Args:
            tick_unix_ms: a multiple of the interval; what is observed ends there.
        """
        with self._lock:
            known = self._clusters.get(cluster)
            if known is None or not known.slots:
                return []
            self._forget(known, tick_unix_ms)
            seats = self._seats(known)
            if not _in_service(seats, tick_unix_ms - INTERVAL_MS, tick_unix_ms):
                return []
            newest = Window(start=tick_unix_ms - INTERVAL_MS, end=tick_unix_ms)
            lines = self._judge(known, newest)
            known.sheets[newest.start] = sheet_of_lines(lines.without_slots())
            recent = joined(self._recent_sheets(known, tick_unix_ms))
            return [
                allocation_observation(
                    cluster,
                    known.simulated,
                    newest,
                    lines,
                    heard=known.heard,
                    ready_unix_ms=self._ready_unix_ms,
                    goodbyes={
                        n for n, (_, until) in known.goodbyes.items() if until >= tick_unix_ms
                    },
                    newest_row_unix_ms=known.newest_row_unix_ms,
                    onboarded_ratio=_onboarded(known.slots.values(), tick_unix_ms),
                ),
                mfu_observation(
                    cluster,
                    known.simulated,
                    Window(start=tick_unix_ms - MFU_WINDOW_MS, end=tick_unix_ms),
                    recent,
                    self._mfu_settings(cluster),
                    known.newest_row_unix_ms,
                ),
            ]

    def _recent_sheets(self, known: _Cluster, tick_unix_ms: int) -> list[Sheet]:
        made = []
        for start in range(tick_unix_ms - MFU_WINDOW_MS, tick_unix_ms, INTERVAL_MS):
            if start not in known.sheets:
                lines = self._judge(known, Window(start=start, end=start + INTERVAL_MS))
                known.sheets[start] = sheet_of_lines(lines.without_slots())
            made.append(known.sheets[start])
        return made

    def evidence(self, cluster: str, window: Window) -> tuple[bool, Evidence] | None:
        """Return whether a cluster is simulated, and its evidence for an interval; None without a roster."""
        with self._lock:
            known = self._clusters.get(cluster)
            if known is None or not known.rosters:
                return None
            return known.simulated, self._evidence(known, window)

    def _judge(self, known: _Cluster, window: Window) -> Lines:
        return self._evidence(known, window).judge(window, window.end)

    def _evidence(self, known: _Cluster, window: Window) -> Evidence:
        seats = self._seats(known)
        if known.said is None:
            nothing = table_of([], "roster", ROSTER_COLUMNS)
            known.said = rosters_of(pa.concat_tables([nothing, *known.rosters.values()]), seats)
        tables = [
            overlapping(self._compact(known, start), window)
            for start in (window.start - INTERVAL_MS, window.start)
            if start in known.chunks
        ]
        table = pa.concat_tables(tables) if tables else table_of([], "interval", COLUMNS)
        heard = heard_in_rosters(known.said, seats, window)
        rows = [max(known.heard.get(name, NEVER), self._ready_unix_ms) for name in seats.names]
        spoken = np.minimum(np.array(rows, np.int64), window.start)
        np.maximum(heard.before, spoken, out=heard.before)
        return Evidence(seats=seats, rows=rows_of(table, seats), rosters=known.said, heard=heard)

    def _seats(self, known: _Cluster) -> Seats:
        if known.seats is None:
            known.seats = seats_of(
                table_of(list(known.slots.values()), "slot", SLOT_COLUMNS), "gpu"
            )
        return known.seats

    def _compact(self, known: _Cluster, interval: int) -> pa.Table:
        """Return the rows of an interval as one table; columns in Python are turned into arrays once."""
        parts = known.chunks[interval]
        if len(parts) == 1 and isinstance(parts[0], pa.Table):
            return parts[0]
        tables = [part for part in parts if isinstance(part, pa.Table)]
        columns: Columns = {name: [] for name in COLUMNS}
        for part in parts:
            if not isinstance(part, pa.Table):
                count = len(part["node"])
                for name, column in columns.items():
                    column.extend(part.get(name) or [None] * count)
        table = newest_rows(pa.concat_tables([*tables, typed(columns, "interval", COLUMNS)]))
        known.chunks[interval] = [table]
        return table

    def _forget(self, known: _Cluster, tick_unix_ms: int) -> None:
        """Drop what no tick will ask for again, so that memory is bounded by what is in service."""
        oldest = tick_unix_ms - KEPT_MS
        known.chunks = {t: c for t, c in known.chunks.items() if t >= oldest}
        known.sheets = {t: s for t, s in known.sheets.items() if t >= oldest}
        old = tick_unix_ms - SPOKEN_MS
        stale = [key for key in known.rosters if key[1] < old]
        for key in stale:
            del known.rosters[key]
            known.said = None
        known.goodbyes = {n: leave for n, leave in known.goodbyes.items() if leave[1] >= oldest}
        ended = [k for k, r in known.slots.items() if 0 < r["to_unix_ms"] < oldest]
        for name in ended:
            del known.slots[name]
            known.seats = known.said = None

    def _cluster(self, name: str, simulated: bool) -> _Cluster:
        return self._clusters.setdefault(name, _Cluster(simulated=simulated))


def _in_service(seats: Seats, start: int, end: int) -> bool:
    return bool(((seats.start < end) & (seats.end > start)).any())


def _onboarded(slots: Iterable[Mapping[str, Any]], at_unix_ms: int) -> float:
    """Return the share of slots in service of all that are expected, onboarding or in service."""
    states: dict[tuple[str, str], tuple[int, int]] = {}
    for record in slots:
        begins, ends = record["from_unix_ms"], record["to_unix_ms"] or FOREVER
        if begins <= at_unix_ms < ends:
            name = record["node"], record["slot"]
            states[name] = max(states.get(name, (NEVER, 0)), (begins, record["state"]))
    owned = [state for _, state in states.values() if state != SlotState.RETIRED]
    return owned.count(SlotState.IN_SERVICE) / len(owned) if owned else 1.0

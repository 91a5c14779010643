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
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from flopwatch_collector.agents import Agents
from flopwatch_collector.counted import Sight
from flopwatch_collector.excused import NONE, Excuses, without
from flopwatch_collector.ledger.absence import has_silence
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import (
    FOREVER,
    NEVER,
    ROSTER_COLUMNS,
    SLOT_COLUMNS,
    Rosters,
    Seats,
    Window,
    compact,
    rosters_of,
    rows_of,
    seats_of,
)
from flopwatch_collector.ledger.gather import Evidence, heard_in_rosters
from flopwatch_collector.ledger.sheet import Sheet, joined, sheet_of_lines
from flopwatch_collector.live_state import Known, in_service
from flopwatch_collector.live_tables import (
    COLUMNS,
    Word,
    in_memory,
    last_words,
    records,
    table_of,
    typed,
    whole_rosters,
)
from flopwatch_collector.observe import allocation_observation, counted_by_mfu, mfu_observation
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import by_default
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.tally import Tallies
from flopwatch_collector.telemetry import Reader
from flopwatch_proto.codec import Columns
from flopwatch_proto.rows import INTERVAL_MS
from flopwatch_proto.v1 import telemetry_pb2 as pb

MFU_WINDOW_MS: Final = 120_000
KEPT_MS: Final = MFU_WINDOW_MS + 60_000
SETTLED_MS: Final = 40_000
"""How long ago the rows of an interval began that are packed: most of what is late has come by then."""
SPOKEN_MS: Final = 20 * 60_000
"""How far back words are looked up at start: beyond it a silence is MISSING in any case."""


class Live:
    """Everything that rules need, by cluster. Safe to call from several threads."""

    def __init__(
        self,
        ready_unix_ms: int,
        mfu_settings: Callable[[str], RuleSettings],
        excuses: Callable[[str, int], Excuses] = lambda cluster, tick_unix_ms: NONE,
    ) -> None:
        """Begin with nothing.

        Args:
            ready_unix_ms: when this collector began.
            mfu_settings: of a cluster: basis and classes.
            excuses: of a cluster at a tick: what rules do not expect.
        """
        self._ready_unix_ms = ready_unix_ms
        self._mfu_settings = mfu_settings
        self._excuses = excuses
        self.agents = Agents()
        self.rule_settings = by_default
        self._clusters: dict[str, Known] = {}
        self._lock = threading.Lock()  # of what is known; never held while something is judged
        self._judging = threading.Lock()  # taken first, where both are

    # ---- what ingest hands over

    def hello(self, hello: pb.Hello, now_unix_ms: int) -> None:
        """Take who opened a stream."""
        with self._lock:
            self.agents.hello(hello, now_unix_ms)

    def add(
        self, cluster: str, node: str, simulated: bool, columns: Columns, stored_unix_ms: int
    ) -> None:
        """Take interval rows of one node: what it says of now, beside a backlog."""
        starts = columns["start_unix_ms"]
        if not starts:
            with self._lock:
                self.agents.heard(cluster, node, stored_unix_ms)
            return
        count = len(starts)
        origin: Columns = {"node": [node] * count, "stored_unix_ms": [stored_unix_ms] * count}
        self.add_many(
            cluster, simulated, typed({**columns, **origin}, "interval", COLUMNS), stored_unix_ms
        )

    def add_many(
        self, cluster: str, simulated: bool, columns: pa.Table, stored_unix_ms: int
    ) -> None:
        """Take interval rows of many nodes, just stored."""
        runs = compact(columns.select([name for name in COLUMNS if name in columns.column_names]))
        start = runs["start_unix_ms"].to_numpy()
        intervals = start // INTERVAL_MS * INTERVAL_MS
        recent = np.unique(intervals[start >= stored_unix_ms - KEPT_MS]).tolist()
        if recent:
            kept = typed(dict(zip(runs.column_names, runs, strict=True)), "interval", COLUMNS)
        words = last_words(runs)
        with self._lock:
            known = self._cluster(cluster, simulated)
            for interval in recent:
                here = intervals == interval
                known.sheets.pop(interval, None)
                known.revisions[interval] = known.revisions.get(interval, 0) + 1
                known.rows.add(interval, kept if here.all() else kept.filter(pa.array(here)))
            self._hear(known, cluster, words, stored_unix_ms)

    def _hear(self, known: Known, cluster: str, words: Iterable[Word], now_unix_ms: int) -> None:
        """Note when slots spoke, and that nodes which took leave are back."""
        newest, heard = known.newest_row_unix_ms or NEVER, known.heard
        backs: dict[str, int] = {}
        for node, slot, start, end in words:
            if end > heard.get((node, slot), NEVER):
                heard[node, slot] = end
            newest = max(newest, end)
            backs[node] = max(backs.get(node, NEVER), start)
        known.newest_row_unix_ms = newest if newest > NEVER else None
        for node, back in backs.items():
            said, until = known.goodbyes.get(node, (NEVER, NEVER))
            self.agents.heard(cluster, node, now_unix_ms)
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
                known.declared()
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
                        known.rows.add(int(interval), rows.filter(pa.array(starts == interval)))
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
        for columns in whole_rosters(table):
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
        with self._judging:
            with self._lock:
                known = self._clusters.get(cluster)
                if known is None or not known.slots:
                    return []
                self._forget(known, tick_unix_ms)
                seats = self._seats(known)
            if not in_service(seats, tick_unix_ms - INTERVAL_MS, tick_unix_ms):
                return []
            newest = Window(start=tick_unix_ms - INTERVAL_MS, end=tick_unix_ms)
            lines, sheet = self._sheeted(known, newest)
            excused_cards = 0.0
            if excuses := self._excuses(cluster, tick_unix_ms):
                lines, excused_cards = without(lines, excuses, INTERVAL_MS)
                sheet = sheet_of_lines(lines.without_slots())
            recent = joined(self._recent_sheets(known, tick_unix_ms))
            settings = self._mfu_settings(cluster)
            of_jobs = recent.where(counted_by_mfu(recent, settings))
            known.tallies.add(tick_unix_ms, lines, INTERVAL_MS, of_jobs, MFU_WINDOW_MS)
            known.rows.pack(tick_unix_ms - SETTLED_MS)
            with self._lock:
                heard, onboarded = dict(known.heard), known.onboarded_ratio(tick_unix_ms)
                goodbyes = known.leaving(tick_unix_ms)
            allocation = allocation_observation(
                cluster,
                known.simulated,
                newest,
                lines,
                sheet,
                heard=heard,
                ready_unix_ms=self._ready_unix_ms,
                goodbyes=goodbyes,
                newest_row_unix_ms=known.newest_row_unix_ms,
                onboarded_ratio=onboarded,
                excused_cards=excused_cards,
            )
            window = Window(start=tick_unix_ms - MFU_WINDOW_MS, end=tick_unix_ms)
            newest_row = known.newest_row_unix_ms
            mfu = mfu_observation(cluster, known.simulated, window, recent, settings, newest_row)
            sight = Sight(
                base=allocation,
                lines=lines,
                heard=heard,
                word=partial(self.agents.word, cluster),
                goodbyes=goodbyes,
                ready_unix_ms=self._ready_unix_ms,
                settings=partial(self.rule_settings, cluster),
                classes=settings.workload_classes,
            )
            return [allocation, mfu, *known.counts.of(sight)]

    def tallies(self, cluster: str) -> Tallies | None:
        """Return who lost what at the ticks of late; asked by the thread that observes."""
        known = self._clusters.get(cluster)
        return None if known is None else known.tallies

    def _recent_sheets(self, known: Known, tick_unix_ms: int) -> list[Sheet]:
        made = []
        for start in range(tick_unix_ms - MFU_WINDOW_MS, tick_unix_ms, INTERVAL_MS):
            sheet = known.sheets.get(start)
            if sheet is None:
                _, sheet = self._sheeted(known, Window(start=start, end=start + INTERVAL_MS))
            made.append(sheet)
        return made

    def _sheeted(self, known: Known, window: Window) -> tuple[Lines, Sheet]:
        """Judge an interval: per slot, and summed over slots, which is kept unless more was said of it."""
        with self._lock:
            standing = known.standing(window.start)
        lines = self._evidence(known, window).judge(window, window.end)
        sheet = sheet_of_lines(lines.without_slots())
        with self._lock:
            if known.standing(window.start) == standing:
                known.sheets[window.start] = sheet
        return lines, sheet

    def evidence(self, cluster: str, window: Window) -> tuple[bool, Evidence] | None:
        """Return whether a cluster is simulated, and its evidence for an interval; None without a roster."""
        with self._judging:
            known = self._clusters.get(cluster)
            if known is None or not known.rosters:
                return None
            return known.simulated, self._evidence(known, window)

    def _evidence(self, known: Known, window: Window) -> Evidence:
        with self._lock:
            seats, rosters = self._seats(known), self._said(known)
        table = known.rows.within(window)
        heard, rows = heard_in_rosters(rosters, seats, window), rows_of(table, seats)
        if has_silence(window, seats, rows, rosters):  # the words before matter to nothing else
            words = [max(known.heard.get(name, NEVER), self._ready_unix_ms) for name in seats.names]
            spoken = np.minimum(np.array(words, np.int64), window.start)
            np.maximum(heard.before, spoken, out=heard.before)
        return Evidence(seats=seats, rows=rows, rosters=rosters, heard=heard)

    def _said(self, known: Known) -> Rosters:
        if known.said is None:
            nothing = table_of([], "roster", ROSTER_COLUMNS)
            tables = [nothing, *known.rosters.values()]
            known.said = rosters_of(pa.concat_tables(tables), self._seats(known))
        return known.said

    def _seats(self, known: Known) -> Seats:
        if known.seats is None:
            known.seats = seats_of(
                table_of(list(known.slots.values()), "slot", SLOT_COLUMNS), "gpu"
            )
        return known.seats

    def _forget(self, known: Known, tick_unix_ms: int) -> None:
        """Drop what no tick will ask for again, so that memory is bounded by what is in service."""
        oldest = tick_unix_ms - MFU_WINDOW_MS - INTERVAL_MS  # a row may begin an interval earlier
        known.rows.forget(oldest)
        known.sheets = {t: s for t, s in known.sheets.items() if t >= oldest}
        known.revisions = {t: r for t, r in known.revisions.items() if t >= oldest}
        old = tick_unix_ms - SPOKEN_MS
        stale = [key for key in known.rosters if key[1] < old]
        for key in stale:
            del known.rosters[key]
            known.said = None
        known.goodbyes = {n: leave for n, leave in known.goodbyes.items() if leave[1] >= oldest}
        ended = [k for k, r in known.slots.items() if 0 < r["to_unix_ms"] < oldest]
        for name in ended:
            del known.slots[name]
            known.declared()
            known.said = None

    def _cluster(self, name: str, simulated: bool) -> Known:
        return self._clusters.setdefault(name, Known(simulated=simulated))

"""The present, where several collectors share one store: each hears only the agents that are its own.

What agents say without it being stored (a leave, the newest rows beside a backlog) is put into the store by
whoever hears it (`Overheard`). The holder of the pager's lease brings its live state up to what everybody
stored, with a few bounded queries before each tick (`CatchUp`); rules read memory as ever. `Shares` is all
of that and the leases.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
import structlog
from prometheus_client import CollectorRegistry

from flopwatch_collector.agents import AGENTS_MAX
from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.leases import PAGER, ROLLUP, Lease, this_collector
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.ingest import Sink
from flopwatch_collector.ledger.evidence import ROSTER_COLUMNS, SLOT_COLUMNS
from flopwatch_collector.live import SPOKEN_MS, Live
from flopwatch_collector.live_tables import COLUMNS, in_memory
from flopwatch_collector.presence import Presence
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_collector.telemetry.arrival import Arrival, Origin, commit
from flopwatch_collector.telemetry.dirty import MINUTE_MS
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import FlopwatchError, PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb

OVERLAP_MS: Final = 15_000
"""How much later than its time a commit may be seen: it takes a while, and clocks differ by seconds."""
FRESH_MS: Final = 60_000
"""Beyond this what was missed is loaded, not followed."""
QUERY_BOUNDS: Final = {"max_execution_time": 10, "max_memory_usage": 2 * 1024**3}
OVERHEARD_MAX: Final = 50_000
STORE_S: Final = 1.0
GOODBYE: Final = "goodbye"

log = structlog.get_logger()


class CatchUp:
    """Called before each tick of the rules with the moment it is."""

    def __init__(self, store: TelemetryStore, live: Live) -> None:
        self._handles = store.bounded(QUERY_BOUNDS, 1)
        self._live = live
        self._reached_unix_ms = 0

    def close(self) -> None:
        """Give the handle back; before the store is closed."""
        self._handles.close()

    def __call__(self, now_unix_ms: int) -> None:
        """Take what was stored since the last time; all of the present where that is long ago.

        Raises:
            RetryableError: the store did not answer in time; the present is not known.
        """
        oldest = now_unix_ms - SPOKEN_MS
        followed = now_unix_ms - self._reached_unix_ms <= FRESH_MS
        if not followed:
            self._live.load(self._handles, now_unix_ms)
        reached = min(self._reached_unix_ms, now_unix_ms) if followed else now_unix_ms
        since = {"since": reached - OVERLAP_MS, "oldest": oldest}
        self._slots(since)
        self._rosters(since)
        # Leaves are not loaded with the rest.
        self._goodbyes(since if followed else since | {"since": oldest})
        self._rows(since, now_unix_ms)
        self._reached_unix_ms = now_unix_ms

    def _slots(self, since: Mapping[str, int]) -> None:
        found = self._ask("slot", ("cluster", *SLOT_COLUMNS), since, "TRUE", "cluster")
        for (cluster, simulated), slots in _runs(found, "cluster", "simulated"):
            self._live.slots(cluster, simulated, slots.to_pydict())

    def _rosters(self, since: Mapping[str, int]) -> None:
        columns = ("cluster", "simulated", *ROSTER_COLUMNS)
        order = "cluster, source, taken_unix_ms, node, slot"
        found = self._ask("roster", columns, since, "taken_unix_ms > {oldest:Int64}", order)
        keys = ("cluster", "simulated", "source", "taken_unix_ms")
        for (cluster, simulated, *_), one in _runs(found, *keys):
            self._live.roster(cluster, simulated, one.to_pydict())

    def _goodbyes(self, since: Mapping[str, int]) -> None:
        columns = ("cluster", "node", "code", "time_unix_ms")
        where = f"kind = '{GOODBYE}' AND time_unix_ms > {{oldest:Int64}}"
        for each in self._ask("event", columns, since, where, "time_unix_ms").to_pylist():
            said = each["cluster"], each["node"], each["code"], each["time_unix_ms"]
            self._live.goodbye(*said)

    def _rows(self, since: Mapping[str, int], now_unix_ms: int) -> None:
        columns = ("cluster", "simulated", *COLUMNS)
        found = self._ask("interval", columns, since, "start_unix_ms > {oldest:Int64}", "cluster")
        for (cluster, simulated), rows in _runs(found, "cluster", "simulated"):
            self._live.add_many(cluster, simulated, in_memory(rows.select(COLUMNS)), now_unix_ms)

    def _ask(
        self, table: str, columns: tuple[str, ...], since: Mapping[str, int], where: str, order: str
    ) -> pa.Table:
        return self._handles.query(
            f"SELECT {', '.join(columns)} FROM {table} FINAL "
            f"WHERE stored_unix_ms > {{since:Int64}} AND {where} ORDER BY {order}",
            since,
        )


def _runs(table: pa.Table, *keys: str) -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
    """Yield runs of rows with the same keys."""
    values = [table[key].to_pylist() for key in keys]
    first = 0
    for key, run in itertools.groupby(zip(*values, strict=True)):
        count = sum(1 for _ in run)
        yield key, table.slice(first, count)
        first += count


class Overheard:
    """What ingest tells live state, with what is not stored yet put into the store for the others.

    A collector that does not watch keeps no rows in memory: nobody there would ever forget them.
    """

    def __init__(
        self,
        sink: Sink,
        store: TelemetryStore,
        metrics: SharedMetrics,
        now_unix_ms: Callable[[], int],
        watching: Callable[[], bool],
    ) -> None:
        """watching: whether this collector's live state is asked by rules now."""
        self._sink = sink
        self._watching = watching
        self._metrics = metrics
        self._store = store
        self._now_unix_ms = now_unix_ms
        self._who: dict[tuple[str, str], Origin] = {}
        self._waiting: deque[Arrival] = deque()

    def hello(self, hello: pb.Hello, now_unix_ms: int) -> None:
        """Take who opened a stream."""
        if len(self._who) >= AGENTS_MAX:
            self._who.clear()  # a word of a node that said its Hello long ago has no spool
        self._who[hello.cluster, hello.node_id] = Origin(
            cluster=hello.cluster,
            node=hello.node_id,
            simulated=hello.simulated,
            spool_id=hello.spool_id,
        )
        self._sink.hello(hello, now_unix_ms)

    def status(
        self,
        cluster: str,
        node: str,
        simulated: bool,
        status: pb.Status,
        columns: Columns,
        now_unix_ms: int,
    ) -> None:
        """Take a picture of now: rows that will come again in a batch, under the same keys."""
        kept = columns if self._watching() else {name: [] for name in columns}
        self._sink.status(cluster, node, simulated, status, kept, now_unix_ms)
        starts = columns["start_unix_ms"]
        # Batches are checked where they are taken; of now is what lies near it.
        if not starts or min(starts) < now_unix_ms - SPOKEN_MS or max(starts) > now_unix_ms:
            return
        origin = self._origin(cluster, node)
        spool: Columns = {"spool_id": [origin.spool_id] * len(starts), "seq": [0] * len(starts)}
        minutes = frozenset(start // MINUTE_MS * MINUTE_MS for start in starts)
        self._put(origin, "interval", {**columns, **spool}, minutes)

    def add_many(
        self, cluster: str, simulated: bool, columns: pa.Table, stored_unix_ms: int
    ) -> None:
        """Take interval rows that were just stored."""
        if self._watching():
            self._sink.add_many(cluster, simulated, columns, stored_unix_ms)

    def roster(self, cluster: str, simulated: bool, columns: Columns) -> None:
        """Take a roster that was just stored."""
        if self._watching():
            self._sink.roster(cluster, simulated, columns)

    def slots(self, cluster: str, simulated: bool, columns: Columns) -> None:
        """Take declarations of slots that were just stored."""
        if self._watching():
            self._sink.slots(cluster, simulated, columns)

    def goodbye(self, cluster: str, node: str, back_in_ms: int, now_unix_ms: int) -> None:
        """Take a node's leave."""
        self._sink.goodbye(cluster, node, back_in_ms, now_unix_ms)
        said: Columns = {"kind": [GOODBYE], "code": [back_in_ms], "severity": ["info"]}
        self._put(self._origin(cluster, node), "event", {**said, "time_unix_ms": [now_unix_ms]})

    async def run(self) -> None:
        """Store what was heard, every second; ends when cancelled."""
        aside = Aside("overheard")
        try:
            while True:
                await asyncio.sleep(STORE_S)
                try:
                    await aside(self.store)
                except FlopwatchError as exc:
                    log.warning("overheard_not_stored", reason=str(exc))
        finally:
            await aside.end()

    def store(self) -> None:
        """Store what waits; what does not fit the tables is dropped. Raises: RetryableError: it waits on."""
        heard = list(self._waiting)
        for table in ("interval", "event"):
            same = [arrival for arrival in heard if table in arrival.tables]
            try:
                commit(self._store, same, self._now_unix_ms())
            except PermanentError:
                self._metrics.overheard_dropped.inc(len(same))
        for _ in heard:
            self._waiting.popleft()

    def _origin(self, cluster: str, node: str) -> Origin:
        unknown = Origin(cluster=cluster, node=node, simulated=False, spool_id="")
        return self._who.get((cluster, node), unknown)

    def _put(
        self, origin: Origin, table: str, columns: Columns, minutes: frozenset[int] = frozenset()
    ) -> None:
        if len(self._waiting) >= OVERHEARD_MAX:
            self._metrics.overheard_dropped.inc()
            return
        count = len(next(iter(columns.values())))
        whole: Columns = dict(columns)
        whole["cluster"] = [origin.cluster] * count
        whole["node"] = [origin.node] * count
        whole["simulated"] = [origin.simulated] * count
        self._waiting.append(
            Arrival(origin=origin, first_seq=0, last_seq=0, tables={table: whole}, minutes=minutes)
        )


class Shares:
    """What a collector has that may be one of several. Attributes: pager, rollup: leases."""

    def __init__(
        self,
        store: TelemetryStore,
        control: ControlStore,
        live: Live,
        registry: CollectorRegistry,
        now_unix_ms: Callable[[], int],
    ) -> None:
        metrics, me = SharedMetrics(registry), this_collector()
        self.pager = Lease(control, PAGER, me, metrics)
        self.rollup = Lease(control, ROLLUP, me, metrics)
        self.catch_up = CatchUp(store, live)
        live.agents.collector = me
        self.presence = Presence(control, live.agents, metrics, now_unix_ms)
        self.overheard = Overheard(
            live, store, metrics, now_unix_ms, lambda: self.pager.fence is not None
        )

    def jobs(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """Return what runs as long as the collector."""
        return self.pager.run(), self.rollup.run(), self.overheard.run(), self.presence.run()

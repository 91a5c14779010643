"""How commits ended: what was stored is handed over and acknowledged, what failed is held. See `ingest`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import pyarrow as pa
import structlog

from flopwatch_collector.captures import Captures
from flopwatch_collector.ingest_limits import (
    CREDIT_BATCHES,
    CREDIT_BYTES,
    LARGE_FLEET,
    SMALL_FLEET,
    SMALL_FLEET_STREAMS,
)
from flopwatch_collector.ingest_metrics import IngestMetrics
from flopwatch_collector.ingest_stream import OpenStream
from flopwatch_collector.telemetry.arrival import Arrival, Unopened
from flopwatch_collector.telemetry.group import GroupCommit
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.telemetry.stored_rows import StoredRows
from flopwatch_proto.codec import Columns
from flopwatch_proto.v1 import telemetry_pb2 as pb

log = structlog.get_logger()


class Sink(Protocol):
    """Who wants to know at once what was stored, or said. Called on the event loop; must not wait."""

    def hello(self, hello: pb.Hello, now_unix_ms: int) -> None:
        """Take who opened a stream."""

    def add_many(
        self, cluster: str, simulated: bool, columns: pa.Table, stored_unix_ms: int
    ) -> None:
        """Take interval rows of many nodes that were just stored; they may come twice."""

    def roster(self, cluster: str, simulated: bool, columns: Columns) -> None:
        """Take one roster that was just stored, its header row first."""

    def slots(self, cluster: str, simulated: bool, columns: Columns) -> None:
        """Take declarations of slots that were just stored."""

    def status(
        self,
        cluster: str,
        node: str,
        simulated: bool,
        status: pb.Status,
        columns: Columns,
        now_unix_ms: int,
    ) -> None:
        """Take a picture of now; ``columns`` are its newest rows, which are not stored yet."""

    def goodbye(self, cluster: str, node: str, back_in_ms: int, now_unix_ms: int) -> None:
        """Take a node's leave."""


class Commits:
    """The streams that are open and the group that they fill.

    Attributes:
        streams: add and discard as they come and go.
        group: takes arrivals; tells this object how its commits ended.
    """

    def __init__(
        self,
        store: TelemetryStore,
        sink: Sink,
        *,
        metrics: IngestMetrics,
        captures: Captures | None,
        serving: Callable[[bool], None],
        now_unix_ns: Callable[[], int],
        now_seconds: Callable[[], float],
    ) -> None:
        self._sink = sink
        self._metrics = metrics
        self._captures = captures
        self._serving = serving
        self._now_unix_ns = now_unix_ns
        self._now_seconds = now_seconds
        self._failing = False
        self.streams: set[OpenStream] = set()
        self.group: GroupCommit[OpenStream] = GroupCommit(
            store, self, now_unix_ms=lambda: now_unix_ns() // 1_000_000
        )

    @property
    def is_small(self) -> bool:
        """Whether few enough nodes report that they need not take turns."""
        return len(self.streams) < SMALL_FLEET_STREAMS

    async def put(self, stream: OpenStream, arrival: Arrival | Unopened) -> None:
        """Queue an arrival for the next commit; waits where a stream has too many already."""
        await stream.has_room()
        stream.came()
        await self.group.put(stream, arrival)
        self._metrics.unacked_bytes.set(self.group.unacked_bytes)

    def held_seconds(self, stream: OpenStream, size_bytes: int) -> float:
        """Take a frame from the stream's bucket; return how long its next one must wait."""
        stream.bucket.rate = SMALL_FLEET if self.is_small else LARGE_FLEET
        return stream.bucket.take(size_bytes, self._now_seconds())

    def credits(self, stream: OpenStream | None = None) -> tuple[int, int]:
        """Return the batches and bytes that a stream (None: a new one) may have in flight."""
        if self._failing or self.group.crowded:
            return 0, CREDIT_BYTES
        if stream is None:
            return CREDIT_BATCHES, CREDIT_BYTES
        return stream.bucket.credit(self._now_seconds())

    def refill(self) -> None:
        """Tell streams that had no credit and have some now."""
        for stream in self.streams:
            if stream.without_credit and self.credits(stream)[0] > 0:
                self._acknowledge(stream, 0)

    # ---- how commits ended

    def rows(self, rows: StoredRows, stored_unix_ms: int) -> None:
        """Hand over the rows of a commit."""
        try:
            self._sink.add_many(rows.cluster, rows.simulated, rows.columns, stored_unix_ms)
        except Exception:  # as in `_hand_over`
            log.exception("sink_failed", cluster=rows.cluster)

    def stored(self, group: Sequence[tuple[OpenStream, Arrival]], stored_unix_ms: int) -> None:
        """Hand over what was stored, and acknowledge it."""
        rows: dict[OpenStream, int] = {}
        for stream, arrival in group:
            stream.landed()
            stream.through_seq = max(stream.through_seq, arrival.last_seq)
            rows[stream] = rows.get(stream, 0) + arrival.interval_rows
            if arrival.refused is not None:
                self._reject(stream, arrival, *arrival.refused)
            else:
                self._hand_over(arrival, stored_unix_ms)
        for stream, count in rows.items():
            if stream in self.streams:
                self._acknowledge(stream, count)
        self.refill()

    def failed(self, retry_after_seconds: float) -> None:
        """Tell every agent to hold what is not acknowledged."""
        self._metrics.commit_failures.inc()
        self._failing = True
        self._serving(False)
        for stream in self.streams:
            self._acknowledge(stream, 0, retry_after_ms=int(retry_after_seconds * 1000))

    def committed(self, seconds: float) -> None:
        """Count a commit."""
        self._metrics.commit_seconds.observe(seconds)
        self._metrics.unacked_bytes.set(self.group.unacked_bytes)
        if self._failing:
            self._failing = False
            self._serving(True)

    def _hand_over(self, arrival: Arrival, stored_unix_ms: int) -> None:
        try:
            self._tell_sink(arrival, stored_unix_ms)
        except Exception:  # what is stored is acknowledged, whatever becomes of the picture of now
            log.exception("sink_failed", node=arrival.origin.node)

    def _tell_sink(self, arrival: Arrival, stored_unix_ms: int) -> None:
        origin, tables = arrival.origin, arrival.tables
        cluster, simulated = origin.cluster, origin.simulated
        if "gap" in tables:
            self._metrics.gaps.inc()
            return
        if arrival.goodbye_back_in_ms is not None:
            back_in_ms = arrival.goodbye_back_in_ms
            self._sink.goodbye(cluster, origin.node, back_in_ms, stored_unix_ms)
            return
        self._metrics.batches.inc()
        self._metrics.rows.inc(arrival.interval_rows)
        if "slot" in tables:
            self._sink.slots(cluster, simulated, tables["slot"])
        if "capture" in tables and self._captures is not None:
            self._captures.answered(tables["capture"])
        for roster in arrival.rosters:
            self._sink.roster(cluster, simulated, roster)

    def _reject(self, stream: OpenStream, arrival: Arrival, code: str, message: str) -> None:
        self._metrics.rejects.labels(code).inc()
        if "quarantine" in arrival.tables:
            self._metrics.quarantined.inc()
        log.warning("batch_refused", node=arrival.origin.node, seq=arrival.last_seq, code=code)
        reject = pb.Reject(seq=arrival.last_seq, code=code, permanent=True, message=message[:500])
        stream.tell(pb.CollectorFrame(reject=reject))

    def _acknowledge(
        self, stream: OpenStream, stored_rows: int, *, retry_after_ms: int = 0
    ) -> None:
        batches, size_bytes = (0, 0) if retry_after_ms else self.credits(stream)
        stream.without_credit = batches == 0
        ack = pb.Ack(
            through_seq=stream.through_seq,
            stored_rows=stored_rows,
            credit_batches=batches,
            credit_bytes=size_bytes,
            server_wall_unix_ns=self._now_unix_ns(),
            retry_after_ms=retry_after_ms,
        )
        stream.tell(pb.CollectorFrame(ack=ack))

"""Ingest: what agents send, into the telemetry store; acknowledged when it is on disk.

    stream ─► frames ─► arrivals ─┐
    stream ─► frames ─► arrivals ─┼─► group commit ─► live ─► acks
    stream ─► frames ─► arrivals ─┘   (one at a time)

- A frame is acknowledged when the group commit that holds it (`telemetry.group`) is on disk. Nothing is
  acknowledged from memory or on a timer.
- A store that fails gets the same arrivals again until it takes them; agents hold their fire meanwhile
  (credits 0). What was not acknowledged is resent after a crash, and collapses by key.
- A batch that can never be stored is set aside (quarantine, or a gap when too old), rejected, and counts
  as handled: it never blocks the frames behind it.
- Every seq of a spool comes in order. A hole ends the stream, so that the agent begins again where it was
  last acknowledged.

There is no state per node that outlives its stream: any number of collectors may run.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import grpc
import structlog

from flopwatch_collector.captures import Captures
from flopwatch_collector.ingest_metrics import IngestMetrics
from flopwatch_collector.telemetry.arrival import (
    Arrival,
    Origin,
    of_batch,
    of_gap,
    of_goodbye,
    oldest_start_unix_ms,
)
from flopwatch_collector.telemetry.clusters import ClusterKinds
from flopwatch_collector.telemetry.group import GroupCommit
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto import codec
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc

log = structlog.get_logger()

PROTOCOL_REVISIONS: Final = range(1, 3)
"""The revision that this collector speaks, and one newer."""
NAME_CHARACTERS_MAX: Final = 253
CREDIT_BATCHES: Final = 32
CREDIT_BYTES: Final = 4 * 1024**2
BATCH_BYTES_MAX: Final = 512 * 1024
SMALL_FLEET_STREAMS: Final = 100


class Sink(Protocol):
    """Who wants to know at once what was stored, or said. Called on the event loop; must not wait."""

    def hello(self, hello: pb.Hello, now_unix_ms: int) -> None:
        """Take who opened a stream."""

    def add(
        self, cluster: str, node: str, simulated: bool, columns: Columns, stored_unix_ms: int
    ) -> None:
        """Take interval rows that were just stored; they may come twice."""

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


Context = grpc.aio.ServicerContext[pb.AgentFrame, pb.CollectorFrame]


@dataclass(slots=True, eq=False)
class _Stream:
    """One open stream.

    Attributes:
        serving: the task that reads it.
        received_seq: the last seq that came; None before the first.
        without_credit: it was told to hold its fire.
        outbox: frames to write; at most one Ack, because a newer one says all of an older one.
    """

    origin: Origin
    context: Context
    serving: asyncio.Task[object]
    received_seq: int | None = None
    through_seq: int = 0
    without_credit: bool = False
    outbox: list[pb.CollectorFrame] = field(default_factory=list)
    writing: asyncio.Task[None] | None = None

    def tell(self, frame: pb.CollectorFrame) -> None:
        """Write a frame as soon as the ones before it are written."""
        if frame.HasField("ack"):
            stored_rows = sum(f.ack.stored_rows for f in self.outbox)
            frame.ack.stored_rows += stored_rows
            self.outbox = [f for f in self.outbox if not f.HasField("ack")]
        self.outbox.append(frame)
        if self.writing is None or self.writing.done():
            self.writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        # Writing to a stream that ended raises any of these; its reader sees the end as well.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError, grpc.aio.UsageError):
            while self.outbox:
                await self.context.write(self.outbox.pop(0))


class Ingest(telemetry_pb2_grpc.IngestServicer):
    """The servicer: frames to arrivals, commits to acknowledgements."""

    def __init__(
        self,
        store: TelemetryStore,
        sink: Sink,
        *,
        metrics: IngestMetrics,
        inventoried: Collection[str] = (),
        captures: Captures | None = None,
        serving: Callable[[bool], None] = lambda serves: None,
        now_unix_ns: Callable[[], int] = time.time_ns,
        chance: random.Random | None = None,
    ) -> None:
        self._sink = sink
        self._metrics = metrics
        self._inventoried = frozenset(inventoried)
        self._captures = captures
        self._serving = serving
        self._now_unix_ns = now_unix_ns
        self._chance = chance or random.Random()
        self._streams: set[_Stream] = set()
        self._clusters = ClusterKinds(store)
        self._group: GroupCommit[_Stream] = GroupCommit(store, self, now_unix_ms=self._now_unix_ms)
        self._draining = False
        self._failing = False

    async def drain(self, seconds_max: float, leave_seconds: float) -> None:
        """Send agents away, spread in time; store and acknowledge what came; end every stream.

        Args:
            seconds_max: the longest wait for the store.
            leave_seconds: how long agents have to leave by themselves.
        """
        self._draining = True
        spread_ms = 1_000 if self._is_small() else 30_000
        for stream in self._streams:
            after_ms = self._chance.randrange(spread_ms)
            stream.tell(pb.CollectorFrame(drain=pb.Drain(reconnect_after_ms=after_ms)))
        await self._group.stop(seconds_max)
        writing = {s.writing for s in self._streams if s.writing is not None}
        if writing:
            await asyncio.wait(writing, timeout=1.0)
        if serving := {s.serving for s in self._streams}:
            _, staying = await asyncio.wait(serving, timeout=leave_seconds)
            for task in staying:
                task.cancel()

    def _now_unix_ms(self) -> int:
        return self._now_unix_ns() // 1_000_000

    def _is_small(self) -> bool:
        return len(self._streams) < SMALL_FLEET_STREAMS

    # ---- one stream

    async def Stream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.AgentFrame], context: Context
    ) -> None:
        """Serve one node until it goes."""
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        serving = asyncio.current_task()
        assert serving is not None
        stream = _Stream(await self._welcome(first, context), context, serving)
        self._streams.add(stream)
        self._metrics.streams.inc()
        if self._captures is not None:
            self._captures.opened(stream.origin.cluster, stream.origin.node, stream.tell)
        try:
            async for frame in request_iterator:
                await self._take(stream, frame)
        except asyncio.CancelledError:
            if not self._draining:
                raise
            serving.uncancel()  # it was `drain` that ended us: the agent reads a plain end of stream
        finally:
            self._streams.discard(stream)
            self._metrics.streams.dec()
            if self._captures is not None:
                self._captures.closed(stream.origin.cluster, stream.origin.node, stream.tell)

    async def _welcome(self, first: pb.AgentFrame, context: Context) -> Origin:
        wrong = _wrong(first)
        if wrong is not None:
            self._metrics.rejects.labels("hello").inc()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, wrong)
        hello = first.hello
        if await self._clusters.is_simulated(hello.cluster, hello.simulated) != hello.simulated:
            self._metrics.rejects.labels("cluster").inc()
            holds, is_ = ("real", "simulated") if hello.simulated else ("simulated", "real")
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"cluster {hello.cluster!r} holds {holds} nodes and {hello.node_id!r} is {is_}: "
                "name another cluster for it",
            )
        now_unix_ns = self._now_unix_ns()
        welcome = pb.Welcome(
            session=f"{self._chance.getrandbits(64):016x}",
            oldest_start_unix_ms=oldest_start_unix_ms(now_unix_ns // 1_000_000),
            send_spread_ms=1_000 if self._is_small() else 9_500,
            credit_batches=self._credit_batches(),
            credit_bytes=CREDIT_BYTES,
            max_batch_bytes=BATCH_BYTES_MAX,
            server_wall_unix_ns=now_unix_ns,
        )
        self._sink.hello(hello, now_unix_ns // 1_000_000)
        await context.write(pb.CollectorFrame(welcome=welcome))
        return Origin(
            cluster=hello.cluster,
            node=hello.node_id,
            simulated=hello.simulated,
            spool_id=hello.spool_id,
        )

    async def _take(self, stream: _Stream, frame: pb.AgentFrame) -> None:
        origin = stream.origin
        match frame.WhichOneof("frame"):
            case "batch" if not self._draining:
                await self._in_order(stream, frame.batch.seq, frame.batch.seq)
                await self._group.put(stream, self._arrival(origin, frame.batch))
                self._metrics.unacked_bytes.set(self._group.unacked_bytes)
            case "gap" if not self._draining:
                await self._in_order(stream, frame.gap.first_seq, frame.gap.last_seq)
                await self._group.put(stream, of_gap(origin, frame.gap))
            case "status":
                self._take_status(origin, frame.status)
            case "goodbye":
                log.info("goodbye", node=origin.node, reason=frame.goodbye.reason)
                await self._group.put(stream, of_goodbye(origin, frame.goodbye))

    def _take_status(self, origin: Origin, status: pb.Status) -> None:
        try:
            columns = codec.decode_rows(status.newest)
        except PermanentError:
            self._metrics.rejects.labels("status").inc()
            return
        now_unix_ms = self._now_unix_ms()
        self._sink.status(
            origin.cluster, origin.node, origin.simulated, status, columns, now_unix_ms
        )

    async def _in_order(self, stream: _Stream, first_seq: int, last_seq: int) -> None:
        received = stream.received_seq
        hole = received is not None and first_seq > received + 1
        if first_seq < 1 or last_seq < first_seq or hole:
            self._metrics.rejects.labels("hole").inc()
            await stream.context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"seq {first_seq}..{last_seq} after {received}: every seq must come, in order",
            )
        stream.received_seq = max(received or 0, last_seq)

    def _arrival(self, origin: Origin, batch: pb.Batch) -> Arrival:
        try:
            arrival = of_batch(origin, batch, self._now_unix_ms())
            if origin.cluster in self._inventoried:
                # Where an operator keeps the inventory, what a node says of its slots changes nothing.
                arrival.tables.pop("slot", None)
            return arrival
        except PermanentError as exc:
            code, _, message = str(exc).partition(": ")
            return self._group.refusal(origin, batch, code, message)

    # ---- how commits ended

    def stored(self, group: Sequence[tuple[_Stream, Arrival]], stored_unix_ms: int) -> None:
        """Hand over what was stored, and acknowledge it."""
        rows: dict[_Stream, int] = {}
        for stream, arrival in group:
            stream.through_seq = max(stream.through_seq, arrival.last_seq)
            rows[stream] = rows.get(stream, 0) + arrival.interval_rows
            if arrival.refused is not None:
                self._reject(stream, arrival, *arrival.refused)
            else:
                self._hand_over(arrival, stored_unix_ms)
        told = [s for s in self._streams if s.without_credit and s not in rows]
        for stream in (*rows, *told):
            if stream in self._streams:
                self._acknowledge(stream, rows.get(stream, 0))

    def failed(self, retry_after_seconds: float) -> None:
        """Tell every agent to hold what is not acknowledged."""
        self._metrics.commit_failures.inc()
        self._failing = True
        self._serving(False)
        for stream in self._streams:
            self._acknowledge(stream, 0, retry_after_ms=int(retry_after_seconds * 1000))

    def committed(self, seconds: float) -> None:
        """Count a commit."""
        self._metrics.commit_seconds.observe(seconds)
        self._metrics.unacked_bytes.set(self._group.unacked_bytes)
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
        if "interval" in tables:
            self._sink.add(cluster, origin.node, simulated, tables["interval"], stored_unix_ms)

    def _reject(self, stream: _Stream, arrival: Arrival, code: str, message: str) -> None:
        self._metrics.rejects.labels(code).inc()
        if "quarantine" in arrival.tables:
            self._metrics.quarantined.inc()
        log.warning("batch_refused", node=arrival.origin.node, seq=arrival.last_seq, code=code)
        reject = pb.Reject(seq=arrival.last_seq, code=code, permanent=True, message=message[:500])
        stream.tell(pb.CollectorFrame(reject=reject))

    def _acknowledge(self, stream: _Stream, stored_rows: int, *, retry_after_ms: int = 0) -> None:
        credit_batches = 0 if retry_after_ms else self._credit_batches()
        stream.without_credit = credit_batches == 0
        ack = pb.Ack(
            through_seq=stream.through_seq,
            stored_rows=stored_rows,
            credit_batches=credit_batches,
            server_wall_unix_ns=self._now_unix_ns(),
            retry_after_ms=retry_after_ms,
        )
        stream.tell(pb.CollectorFrame(ack=ack))

    def _credit_batches(self) -> int:
        return 0 if self._failing or self._group.crowded else CREDIT_BATCHES


def _wrong(first: pb.AgentFrame) -> str | None:
    """Return what is wrong with the first frame of a stream, or None."""
    if not first.HasField("hello"):
        return "the first frame must be a Hello"
    hello = first.hello
    if hello.protocol_revision not in PROTOCOL_REVISIONS:
        return (
            f"protocol revision {hello.protocol_revision} is not one of "
            f"{PROTOCOL_REVISIONS.start} to {PROTOCOL_REVISIONS.stop - 1}: update the older side"
        )
    for name in ("cluster", "node_id", "spool_id"):
        text = getattr(hello, name)
        if not (1 <= len(text) <= NAME_CHARACTERS_MAX) or not text.isprintable():
            return f"{name} must have 1 to {NAME_CHARACTERS_MAX} printable characters"
    return None

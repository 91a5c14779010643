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
- Of two sessions of one node the newest stands; the other is ended, and told why.
- A stream gets credits for what is free (`ingest_limits`); one that ignores them is read more slowly.

There is no state per node that outlives its stream, but for what notices clones early: any number of
collectors may run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Final

import grpc
import structlog

from flopwatch_collector.audit.clones import Clone, Spools
from flopwatch_collector.audit.keeper import Keeper
from flopwatch_collector.captures import Captures
from flopwatch_collector.ingest_commit import Commits, Sink
from flopwatch_collector.ingest_limits import BATCH_BYTES_MAX
from flopwatch_collector.ingest_metrics import IngestMetrics
from flopwatch_collector.ingest_stream import Context, OpenStream, wrong
from flopwatch_collector.telemetry.arrival import (
    Origin,
    Unopened,
    of_gap,
    of_goodbye,
)
from flopwatch_collector.telemetry.clusters import ClusterKinds
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.trust.denylist import CHECK_SECONDS
from flopwatch_collector.trust.identity import Identity, IdentityError
from flopwatch_collector.trust.service import Trust
from flopwatch_proto import codec
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc

__all__ = ["Ingest", "Sink"]

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
HELLO_SECONDS: Final = 15.0
"""How long a stream may say nothing at first: agents wait as long for the answer."""


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
        trust: Trust | None = None,
        serving: Callable[[bool], None] = lambda serves: None,
        now_unix_ns: Callable[[], int] = time.time_ns,
        now_seconds: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self._sink = sink
        self._metrics = metrics
        self._inventoried = frozenset(inventoried)
        self._captures = captures
        self._trust = trust
        self._now_unix_ns = now_unix_ns
        self._now_seconds = now_seconds
        self._chance = chance or random.Random()
        self._oldest_unix_ms = store.oldest_unix_ms
        self._clusters = ClusterKinds(store)
        self._commits = Commits(
            store,
            sink,
            metrics=metrics,
            captures=captures,
            serving=serving,
            now_unix_ns=now_unix_ns,
            now_seconds=now_seconds,
        )
        self.keeper = Keeper(store, self._now_unix_ms)
        self._spools = Spools()
        self._newest: dict[tuple[str, str], OpenStream] = {}
        self._draining = False
        self._beside = [asyncio.create_task(self._tick()), asyncio.create_task(self.keeper.run())]

    async def run(self) -> None:
        """Return when commits were stopped. Raises: what ended them otherwise: rows are taken no more."""
        await self._commits.group.ended()

    async def drain(self, seconds_max: float, leave_seconds: float) -> None:
        """Send agents away, spread in time; store and acknowledge what came; end every stream.

        Args:
            seconds_max: the longest wait for the store.
            leave_seconds: how long agents have to leave by themselves.
        """
        self._draining = True
        streams = self._commits.streams
        spread_ms = 1_000 if self._commits.is_small else 30_000
        for stream in streams:
            after_ms = self._chance.randrange(spread_ms)
            stream.tell(pb.CollectorFrame(drain=pb.Drain(reconnect_after_ms=after_ms)))
        stored = await self._commits.group.stop(seconds_max)
        writing = {s.writing for s in streams if s.writing is not None}
        if writing:
            await asyncio.wait(writing, timeout=1.0)
        if serving := {s.serving for s in streams}:
            _, staying = await asyncio.wait(serving, timeout=leave_seconds)
            for task in staying:
                task.cancel()
        for task in self._beside:
            task.cancel()
        await asyncio.wait(self._beside)
        if stored:
            await asyncio.to_thread(self.keeper.flush)

    def _now_unix_ms(self) -> int:
        return self._now_unix_ns() // 1_000_000

    async def _tick(self) -> None:
        """Give credits back as buckets fill; ask from time to time whether streams may still last."""
        checked = self._now_seconds()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._commits.refill()
            self._metrics.words_lost.set(self.keeper.lost)
            if self._now_seconds() - checked >= CHECK_SECONDS:
                checked = self._now_seconds()
                self._check_identities()

    def _check_identities(self) -> None:
        for stream in self._commits.streams:
            if self._trust is not None and stream.identity is not None:
                why = self._trust.refusal(stream.context, stream.identity)
                if why is not None:
                    stream.end(grpc.StatusCode.PERMISSION_DENIED, why)

    # ---- one stream

    async def Stream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.AgentFrame], context: Context
    ) -> None:
        """Serve one node until it goes."""
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")
        first = None
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(aiter(request_iterator), None)
        except TimeoutError:
            self._metrics.rejects.labels("hello").inc()
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello came")
        if first is None:
            return
        serving = asyncio.current_task()
        assert serving is not None
        identity = await self._admit(first, context)
        stream = OpenStream(_origin(first.hello), context, serving, identity)
        await self._welcome(stream, first.hello)
        if self._draining:  # it said Hello too late to be sent away with the others
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")
        origin = stream.origin
        self._commits.streams.add(stream)
        self._metrics.streams.inc()
        self._stand(stream)
        if self._captures is not None:
            self._captures.opened(origin.cluster, origin.node, stream.tell)
        try:
            async for frame in request_iterator:
                await self._take(stream, frame)
        except asyncio.CancelledError:
            if stream.ended is None and not self._draining:
                raise
            serving.uncancel()  # it was us: the agent reads the reason, after a drain a plain end
            if stream.ended is not None:
                await context.abort(*stream.ended)
        finally:
            self._commits.streams.discard(stream)
            self._metrics.streams.dec()
            if self._newest.get((origin.cluster, origin.node)) is stream:
                del self._newest[origin.cluster, origin.node]
            if self._captures is not None:
                self._captures.closed(origin.cluster, origin.node, stream.tell)

    async def _admit(self, first: pb.AgentFrame, context: Context) -> Identity | None:
        """Refuse a stream with the reason, or return who it is by its certificate."""
        why = wrong(first)
        if why is not None:
            self._metrics.rejects.labels("hello").inc()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
        hello, identity = first.hello, None
        if self._trust is not None:
            try:
                identity = self._trust.admitted(context, hello.cluster, hello.node_id)
            except IdentityError as exc:
                self._metrics.rejects.labels("identity").inc()
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(exc))
        if await self._clusters.is_simulated(hello.cluster, hello.simulated) != hello.simulated:
            self._metrics.rejects.labels("cluster").inc()
            holds, is_ = ("real", "simulated") if hello.simulated else ("simulated", "real")
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"cluster {hello.cluster!r} holds {holds} nodes and {hello.node_id!r} is {is_}: "
                "name another cluster for it",
            )
        return identity

    async def _welcome(self, stream: OpenStream, hello: pb.Hello) -> None:
        now_unix_ns = self._now_unix_ns()
        credit_batches, credit_bytes = self._commits.credits()
        stream.without_credit = credit_batches == 0
        welcome = pb.Welcome(
            session=f"{self._chance.getrandbits(64):016x}",
            oldest_start_unix_ms=self._oldest_unix_ms(now_unix_ns // 1_000_000),
            send_spread_ms=1_000 if self._commits.is_small else 9_500,
            credit_batches=credit_batches,
            credit_bytes=credit_bytes,
            max_batch_bytes=BATCH_BYTES_MAX,
            server_wall_unix_ns=now_unix_ns,
        )
        self._sink.hello(hello, now_unix_ns // 1_000_000)
        self._hear_clock(stream, hello.wall_unix_ns // 1_000_000)
        self._hear_spool(stream, hello)
        await stream.context.write(pb.CollectorFrame(welcome=welcome))

    def _stand(self, stream: OpenStream) -> None:
        """Let the newest session of a node stand, and the one before it end."""
        origin, place = stream.origin, (stream.origin.cluster, stream.origin.node)
        older, self._newest[place] = self._newest.get(place), stream
        other = older is not None and older.origin.spool_id != origin.spool_id
        turns = self._spools.opened(*place, origin.spool_id, self._now_unix_ms())
        if turns:
            text = f"spool {origin.spool_id[:8]} takes turns with another: two hosts have this name"
            node, simulated = origin.node, origin.simulated
            self.keeper.cloned(
                Clone(cluster=origin.cluster, node=node, simulated=simulated, text=text)
            )
        if older is not None:
            with_what = (
                f"spool {origin.spool_id[:8]}, which is not yours" if other else "your spool"
            )
            self._metrics.superseded.inc()
            older.end(
                grpc.StatusCode.ABORTED,
                f"a newer session of {origin.node!r} stands, with {with_what}"
                + (": does another host have this name?" if other else ""),
            )

    async def _take(self, stream: OpenStream, frame: pb.AgentFrame) -> None:
        origin = stream.origin
        match frame.WhichOneof("frame"):
            case "batch" if not self._draining:
                await self._in_order(stream, frame.batch.seq, frame.batch.seq)
                batch = Unopened(
                    origin=origin,
                    batch=frame.batch,
                    skew_ms=stream.skew.ms,
                    inventoried=origin.cluster in self._inventoried,
                )
                await self._commits.put(stream, batch)
            case "gap" if not self._draining:
                await self._in_order(stream, frame.gap.first_seq, frame.gap.last_seq)
                await self._commits.put(stream, of_gap(origin, frame.gap))
            case "status":
                self._take_status(stream, frame.status)
            case "goodbye":
                log.info("goodbye", node=origin.node, reason=frame.goodbye.reason)
                await self._commits.put(stream, of_goodbye(origin, frame.goodbye))
        held_seconds = self._commits.held_seconds(stream, frame.ByteSize())
        if held_seconds > 0:
            self._metrics.held.inc()
            await asyncio.sleep(held_seconds)

    def _take_status(self, stream: OpenStream, status: pb.Status) -> None:
        self._hear_clock(stream, status.taken_unix_ms)
        self._hear_spool(stream, status)
        try:
            columns = codec.decode_rows(status.newest)
        except PermanentError:
            self._metrics.rejects.labels("status").inc()
            return
        now_unix_ms, origin = self._now_unix_ms(), stream.origin
        self._sink.status(
            origin.cluster, origin.node, origin.simulated, status, columns, now_unix_ms
        )

    def _hear_clock(self, stream: OpenStream, node_unix_ms: int) -> None:
        if node_unix_ms <= 0:
            return
        severity = stream.skew.hear(node_unix_ms, self._now_unix_ms())
        if severity is not None and stream.skew.ms is not None:
            origin = stream.origin
            self.keeper.skewed(
                origin.cluster, origin.node, origin.simulated, stream.skew.ms, severity
            )

    def _hear_spool(self, stream: OpenStream, said: pb.Hello | pb.Status) -> None:
        if said.HasField("totals"):
            origin = stream.origin
            self.keeper.word(
                origin.cluster, origin.node, origin.simulated, origin.spool_id, said.totals
            )

    async def _in_order(self, stream: OpenStream, first_seq: int, last_seq: int) -> None:
        received = stream.received_seq
        hole = received is not None and first_seq > received + 1
        if first_seq < 1 or last_seq < first_seq or hole:
            self._metrics.rejects.labels("hole").inc()
            await stream.context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"seq {first_seq}..{last_seq} after {received}: every seq must come, in order",
            )
        stream.received_seq = max(received or 0, last_seq)


def _origin(hello: pb.Hello) -> Origin:
    return Origin(
        cluster=hello.cluster,
        node=hello.node_id,
        simulated=hello.simulated,
        spool_id=hello.spool_id,
    )

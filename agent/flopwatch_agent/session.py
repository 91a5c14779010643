"""One session of a stream: a gRPC call from Hello to its end. See `stream` for the rules."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from flopwatch_agent.channel import Call, Channel, Refusal
from flopwatch_proto.v1 import telemetry_pb2 as pb

if TYPE_CHECKING:
    from flopwatch_agent.stream import Stream

_log = structlog.get_logger()

BACKLOG_BATCHES: Final = 3
"""From so many pending batches on they are a backlog: sent without waiting for the node's turn."""

PROBE_SECONDS: Final = 1.0
"""Wait before one batch is tried where the collector credits nothing and names no time."""

DRAIN_SECONDS: Final = 10.0
"""After Drain, how long acknowledgements are still awaited."""

PATIENCE_SECONDS: Final = 1.0
"""How long the writer waits for a disk that stalls before it goes on without it."""

_REJECT_CODES: Final = ("bad_hash", "bad_payload", "bad_rows", "too_large", "identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What may be in flight, whatever the collector credits."""

    batches_max: int = 8
    bytes_max: int = 1024 * 1024


class Session:
    """Sends and reads on one call.

    Attributes:
        reconnect_seconds: the collector asked to come back after that; None: it did not.
        said_goodbye: the goodbye went out.
        error: why the session ended, if not by the call's own status.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._spool_id = stream.spool.spool_id
        self._welcome: pb.Welcome | None = None
        self._hello_unix_ns = 0
        self._oldest_unix_ms = 0
        self._ended = False
        self._acked_seq = self._sent_seq = stream.spool.state.acked_seq
        self._in_flight: list[tuple[int, int]] = []
        self._fetching: asyncio.Task[list[pb.AgentFrame]] | None = None
        self._fetched_for: tuple[int, float | None] = (0, None)
        self._passed: set[int] = set()
        self._credit_batches = 0
        self._credit_bytes = 0
        self._resume_at: float | None = None
        self._status_at = -math.inf
        self._driver_state_told: str | None = None
        self.reconnect_seconds: float | None = None
        self.said_goodbye = False
        self.error = ""

    async def run(self, channel: Channel) -> None:
        """Hold the session until it ends.

        Raises:
            Refusal, BROKEN: as `channel` says; TimeoutError: no Welcome came.
        """
        async with asyncio.timeout(self._stream.welcome_seconds):
            call = await channel.stream()
        self._hello_unix_ns = self._stream.clock.wall_unix_ns()
        reader = asyncio.create_task(self._read(call))
        try:
            await call.write(self._stream.hello())
            await self._await_welcome()
            await self._write(call)
            if self.said_goodbye:
                await asyncio.wait({reader}, timeout=2.0)
        finally:
            if self._fetching is not None:
                self._fetching.cancel()
            reader.cancel()
            await asyncio.wait({reader})
            await call.close()
            if not reader.cancelled() and (broken := reader.exception()) is not None:
                raise broken

    async def _await_welcome(self) -> None:
        clock = self._stream.clock
        deadline = clock.monotonic_seconds() + self._stream.welcome_seconds
        while self._welcome is None and not self._ended:
            left = deadline - clock.monotonic_seconds()
            if left <= 0:
                raise TimeoutError("the collector did not answer Hello")
            await self._stream.woken(left)

    # ---- reading ----------------------------------------------------------------------------

    async def _read(self, call: Call) -> None:
        """Take every frame until the call ends; the one reader of the call."""
        try:
            while (frame := await call.read()) is not None:
                self._take(frame)
                self._stream.wake()
        except Refusal as exc:
            self.error = f"{exc.status.name}: {exc.message}"
        finally:
            self._ended = True
            self._stream.wake()

    def _take(self, frame: pb.CollectorFrame) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "welcome":
            self._take_welcome(frame.welcome)
        elif self._welcome is None:
            self.error = f"{kind} before Welcome"
        elif kind == "ack":
            self._take_ack(frame.ack)
        elif kind == "reject":
            self._take_reject(frame.reject)
        elif kind == "drain":
            self.reconnect_seconds = frame.drain.reconnect_after_ms / 1000
        elif kind == "capture":
            self._stream.captured(frame.capture)

    def _take_welcome(self, welcome: pb.Welcome) -> None:
        self._welcome = welcome
        self._credit_batches = welcome.credit_batches
        self._credit_bytes = welcome.credit_bytes or self._stream.window.bytes_max
        self._oldest_unix_ms = welcome.oldest_start_unix_ms
        self._stream.welcomed(welcome, self._hello_unix_ns)

    def _take_ack(self, ack: pb.Ack) -> None:
        self._credit_batches = ack.credit_batches
        self._credit_bytes = ack.credit_bytes or self._credit_bytes
        self._resume_at = None
        self._pass(min(ack.through_seq, self._sent_seq), ack.stored_rows)
        if ack.retry_after_ms > 0:
            self._take_back(ack.retry_after_ms / 1000)

    def _take_reject(self, reject: pb.Reject) -> None:
        code = reject.code if reject.code in _REJECT_CODES else "other"
        if not reject.permanent:
            self._take_back(PROBE_SECONDS)
            return
        rejects = self._stream.counters.rejects
        rejects[code] = rejects.get(code, 0) + 1
        _log.warning("batch_rejected", seq=reject.seq, code=reject.code, text=reject.message)
        if self._acked_seq < reject.seq <= self._sent_seq:
            self._passed.add(reject.seq)
            self._pass(self._acked_seq, 0)

    def _pass(self, through_seq: int, stored_rows: int) -> None:
        """Move the watermark, over rejected batches too."""
        through_seq = max(through_seq, self._acked_seq)
        while through_seq + 1 in self._passed:
            through_seq += 1
        self._acked_seq = through_seq
        self._passed = {seq for seq in self._passed if seq > through_seq}
        self._in_flight = [(seq, size) for seq, size in self._in_flight if seq > through_seq]
        if self._stream.spool.spool_id == self._spool_id:
            self._stream.acknowledged(through_seq, stored_rows)

    def _take_back(self, seconds: float) -> None:
        """Hold everything that is not acknowledged and send it again after the wait."""
        self._sent_seq = self._acked_seq
        self._in_flight.clear()
        self._passed.clear()
        self._resume_at = self._stream.clock.monotonic_seconds() + seconds

    # ---- writing ----------------------------------------------------------------------------

    async def _write(self, call: Call) -> None:
        """Send what may be sent until the call ends, it is time to leave, or the spool is another."""
        stream = self._stream
        while not self._ended and self.reconnect_seconds is None:
            if stream.spool.spool_id != self._spool_id:
                self.error = "the spool moved"
                return
            await self._send_status(call)
            hold = self._hold_seconds()
            if hold <= 0:
                await self._send_batches(call)
            if stream.goodbye_frame is not None:
                await call.write(pb.AgentFrame(goodbye=stream.goodbye_frame))
                self.said_goodbye = True
                await call.end()
                return
            await stream.woken(self._wait_seconds(hold))
        if not self._ended:
            await self._drain()

    async def _drain(self) -> None:
        """The collector goes, or we move: send nothing more, take the acknowledgements that still come."""
        clock = self._stream.clock
        deadline = clock.monotonic_seconds() + DRAIN_SECONDS
        while not self._ended and self._in_flight and clock.monotonic_seconds() < deadline:
            await self._stream.woken(deadline - clock.monotonic_seconds())
        self.error = "moved" if self._stream.moving else "drained by the collector"

    async def _send_batches(self, call: Call) -> None:
        """Send as much as credits and the window allow."""
        while not self._ended and self.reconnect_seconds is None:
            frames = await self._fetch()
            if not frames:
                return
            for frame in frames:
                self._sent_seq = frame.batch.seq or frame.gap.last_seq
                self._in_flight.append((self._sent_seq, frame.ByteSize()))
            for frame in frames:
                await call.write(frame)

    async def _fetch(self) -> list[pb.AgentFrame]:
        """Return what may be sent now; nothing where the disk stalls, and the writer is woken later."""
        stream = self._stream
        credits = self._credits()
        if self._fetching is None:
            batches = min(credits, stream.window.batches_max) - len(self._in_flight)
            if batches < 1:
                return []
            size_max = min(self._credit_bytes, stream.window.bytes_max)
            size = size_max - sum(size for _, size in self._in_flight)
            self._fetching = asyncio.create_task(self._read_spool(batches, size))
            self._fetched_for = self._sent_seq, self._resume_at
        await asyncio.wait({self._fetching}, timeout=PATIENCE_SECONDS)
        if not self._fetching.done():
            self._fetching.add_done_callback(lambda _: stream.wake())
            return []
        frames, self._fetching = self._fetching.result(), None
        if self._fetched_for != (self._sent_seq, self._resume_at):
            stream.wake()  # taken back meanwhile: what was asked for is not what comes next
            return []
        return frames

    async def _read_spool(self, batches_max: int, bytes_max: int) -> list[pb.AgentFrame]:
        spool, after_seq, alone = self._stream.spool, self._sent_seq, not self._in_flight
        if self._oldest_unix_ms > 0:
            # What the collector keeps no more becomes a gap before anything is sent.
            await spool.aside(spool.drop_older_than, self._oldest_unix_ms)
            self._oldest_unix_ms = 0
        return await spool.aside(
            spool.pending, after_seq, batches_max, bytes_max, at_least_one=alone
        )

    def _credits(self) -> int:
        """Return how many batches may be in flight; one to probe, after a wait."""
        now = self._stream.clock.monotonic_seconds()
        if self._resume_at is not None:
            if now < self._resume_at:
                return 0
            return max(1, self._credit_batches)
        if self._credit_batches == 0 and not self._in_flight:
            self._resume_at = now + PROBE_SECONDS
        return self._credit_batches

    def _hold_seconds(self) -> float:
        if self._welcome is None or self._stream.spool.pending_batches >= BACKLOG_BATCHES:
            return 0.0
        return self._stream.hold_seconds(self._welcome.send_spread_ms)

    def _wait_seconds(self, hold: float) -> float:
        waits = [self._stream.status_seconds]
        if hold > 0:
            waits.append(hold)
        if self._resume_at is not None:
            waits.append(max(0.0, self._resume_at - self._stream.clock.monotonic_seconds()))
        return min(waits)

    async def _send_status(self, call: Call) -> None:
        """Send the picture of now where it is time for it."""
        stream = self._stream
        now, pending = stream.clock.monotonic_seconds(), stream.spool.pending_batches
        backlog = pending - len(self._in_flight) >= BACKLOG_BATCHES
        changed = stream.driver_state != self._driver_state_told
        seconds = stream.status_seconds if backlog or changed else stream.idle_status_seconds
        if pending and not backlog:
            seconds += stream.status_seconds  # on its way: the picture after it is the truer one
        if now - self._status_at < seconds:
            return
        self._status_at = now
        self._driver_state_told = stream.driver_state
        await call.write(await stream.status(backlog=backlog))

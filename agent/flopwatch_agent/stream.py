"""The stream: what is in the spool, to the collector, over one gRPC call that lasts.

    connect ─► Hello ─► Welcome ─► Batch, Gap … ◄─ Ack, Reject, Drain ─► Goodbye
       ▲                                                  │
       └───── U(0, min(60 s, 1 s · 2^n)), for ever ◄──────┘  n = 0 again after 60 s of health

Rules

- The spool is the queue; the stream only remembers how far it has sent. What is in flight is at most
  what the collector credits and what Window allows; TCP is not the back-pressure, credits are.
- A new session sends again from the last acknowledged seq: rows have natural keys, so sending twice
  changes nothing.
- An Ack is the watermark. A permanent Reject is counted and passes it; ``retry_after_ms`` takes back what
  was not acknowledged and probes with one batch after the wait.
- A new interval is sent ``hash(node_id) mod send_spread_ms`` after the boundary, so that a fleet does not
  speak at once; a backlog is not held back.
- Once a minute, and when the driver's state is another, goes a Status of a few bytes: how the driver does
  and what waits in the spool. Beside a backlog it goes every 10 s and carries the newest rows.
- One task reads for the call's life, one writes; neither is cancelled in the middle of an operation, and
  neither waits for the disk: acknowledgements that come while it stalls become one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random as random_module
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from flopwatch_agent.channel import BROKEN, Channel, Refusal
from flopwatch_agent.clock import Clock, SystemClock, wall_unix_ms
from flopwatch_agent.session import PATIENCE_SECONDS, Session, Window
from flopwatch_agent.spool import Spool
from flopwatch_agent.spool_reader import Reader
from flopwatch_agent.spool_record import State
from flopwatch_proto.v1 import telemetry_pb2 as pb

__all__ = ["Counters", "Stream", "StreamIdentity", "Window"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamIdentity:
    """Who speaks. Attributes: boot_id: scope of the boot clock."""

    cluster: str
    node_id: str
    agent_version: str
    boot_id: str = ""
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between sessions. Attributes: healthy_seconds: a session this long starts over at n = 0."""

    base_seconds: float = 1.0
    max_seconds: float = 60.0
    healthy_seconds: float = 60.0

    def seconds(self, failures: int, random: random_module.Random) -> float:
        """Return the wait before the next attempt, with full jitter."""
        ceiling = min(self.max_seconds, self.base_seconds * 2.0 ** min(failures, 30))
        return random.uniform(0.0, ceiling)


@dataclass(slots=True, kw_only=True)
class Counters:
    """What happened on all sessions.

    Attributes:
        rejects: code → batches the collector will never take.
        captures_ignored: requests for readings that nobody here took, or that made trouble.
        skew_ms: collector's clock less ours, when last heard; None before.
        last_error: why the last session ended; empty while connected.
    """

    connected: bool = False
    sessions: int = 0
    reconnects: int = 0
    acked_rows: int = 0
    acked_batches: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    captures_ignored: int = 0
    skew_ms: float | None = None
    last_error: str = ""


class Stream:
    """Delivers one spool to one collector for as long as ``run`` runs.

    Args:
        target: HOST:PORT of the collector.
        random: of the jitter; tests pass a seeded one.
        channel: makes a channel to the target; the stream closes it after each session.
        interval_ms: the grid of the send spread.
        status_seconds, idle_status_seconds: between two Status, beside a backlog and without one.

    Attributes:
        on_capture: takes requests for readings; None: they are ignored, and counted.
        driver_state: as last told.
        moving: the session that stands gives way to the next one.
    """

    def __init__(
        self,
        target: str,
        identity: StreamIdentity,
        spool: Spool | Reader,
        *,
        random: random_module.Random | None = None,
        clock: Clock | None = None,
        channel: Callable[[str], Channel] = Channel,
        window: Window | None = None,
        backoff: Backoff | None = None,
        interval_ms: int = 10_000,
        status_seconds: float = 10.0,
        idle_status_seconds: float = 60.0,
        welcome_seconds: float = 15.0,
    ) -> None:
        self.target = target
        self.identity = identity
        self.spool = spool
        self.clock = clock or SystemClock()
        self.window = window or Window()
        self.interval_ms = interval_ms
        self.status_seconds = status_seconds
        self.idle_status_seconds = idle_status_seconds
        self.welcome_seconds = welcome_seconds
        self.counters = Counters()
        self.goodbye_frame: pb.Goodbye | None = None
        self.on_capture: Callable[[pb.CaptureRequest], None] | None = None
        self._random = random or random_module.Random()
        self._channel = channel
        self._backoff = backoff or Backoff()
        self.driver_state = ""
        self._newest = pb.IntervalRows()
        self._through_seq = 0
        self._forgetting: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._said_goodbye = asyncio.Event()
        self._hurry = False
        self._session_now: Session | None = None
        self.moving = False

    # ---- for the agent ----------------------------------------------------------------------

    def wake(self) -> None:
        """Say that the spool has something new."""
        self._wake.set()

    def tell(self, newest: pb.IntervalRows, driver_state: str) -> None:
        """Keep what Status says: the driver's state, and the newest rows where there is a backlog."""
        self._newest, self.driver_state = newest, driver_state

    def move(self) -> None:
        """Go on over a new channel: what is in flight is awaited, then the next session opens at once."""
        self.moving = True
        if self._session_now is not None:
            self._session_now.reconnect_seconds = 0.0
        self.wake()

    async def drained(self) -> None:
        """Return when everything in the spool is acknowledged; nothing is held back meanwhile."""
        self._hurry = True
        self.wake()
        try:
            while not self.spool.is_drained:
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._hurry = False

    async def goodbye(self, reason: str, back_in_ms: int = 0, timeout_seconds: float = 3.0) -> None:
        """Take leave, so that silence is expected; ``run`` returns after it.

        Args:
            reason: upgrade, stop, reboot or scenario_end.
            back_in_ms: when to expect this node again; 0: not said.
            timeout_seconds: longest wait; without a connection it returns at once.
        """
        self.goodbye_frame = pb.Goodbye(reason=reason, back_in_ms=back_in_ms)
        self.wake()
        if self.counters.connected:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._said_goodbye.wait(), timeout_seconds)

    async def run(self) -> None:
        """Keep a session for ever; return only after ``goodbye``."""
        failures = 0
        while self.goodbye_frame is None:
            began = self.clock.monotonic_seconds()
            wait_seconds = await self._session()
            if self.goodbye_frame is not None:
                return
            if self.clock.monotonic_seconds() - began >= self._backoff.healthy_seconds:
                failures = 0
            if wait_seconds is None:
                wait_seconds = self._backoff.seconds(failures, self._random)
                failures += 1
            self.counters.reconnects += 1
            await self._pause(wait_seconds)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past a goodbye."""
        sleeping = asyncio.ensure_future(self.clock.sleep(seconds))
        try:
            while self.goodbye_frame is None and not self.moving and not sleeping.done():
                self._wake.clear()
                waking = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
        finally:
            sleeping.cancel()
            self._wake.set()

    async def _session(self) -> float | None:
        """Hold one session; return the wait the collector asked for, or None."""
        channel = self._channel(self.target)
        self.moving = False
        session = self._session_now = Session(self)
        try:
            await session.run(channel)
        except (Refusal, *BROKEN, TimeoutError) as exc:
            session.error = session.error or _error_text(exc)
        finally:
            was, self.counters.connected = self.counters.connected, False
            self._session_now = None
            channel.close()
        if session.said_goodbye:
            self._said_goodbye.set()
        error = session.error or "ended by the collector"
        if error != self.counters.last_error or was:
            _log.info("stream_ended", target=self.target, error=error)
        self.counters.last_error = error
        return session.reconnect_seconds

    # ---- for the session --------------------------------------------------------------------

    def hello(self) -> pb.AgentFrame:
        """Return the first frame of a session."""
        who = self.identity
        return pb.AgentFrame(
            hello=pb.Hello(
                protocol_revision=1,
                agent_version=who.agent_version,
                cluster=who.cluster,
                node_id=who.node_id,
                simulated=who.simulated,
                boot_id=who.boot_id,
                spool_id=self.spool.spool_id,
                next_seq=self.spool.next_seq,
                wall_unix_ns=self.clock.wall_unix_ns(),
                boottime_ns=self.clock.boottime_ns(),
                totals=_totals(self.spool.state),
            )
        )

    async def status(self, *, backlog: bool) -> pb.AgentFrame:
        """Return the picture of now; only beside a backlog it has the newest rows, and how old it is."""
        state = self.spool.state
        oldest_unix_ms = 0
        if backlog:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    oldest_unix_ms = await self.spool.aside(self.spool.oldest_unix_ms)
        return pb.AgentFrame(
            status=pb.Status(
                taken_unix_ms=wall_unix_ms(self.clock),
                spool_batches=self.spool.pending_batches,
                spool_bytes=self.spool.pending_bytes,
                spool_oldest_unix_ms=max(0, oldest_unix_ms),
                rows_produced=state.produced_rows,
                rows_dropped=state.dropped_rows,
                driver_state=self.driver_state,
                newest=self._newest if backlog else None,
                totals=_totals(state),
            )
        )

    def welcomed(self, welcome: pb.Welcome, sent_unix_ns: int) -> None:
        """Note a session that stands."""
        now = self.clock.wall_unix_ns()
        if welcome.server_wall_unix_ns:
            middle = (sent_unix_ns + now) / 2
            self.counters.skew_ms = (welcome.server_wall_unix_ns - middle) / 1e6
        self.counters.connected = True
        self.counters.sessions += 1
        self.counters.last_error = ""
        _log.info("stream_connected", target=self.target, session=welcome.session)

    def acknowledged(self, through_seq: int, stored_rows: int) -> None:
        """Let the spool forget what the collector holds, as soon as the disk takes it."""
        self.counters.acked_rows += stored_rows
        self._through_seq = through_seq
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = asyncio.create_task(self._forget())

    async def _forget(self) -> None:
        """Pass the newest watermark on until the spool stands there."""
        spool, spool_id = self.spool, self.spool.spool_id
        # A spool that is drained may move to a file, whose numbers are others.
        while spool.spool_id == spool_id and spool.state.acked_seq < self._through_seq:
            before, through_seq = spool.state.acked_seq, self._through_seq
            await spool.aside(spool.acknowledge, through_seq)
            self.counters.acked_batches += through_seq - before
        self._changed.set()

    def captured(self, capture: pb.CaptureRequest) -> None:
        """Pass a request for readings on; whatever it does there, the session goes on."""
        if self.on_capture is not None:
            try:
                self.on_capture(capture)
                return
            except Exception as exc:
                _log.warning("capture_failed", id=capture.id[:64], error=_error_text(exc))
        self.counters.captures_ignored += 1

    def hold_seconds(self, spread_ms: int) -> float:
        """Return how long a new interval waits for this node's turn."""
        if self._hurry or self.goodbye_frame is not None or spread_ms <= 0:
            return 0.0
        spread_ms = min(spread_ms, self.interval_ms)
        offset_ms = send_offset_ms(self.identity.node_id, spread_ms)
        return max(0, offset_ms - wall_unix_ms(self.clock) % self.interval_ms) / 1000

    async def woken(self, seconds: float) -> None:
        """Return when woken, or after that many seconds."""
        # Not by `wait_for`: that forgets to be cancelled where it is woken at the same moment.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()


def send_offset_ms(node_id: str, spread_ms: int) -> int:
    """Return the node's own offset after an interval's boundary, 0 … spread - 1."""
    digest = hashlib.blake2b(node_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % spread_ms


def _totals(state: State) -> pb.SpoolTotals:
    """Return what the collector's audit holds against its tables."""
    return pb.SpoolTotals(
        next_seq=state.next_seq,
        acked_seq=state.acked_seq,
        acked_rows=state.acked_rows,
        produced_rows=state.produced_rows,
        dropped_rows=state.dropped_rows,
    )


def _error_text(exc: BaseException) -> str:
    if isinstance(exc, Refusal):
        return f"{exc.status.name}: {exc.message}"
    if isinstance(exc, BROKEN):
        return f"UNAVAILABLE: {exc}"
    return f"{type(exc).__name__}: {exc}"

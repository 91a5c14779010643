"""The agent's part: tags readings, starts probes where `policy` lets it, and hands on what they found.

A probe is started as a process of its own, or asked of systemd by a file that ``flopwatch-probe.path`` waits
for; the agent's loop never waits for either. A card that is given to somebody while it is probed is left at
once: the probe's own witness sees a process within a few hundredths of a second, and the agent sees the
allocation that comes before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from flopwatch_agent import calibrations
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.probing.budget import Accounts
from flopwatch_agent.probing.files import file_name, make_directory, write_whole
from flopwatch_agent.probing.guard import Order
from flopwatch_agent.probing.inbox import Inbox, Record
from flopwatch_agent.probing.lock import word_of
from flopwatch_agent.probing.policy import CardState, Limits, Watch, due, refusal
from flopwatch_agent.probing.tags import Tags
from flopwatch_agent.reading import Reading, Share
from flopwatch_agent.release import Window
from flopwatch_kernels.probe import PROBE_KINDS, ProbeKind, default_dtype
from flopwatch_proto.v1 import telemetry_pb2 as pb

TICK_SECONDS: Final = 1.0
STOP_SECONDS: Final = 5.0
WANTED: Final = "wanted"
"""Folder, beside the locks, of orders that wait for the unit."""

_log = structlog.get_logger()


class Running(Protocol):
    """A probe that was started."""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        ...

    def stop(self) -> None:
        """Ask it to end at once."""
        ...

    async def close(self) -> None:
        """Make sure that it has ended."""
        ...


class Start(Protocol):
    """How probes are started."""

    async def __call__(self, order: Order) -> Running:
        """Start one. Raises: OSError."""
        ...


class Probing:
    """A watcher of readings, with a loop beside it.

    Args:
        start: how probes are started; None: as the configuration says.

    Attributes:
        started, refused_results: counts since the agent started.
    """

    def __init__(self, config: AgentConfig, clock: Clock, start: Start | None = None) -> None:
        of = config.probing
        self._config = config
        self._clock = clock
        self._start: Start = start or (Child.start if of.runner == "child" else Unit.start)
        self._tags = Tags(config.probe_locks)
        self._inbox = Inbox(config.data)
        self._accounts = Accounts(config.data)
        self._window = Window(config.release_file)
        self._watch = Watch()
        self._kept = calibrations.kept(config.data)
        self._calibrated: frozenset[tuple[str, str, str]] = frozenset()
        self._limits = Limits(
            idle_ms=of.idle.milliseconds,
            wall_ms=of.wall.milliseconds,
            budget_ratio=of.budget_ratio,
            every_ms=of.every.milliseconds,
            turns=of.turns,
        )
        known = {kind.name: kind for kind in PROBE_KINDS if not kind.peer}
        self._loads = frozenset(kind.name for kind in PROBE_KINDS if kind.load)
        orders = [self._order(known[name]) for name in of.kinds if name in known]
        self._orders = {order.what: order for order in orders}
        self._running: tuple[str, Running] | None = None
        self._events: deque[pb.Event] = deque(maxlen=64)
        self.started = 0

    @property
    def refused_results(self) -> int:
        """Return how many files of the inbox made no sense."""
        return self._inbox.refused

    # ---- readings

    def tagged(self, reading: Reading) -> Reading:
        """Return a reading without what a probe of ours did; before anybody else sees it."""
        return self._tags.tagged(reading)

    def see(self, reading: Reading, shares: Sequence[Share]) -> None:
        """Remember since when the card is nobody's; end a probe on a card that is somebody's now."""
        self._watch.see(reading, shares)
        if self._running is not None and self._running[0] == reading.device.slot:
            reason = self._watch.cards[reading.device.slot].occupied
            if reason is not None:
                _log.info("probe_ended", slot=reading.device.slot, reason=reason)
                self._running[1].stop()

    def events(self) -> Sequence[pb.Event]:
        """Return what is worth telling since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    # ---- results

    def results(self) -> list[pb.Probe]:
        """Return results for the next payload, those of probes by hand too; `kept` removes them."""
        records = self._inbox.take()
        self._events.extend(_corrupt(record) for record in records if record.outcome == "corrupt")
        return [record.message() for record in records]

    def kept(self) -> None:
        """What `results` returned is in the spool."""
        self._inbox.kept()

    # ---- probes

    async def run(self) -> None:
        """Start probes until cancelled; at once over where that is switched off."""
        with contextlib.suppress(OSError):  # the agent's own, before root makes it for a hook
            make_directory(self._config.probe_locks)
        if not self._config.probing.enabled:
            return
        try:
            while True:
                await self._tick()
                await self._clock.sleep(TICK_SECONDS)
        finally:
            if self._running is not None:
                await self._running[1].close()

    async def _tick(self) -> None:
        if self._running is not None:
            if not self._running[1].over:
                return
            self._running = None
        found = self._next()
        if found is None:
            return
        slot, order = found
        try:
            running = await self._start(order)
        except OSError as exc:
            _log.warning("probe_not_started", slot=slot, error=str(exc))
            return
        self.started += 1
        self._running = (slot, running)
        _log.info("probe_started", slot=slot, what=order.what)

    def _next(self) -> tuple[str, Order] | None:
        """Return the card that waits longest, with what is due of it."""
        now_ns, now_ms = self._clock.boottime_ns(), wall_unix_ms(self._clock)
        released = self._window.open_until() is not None
        if (news := self._kept.news()) is not None:
            self._calibrated = frozenset(map(calibrations.subject, news.calibrations))
        waiting: list[tuple[int, str, Order]] = []
        for slot, card in self._watch.cards.items():
            if not card.device:
                continue
            try:
                account = self._accounts.load(card.device)
            except OSError:
                continue
            reason = refusal(
                card,
                account,
                self._limits,
                now_ns=now_ns,
                now_unix_ms=now_ms,
                node=self._config.node,
                released=released,
            )
            what = None if reason else due(account, self._plan(card), self._limits, now_ms)
            if what is not None:
                newest = max((run.start_unix_ms for run in account.runs), default=0)
                order = msgspec.structs.replace(self._orders[what], device=card.device)
                waiting.append((newest, slot, order))
        if not waiting or not self._accounts.writable():
            return None
        return min(waiting, key=lambda each: each[:2])[1:]

    def _plan(self, card: CardState) -> list[str]:
        """Return what is measured of a card: a calibration only until there is one under its driver."""
        return [
            what
            for what, order in self._orders.items()
            if order.kind not in self._loads
            or (
                card.driver is not None
                and (card.device, card.driver, order.dtype) not in self._calibrated
            )
        ]

    def _order(self, kind: ProbeKind) -> Order:
        of, dtype = self._config.probing, self._config.dtype
        return Order(
            device="",
            kind=kind.name,
            dtype=dtype if dtype in kind.dtypes else default_dtype(kind, on_cpu=False),
            policy="idle",
            wall_seconds=float(of.wall),
            memory_bytes_max=of.memory_bytes_max,
            niceness=of.niceness,
            budget_ratio=of.budget_ratio,
            locks=str(self._config.probe_locks.absolute()),
            data=str(self._config.data.absolute()),
        )


class Child:
    """A probe as a process of the agent's own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, order: Order) -> Child:
        """Start it."""
        text = msgspec.json.encode(order).decode()
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "flopwatch_agent.probing", text),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
            )
        )

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    def stop(self) -> None:
        """SIGTERM: its guard kills the probe and keeps the record of it."""
        if not self.over:
            self._process.terminate()

    async def close(self) -> None:
        """End it, by force where it does not listen."""
        self.stop()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Unit:
    """A probe that systemd starts, because a file asks for it."""

    def __init__(self, order: Order, path: Path) -> None:
        self._order = order
        self._path = path

    @classmethod
    async def start(cls, order: Order) -> Unit:
        """Leave the order where the unit looks."""
        path = Path(order.locks) / WANTED / f"{file_name(order.device)}.json"
        make_directory(path.parent)
        write_whole(path, msgspec.json.encode(order))
        return cls(order, path)

    @property
    def over(self) -> bool:
        """Whether the order was taken, and nobody holds the card's lock any more."""
        word = word_of(Path(self._order.locks), self._order.device)
        running = word is not None and word.ended_ns is None and word.alive
        return not self._path.exists() and not running

    def stop(self) -> None:
        """Take the order back, or end the process that carries it out."""
        self._path.unlink(missing_ok=True)
        word = word_of(Path(self._order.locks), self._order.device)
        if word is not None and word.ended_ns is None and word.alive:
            os.kill(word.pid, signal.SIGTERM)

    async def close(self) -> None:
        """As `stop`: systemd sees to the rest."""
        self.stop()


def take_wanted(locks: Path) -> list[Order]:
    """Return the orders that an agent left for the unit, and remove them."""
    orders = []
    for path in sorted((locks / WANTED).glob("*.json")):
        try:
            orders.append(msgspec.json.decode(path.read_bytes(), type=Order))
        except (OSError, msgspec.DecodeError) as exc:
            _log.warning("probe_order_refused", path=str(path), reason=str(exc))
        path.unlink(missing_ok=True)
    return orders


def _corrupt(record: Record) -> pb.Event:
    return pb.Event(
        slot=record.slot,
        time_unix_ms=record.start_unix_ms,
        kind="probe_corrupt",
        severity="error",
        text=f"{record.kind} {record.dtype}: {record.reason or 'a result is not what it must be'}"[
            :1000
        ],
        action="Drain the node, repeat the screen cold and warm; if it comes back, return the card.",
    )

"""The agent: sources ─► fold ─► payload ─► spool ─► stream, in one event loop.

- Readings are taken once a second on UTC-aligned ticks. A source that fails is counted, logged when that
  changes, and does not stop the others; one that is slow skips ticks of its own and of nobody else.
- When a row interval ends, what the fold has completed becomes one payload and is in the spool, on disk,
  before the stream hears of it.
- A device is declared in service from its first row, and again when it changes (another card, gone).
- The collector is somebody else's trouble: absent or not, the agent measures.
- SIGTERM: the open rows are closed and appended, the collector is given a few seconds to take them, and
  goodbye says that the silence to come is meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from flopwatch_agent.allocation import Allocation
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.ceilings import Ceilings
from flopwatch_agent.clock import Clock, SystemClock, seconds_to_next, wall_unix_ms
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.health import Health
from flopwatch_agent.identity import agent_version, boot_id
from flopwatch_agent.interval import Fold
from flopwatch_agent.jobs import Intake, JobTable, device_key
from flopwatch_agent.labels import Environments
from flopwatch_agent.outgoing import Outgoing
from flopwatch_agent.sources import Source, SourceReport
from flopwatch_agent.sources.host import HostProbe
from flopwatch_agent.sources.registry import SOURCES, SourceEntry, start_sources
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream, StreamIdentity
from flopwatch_agent.watchers import Watcher
from flopwatch_proto.errors import FlopwatchError
from flopwatch_proto.v1 import telemetry_pb2 as pb

TICK_MS: Final = 1_000
DRAIN_SECONDS: Final = 5.0
ALLOCATION_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 2.0
"""After an interval's boundary, how long the readings that close its rows are awaited."""

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Parts:
    """What an agent is made of; tests put their own in.

    Attributes:
        watchers: who looks at every reading beside the fold.
        entries: sources to try.
    """

    config: AgentConfig
    clock: Clock
    health: Health
    spool: Spool
    stream: Stream
    jobs: JobTable
    allocation: Allocation
    ceilings: Ceilings
    watchers: tuple[Watcher, ...] = ()
    entries: tuple[SourceEntry, ...] = SOURCES


def build(config: AgentConfig, clock: Clock | None = None) -> Parts:
    """Return the parts as the configuration says.

    Raises:
        UsageError: the data directory cannot be used.
    """
    clock = clock or SystemClock()
    spool = Spool.open(config.data / "spool", config.spool.limits(), clock=clock)
    identity = StreamIdentity(
        cluster=config.cluster,
        node_id=config.node,
        agent_version=agent_version(),
        boot_id=boot_id(),
        simulated=config.simulated,
    )
    interval_ms = config.interval.milliseconds
    stream = Stream(config.collector, identity, spool, clock=clock, interval_ms=interval_ms)
    environments = Environments()
    return Parts(
        config=config,
        clock=clock,
        health=Health(),
        spool=spool,
        stream=stream,
        jobs=JobTable(environments.labels),
        allocation=Processes(environments.labels),
        ceilings=Ceilings(config.data),
    )


class Agent:
    """One agent. ``run`` returns when ``stop`` was called."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.config
        self._clock = parts.clock
        self._health = parts.health
        self._fold = Fold(
            interval_ms=parts.config.interval.milliseconds,
            dtype=parts.config.dtype,
            achievable=parts.ceilings.flops,
            gap_ms_max=30_000,
        )
        self._stopping = asyncio.Event()
        self._reason = "stop"
        self._outgoing = Outgoing(
            node=parts.config.node,
            dtype=parts.config.dtype,
            interval_ms=parts.config.interval.milliseconds,
        )
        self._failing: dict[str, str] = {}
        self._driver_state = ""
        self._steps_told = 0
        self._read_unix_ms: dict[str, int] = {}
        self._taken = asyncio.Event()
        parts.ceilings.refresh()

    def stop(self, reason: str = "stop") -> None:
        """Ask the agent to end: ``stop`` or ``upgrade``."""
        self._reason = reason
        self._stopping.set()

    async def run(self) -> None:
        """Measure and deliver until stopped.

        Raises:
            UsageError: the socket of the jobs or the address of the metrics cannot be used.
        """
        config, parts = self._config, self._parts
        intake = Intake(config.jobs_socket, parts.jobs, self._monotonic_ms)
        sources: tuple[Source, ...] = ()
        try:
            if config.jobs.enabled:
                await intake.start()
            self._health.watch(parts.spool, parts.stream)
            if config.metrics.listen:
                _log.info("metrics_listening", address=self._health.serve(config.metrics.listen))
            sources = await start_sources(config, parts.entries)
            _log.info(
                "agent_started",
                node=config.node,
                cluster=config.cluster,
                collector=config.collector,
                sources=[source.name for source in sources],
            )
            await self._measure(sources)
        finally:
            for source in sources:
                with contextlib.suppress(Exception):
                    await source.close()
            await intake.close()
            self._health.close()
            parts.spool.close()

    async def _measure(self, sources: Sequence[Source]) -> None:
        async with asyncio.TaskGroup() as group:
            delivery = group.create_task(self._parts.stream.run(), name="stream")
            loops = [group.create_task(self._read_loop(s), name=s.name) for s in sources]
            loops.append(group.create_task(self._interval_loop(), name="interval"))
            loops.append(group.create_task(self._allocation_loop(), name="allocation"))
            loops.append(group.create_task(self._watchdog_loop(), name="watchdog"))
            if self._config.host.enabled:
                loops.append(group.create_task(self._host_loop(), name="host"))
            self._health.ready()
            await self._stopping.wait()
            self._health.stopping()
            for loop in loops:
                loop.cancel()
            await asyncio.wait(loops)
            await self._leave()
            delivery.cancel()

    async def _leave(self) -> None:
        self._outgoing.add_rows(self._fold.close(wall_unix_ms(self._clock)))
        self._hand_over()
        stream = self._parts.stream
        if stream.counters.connected:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.drained(), DRAIN_SECONDS)
        back = self._config.back_in.milliseconds if self._reason == "upgrade" else 0
        await stream.goodbye(self._reason, back)
        _log.info("agent_stopped", reason=self._reason, pending=self._parts.spool.pending_batches)

    # ---- loops ------------------------------------------------------------------------------

    async def _read_loop(self, source: Source) -> None:
        self._read_unix_ms[source.name] = 0
        while True:
            await self._clock.sleep(seconds_to_next(TICK_MS, self._clock.wall_unix_ns()))
            began = self._clock.monotonic_seconds()
            report = await self._read(source)
            spent = self._clock.monotonic_seconds() - began
            self._health.source_seconds.labels(source=source.name).observe(spent)
            missed = int(spent * 1000) // TICK_MS
            if missed:
                self._health.late_ticks.inc(missed)
            if report is not None:
                self._take(report)
                self._read_unix_ms[source.name] = wall_unix_ms(self._clock)
                self._taken.set()

    async def _read(self, source: Source) -> SourceReport | None:
        """Return a source's report, or None where it failed."""
        with self._guarded(source.name):
            return await source.read()
        return None

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Whatever one origin does, the others go on: a failure is counted, and logged when it changes."""
        try:
            yield
        except Exception as exc:  # one of the two shells
            self._health.source_failures.labels(source=name).inc()
            text = f"{type(exc).__name__}: {exc}"
            if self._failing.get(name) != text:
                self._failing[name] = text
                _log.warning("source_failing", source=name, error=text)
            return
        if self._failing.pop(name, None) is not None:
            _log.info("source_recovered", source=name)

    async def _interval_loop(self) -> None:
        interval_ms = self._config.interval.milliseconds
        while True:
            now = self._clock.wall_unix_ns()
            await self._clock.sleep(seconds_to_next(interval_ms, now))
            await self._settle(wall_unix_ms(self._clock) // interval_ms * interval_ms)
            self._parts.jobs.expire(self._monotonic_ms(), _is_running)
            self._parts.ceilings.refresh()
            stale_ms = wall_unix_ms(self._clock) - 3 * interval_ms
            self._outgoing.add_rows(self._fold.close(stale_ms))
            self._hand_over()

    async def _settle(self, boundary_unix_ms: int) -> None:
        """Wait, not for long, until every source has read beyond the boundary."""
        deadline = self._clock.monotonic_seconds() + SETTLE_SECONDS
        while any(read_ms < boundary_unix_ms for read_ms in self._read_unix_ms.values()):
            left = deadline - self._clock.monotonic_seconds()
            self._taken.clear()
            try:
                await asyncio.wait_for(self._taken.wait(), max(0.0, left))
            except TimeoutError:
                return

    async def _host_loop(self) -> None:
        probe = HostProbe()
        while True:
            with self._guarded("host"):
                self._outgoing.add_host(probe.read())
            period_ms = min(5_000, self._config.interval.milliseconds)
            await self._clock.sleep(seconds_to_next(period_ms, self._clock.wall_unix_ns()))

    async def _allocation_loop(self) -> None:
        while True:
            with self._guarded("allocation"):
                await self._parts.allocation.refresh()
            await self._clock.sleep(ALLOCATION_SECONDS)

    async def _watchdog_loop(self) -> None:
        while True:
            self._health.alive()
            await self._clock.sleep(5.0)

    # ---- from readings to payloads ----------------------------------------------------------

    def _take(self, report: SourceReport) -> None:
        if report.driver_state is not None:
            self._driver_state = report.driver_state
            self._health.driver_state(report.driver_state)
        self._outgoing.tell(report.events)
        jobs = self._parts.jobs
        for reading in report.readings:
            self._health.readings.inc()
            self._outgoing.declare(reading.device, reading.taken_unix_ms)
            shares = self._parts.allocation.shares(reading, jobs)
            finals = jobs.finals(device_key(reading.device))
            self._outgoing.add_rows(self._fold.add(reading, shares, finals))
            for watcher in self._parts.watchers:
                watcher.see(reading, shares)

    def _hand_over(self) -> None:
        """Append what there is as one payload, and wake the stream."""
        self._outgoing.tell((*self._spool_events(), *self._step_events()))
        self._outgoing.tell(self._parts.allocation.events())
        for watcher in self._parts.watchers:
            self._outgoing.tell(watcher.events())
        payload = self._outgoing.take()
        if payload is None:
            return
        self._parts.spool.append(payload)
        self._parts.stream.tell(self._outgoing.newest, self._driver_state)
        self._parts.stream.wake()

    def _spool_events(self) -> list[pb.Event]:
        events = []
        for kind, text in self._parts.spool.take_notices():
            severity = "info" if kind == "spool_recovered" else "error"
            _log.warning(kind, text=text)
            events.append(self._event(kind, severity, text))
        return events

    def _step_events(self) -> list[pb.Event]:
        """Steps of the wall clock that the fold saw since the last time."""
        new = self._fold.steps_total - self._steps_told
        self._steps_told = self._fold.steps_total
        return [
            pb.Event(
                slot=step.slot,
                time_unix_ms=step.after_unix_ms,
                kind="clock_step",
                code=step.after_unix_ms - step.before_unix_ms - round(step.elapsed_ms),
                severity="warning",
                text="the wall clock moved by something else than the time that passed (ms)",
            )
            for step in list(self._fold.steps)[-new:]
            if new
        ]

    def _event(self, kind: str, severity: str, text: str) -> pb.Event:
        return pb.Event(
            time_unix_ms=wall_unix_ms(self._clock), kind=kind, severity=severity, text=text[:1000]
        )

    def _monotonic_ms(self) -> float:
        return self._clock.monotonic_seconds() * 1000


async def run_agent(config: AgentConfig) -> None:
    """Run an agent until SIGTERM or SIGINT (stop) or SIGHUP (upgrade).

    Raises:
        UsageError: the configuration cannot be acted on.
    """
    agent = Agent(build(config))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.stop)
    loop.add_signal_handler(signal.SIGINT, agent.stop)
    loop.add_signal_handler(signal.SIGHUP, functools.partial(agent.stop, "upgrade"))
    try:
        await agent.run()
    except* FlopwatchError as group:
        raise group.exceptions[0] from None


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()

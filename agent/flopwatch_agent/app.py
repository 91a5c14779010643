"""The agent: sources ─► payloads ─► spool ─► stream, in one event loop.

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
import gc
import signal
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import structlog

from flopwatch_agent import pids
from flopwatch_agent.clock import seconds_to_next, wall_unix_ms
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.job_intake import Intake
from flopwatch_agent.local_http import LocalHttp
from flopwatch_agent.otlp import OtlpIntake
from flopwatch_agent.parts import Parts, build
from flopwatch_agent.payloads import Payloads
from flopwatch_agent.present import Present
from flopwatch_agent.release import Window
from flopwatch_agent.sources import Source, SourceReport
from flopwatch_agent.sources.dcgm import Dcgm
from flopwatch_agent.sources.host import HostProbe
from flopwatch_agent.sources.kernel_log import KernelLog
from flopwatch_agent.sources.registry import start_sources
from flopwatch_agent.trust import TrustGauges
from flopwatch_proto.errors import FlopwatchError
from flopwatch_proto.v1 import telemetry_pb2 as pb

TICK_MS: Final = 1_000
DRAIN_SECONDS: Final = 5.0
ALLOCATION_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 2.0
CANCEL_AGAIN_SECONDS: Final = 5.0
"""After an interval's boundary, how long the readings that close its rows are awaited."""

_log = structlog.get_logger()


class Agent:
    """One agent. ``run`` returns when ``stop`` was called."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.config
        self._clock = parts.clock
        self._health = parts.health
        self._stopping = asyncio.Event()
        self._reason = "stop"
        self._payloads = Payloads(parts)
        self._failing: dict[str, str] = {}
        self._read_unix_ms: dict[str, int] = {}
        self._taken = asyncio.Event()
        self._present = Present(
            newest=parts.newest, spool=parts.spool, stream=parts.stream, dtype=parts.config.dtype
        )
        self._http = LocalHttp({"/metrics": parts.health.page, "/now": self._now_page})
        parts.stream.on_capture = self._asked
        parts.ceilings.refresh()
        parts.calibrations.refresh()

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
        otlp = OtlpIntake(config.jobs.otlp, config.otlp_socket, parts.jobs, self._monotonic_ms)
        sources: tuple[Source, ...] = ()
        try:
            if config.jobs.enabled:
                await intake.start()
                await otlp.start()
            self._health.watch(parts.spool, parts.stream, self._payloads.outgoing, parts.recorder)
            self._health.show_cards(
                parts.newest,
                dtype=config.dtype,
                dcgm_hostname=config.node if config.metrics.dcgm_names else None,
            )
            self._health.registry.register(TrustGauges(parts.trust))
            self._health.show_jobs(parts.jobs)
            self._health.show_probing(parts.probing)
            if config.metrics.listen:
                address = await self._http.start(config.metrics.listen)
                _log.info("metrics_listening", address=address)
            sources = await start_sources(config, parts.entries)
            for source in sources:
                if isinstance(source, KernelLog):
                    self._health.show_kernel_log(source)
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
            await otlp.close()
            await self._http.close()
            parts.spool.close()

    async def _measure(self, sources: Sequence[Source]) -> None:
        async with asyncio.TaskGroup() as group:
            delivery = group.create_task(self._parts.stream.run(), name="stream")
            loops = [group.create_task(self._read_loop(s), name=s.name) for s in sources]
            loops.append(group.create_task(self._interval_loop(), name="interval"))
            loops.append(group.create_task(self._allocation_loop(), name="allocation"))
            loops.append(group.create_task(self._watchdog_loop(), name="watchdog"))
            watching = self._parts.trust.run(self._parts.streams)
            loops.append(group.create_task(watching, name="trust"))
            if self._parts.dcgm is not None:
                loops.append(group.create_task(self._dcgm_loop(self._parts.dcgm), name="dcgm"))
            loops.append(group.create_task(self._parts.probing.run(), name="probing"))
            if self._config.host.enabled:
                loops.append(group.create_task(self._host_loop(), name="host"))
            self._health.ready()
            await self._stopping.wait()
            self._health.stopping()
            pending = set(loops)
            while pending:  # a `wait_for` that is woken at the same moment forgets to be cancelled
                for loop in pending:
                    loop.cancel()
                _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)
            await self._leave()
            delivery.cancel()

    async def _leave(self) -> None:
        await self._payloads.close(wall_unix_ms(self._clock))
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
        self._health.expect(source.name)
        while True:
            now = self._clock.wall_unix_ns()
            # A capture may ask for more readings than one a second.
            tick_ms = TICK_MS // self._parts.recorder.readings_per_second(now // 1_000_000)
            await self._clock.sleep(seconds_to_next(tick_ms, now))
            began = self._clock.monotonic_seconds()
            report = await self._read(source)
            spent = self._clock.monotonic_seconds() - began
            self._health.source_seconds.labels(source=source.name).observe(spent)
            missed = int(spent * 1000) // tick_ms
            if missed:
                self._health.late_ticks.inc(missed)
            if report is not None:
                self._health.came(source.name)
                self._payloads.take(report)
                self._read_unix_ms[source.name] = wall_unix_ms(self._clock)
                self._taken.set()
                with self._guarded("captures"):
                    await self._payloads.answer_captures()

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
            self._parts.jobs.expire(self._monotonic_ms(), pids.exists)
            self._parts.ceilings.refresh()
            self._parts.calibrations.refresh()
            await self._payloads.close(wall_unix_ms(self._clock) - 3 * interval_ms)

    async def _settle(self, boundary_unix_ms: int) -> None:
        """Wait, not for long, until every source has read beyond the boundary."""
        deadline = self._clock.monotonic_seconds() + SETTLE_SECONDS
        while any(read_ms < boundary_unix_ms for read_ms in self._read_unix_ms.values()):
            left = deadline - self._clock.monotonic_seconds()
            self._taken.clear()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._taken.wait()
            except TimeoutError:
                return

    async def _host_loop(self) -> None:
        probe = HostProbe()
        while True:
            with self._guarded("host"):
                reading = await probe.take()
                self._payloads.outgoing.add_host(reading)
                self._parts.newest.see_host(reading)
            period_ms = min(10_000, self._config.interval.milliseconds)
            await self._clock.sleep(seconds_to_next(period_ms, self._clock.wall_unix_ns()))

    async def _dcgm_loop(self, dcgm: Dcgm) -> None:
        while True:
            with self._guarded("dcgm"):
                await dcgm.refresh()
            await self._clock.sleep(dcgm.pause_seconds)

    async def _allocation_loop(self) -> None:
        while True:
            with self._guarded("allocation"):
                await self._parts.allocation.refresh()
            await self._clock.sleep(ALLOCATION_SECONDS)

    async def _watchdog_loop(self) -> None:
        while True:
            self._health.alive()
            await self._clock.sleep(5.0)

    def _now_page(self) -> tuple[str, bytes]:
        now = self._present.now(
            self._clock.boottime_ns(), wall_unix_ms(self._clock), self._payloads.driver_state
        )
        return "application/json", msgspec.json.encode(now)

    def _asked(self, capture: pb.CaptureRequest) -> None:
        self._parts.recorder.request(capture, wall_unix_ms(self._clock))

    def _monotonic_ms(self) -> float:
        return self._clock.monotonic_seconds() * 1000


async def run_agent(config: AgentConfig) -> None:
    """Run an agent until SIGTERM or SIGINT (stop) or SIGHUP (upgrade); SIGUSR1 lets go of the cards.

    Raises:
        UsageError: the configuration cannot be acted on.
    """
    agent = Agent(build(config))
    # What stands now lives as long as the process: a tenth of the agent's time went into looking at it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.stop)
    loop.add_signal_handler(signal.SIGINT, agent.stop)
    loop.add_signal_handler(signal.SIGHUP, functools.partial(agent.stop, "upgrade"))
    loop.add_signal_handler(signal.SIGUSR1, Window(config.release_file).ask_by_signal)
    try:
        await agent.run()
    except* FlopwatchError as group:
        raise group.exceptions[0] from None

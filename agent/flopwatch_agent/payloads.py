"""From readings to payloads in the spool: what the loops of ``app.py`` feed and empty."""

from __future__ import annotations

import asyncio

import structlog

from flopwatch_agent.cadence import Cadence
from flopwatch_agent.clock import wall_unix_ms
from flopwatch_agent.interval import Fold
from flopwatch_agent.jobs import device_key
from flopwatch_agent.outgoing import Outgoing
from flopwatch_agent.parts import Parts
from flopwatch_agent.sources import SourceReport
from flopwatch_agent.watchers import Watcher
from flopwatch_proto.v1 import telemetry_pb2 as pb

_log = structlog.get_logger()


class Payloads:
    """Folds readings into rows; `hand_over` puts what is complete into the spool, as one payload.

    Attributes:
        outgoing: what the next payload will hold.
        driver_state: what the driver's source said last; empty before it said anything.
    """

    def __init__(self, parts: Parts) -> None:
        config = parts.config
        self._parts = parts
        self._clock = parts.clock
        self._fold = Fold(
            interval_ms=config.interval.milliseconds,
            dtype=config.dtype,
            achievable=parts.ceilings.flops,
            trust=parts.calibrations.trust,
            gap_ms_max=30_000,
            resume_unix_ms=parts.spool.newest_unix_ms,
        )
        self._cadence = Cadence()
        self._steps_told = 0
        self._watchers: tuple[Watcher, ...] = (
            *parts.watchers,
            parts.probing,
            parts.recorder,
            parts.newest,
        )
        self.outgoing = Outgoing(
            node=config.node, dtype=config.dtype, interval_ms=config.interval.milliseconds
        )
        self.driver_state = ""

    def take(self, report: SourceReport) -> None:
        """Fold what a source reported, and show it to everybody who watches."""
        parts, outgoing = self._parts, self.outgoing
        if report.driver_state is not None:
            self.driver_state = report.driver_state
            parts.health.driver_state(report.driver_state)
        outgoing.tell(report.events)
        jobs, dcgm = parts.jobs, parts.dcgm
        for reading in report.readings:
            parts.health.readings.inc()
            reading = parts.probing.tagged(reading)
            reading = parts.suspicion.checked(reading)
            if dcgm is not None:
                reading = dcgm.complete(reading)
            outgoing.declare(reading.device, reading.taken_unix_ms)
            shares = parts.allocation.shares(reading, jobs)
            if self._cadence.folds(reading):
                finals = jobs.finals(device_key(reading.device))
                outgoing.add_rows(self._fold.add(reading, shares, finals))
            for watcher in self._watchers:
                watcher.see(reading, shares)

    async def close(self, before_unix_ms: int) -> None:
        """End the rows of whom nothing was read since then, and hand everything over."""
        self.outgoing.add_rows(self._fold.close(before_unix_ms))
        await self._hand_over()

    async def _hand_over(self) -> None:
        """Append what there is as one payload, and wake the stream."""
        parts, outgoing, now_unix_ms = self._parts, self.outgoing, wall_unix_ms(self._clock)
        outgoing.tell((*self._spool_events(), *self._step_events()))
        outgoing.tell(parts.jobs.events(self._clock.monotonic_seconds() * 1000, now_unix_ms))
        outgoing.tell(parts.calibrations.events(now_unix_ms))
        outgoing.tell((*parts.allocation.events(), *parts.suspicion.events()))
        for watcher in self._watchers:
            outgoing.tell(watcher.events())
        outgoing.add_probes(parts.probing.results())
        payload = outgoing.take()
        if payload is None:
            return
        await self._append(payload)
        parts.probing.kept()
        parts.stream.tell(outgoing.newest, self.driver_state)
        parts.stream.wake()

    async def answer_captures(self) -> None:
        """Append the captures whose window is over, each part as a payload of its own: they are large."""
        captures = self._parts.recorder.due(wall_unix_ms(self._clock))
        for capture in captures:
            await self._append(pb.Payload(captures=[capture]))
        if captures:
            self._parts.stream.wake()

    async def _append(self, payload: pb.Payload) -> None:
        """In a thread, in order: a disk that stalls must not hold up readings and watchdog.

        Shielded: what was taken for the spool gets there, also where the loop that waits is cancelled.
        """
        spool = self._parts.spool
        await asyncio.shield(spool.aside(spool.append, payload))

    def _spool_events(self) -> list[pb.Event]:
        events = []
        for kind, text in self._parts.spool.take_notices():
            severity = "info" if kind == "spool_recovered" else "error"
            _log.warning(kind, text=text)
            now_unix_ms = wall_unix_ms(self._clock)
            events.append(
                pb.Event(time_unix_ms=now_unix_ms, kind=kind, severity=severity, text=text[:1000])
            )
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

"""The meter: every interval, what rosters and rows say is compared, and disputes become events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.live import Live
from flopwatch_collector.roster.dispute import Disputes, columns_of, words_of
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.watch import ARRIVAL_MS
from flopwatch_proto.rows import INTERVAL_MS

log = structlog.get_logger()


@dataclass(slots=True)
class Meter:
    """Compares the words of every cluster. Attributes: failures: ticks whose events were not stored."""

    live: Live
    store: TelemetryStore
    now_unix_ms: Callable[[], int]
    failures: int = 0
    disputes: Disputes = field(default_factory=Disputes)
    _tick_unix_ms: int = 0

    async def run(self) -> None:
        """Compare after each interval, for ever."""
        while True:
            try:
                await asyncio.to_thread(self.tick)
            except Exception as exc:  # a shell: a fault here must not end the collector
                self.failures += 1
                log.warning("dispute_failed", reason=f"{type(exc).__name__}: {exc}"[:500])
            due_unix_ms = self._tick_unix_ms + INTERVAL_MS + ARRIVAL_MS
            await asyncio.sleep(max(50, due_unix_ms - self.now_unix_ms()) / 1000)

    def tick(self) -> int:
        """Compare the newest interval whose rows have had time to arrive; return how many events it made.

        Raises:
            FlopwatchError: the store did not take them; they are not told again.
        """
        now_unix_ms = self.now_unix_ms()
        tick = (now_unix_ms - ARRIVAL_MS) // INTERVAL_MS * INTERVAL_MS
        if tick <= self._tick_unix_ms:
            return 0
        self._tick_unix_ms = tick
        events = []
        for cluster in self.live.clusters():
            found = self.live.evidence(cluster, Window(start=tick - INTERVAL_MS, end=tick))
            if found is None:
                continue
            simulated, known = found
            words = words_of(known.seats, known.rows, known.rosters, tick - 1)
            events += self.disputes.see(cluster, simulated, words, tick)
        if events:
            self.store.append("event", columns_of(events, now_unix_ms))
        return len(events)

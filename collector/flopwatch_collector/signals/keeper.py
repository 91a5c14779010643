"""The keeper of signals: reads each when it is due, and tells rules what was found last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.counted import observation
from flopwatch_collector.rules import Observation
from flopwatch_collector.signals import OWN, Answer, Signal

LOOK_S: Final = 5.0
OLD_MS: Final = 15 * 60_000

log = structlog.get_logger()


class SignalMetrics:
    """Counters of signals, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.failures = Counter(
            "flopwatch_signal_failures_total",
            "Times that something that rules are told could not be read.",
            ("signal",),
            registry=registry,
        )


class Signals:
    """Reads signals for ever. Called from the thread that judges, too."""

    def __init__(
        self, signals: Sequence[Signal], metrics: SignalMetrics, now_unix_ms: Callable[[], int]
    ) -> None:
        self._signals = signals
        self._metrics = metrics
        self._now_unix_ms = now_unix_ms
        self._due_unix_ms: dict[str, int] = {}
        self._answers: dict[str, tuple[int, Answer]] = {}
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Read what is due, for ever; ends when cancelled."""
        aside = Aside("signals")
        try:
            while True:
                await aside(self.look)
                await asyncio.sleep(LOOK_S)
        finally:
            await aside.end()

    def look(self) -> None:
        """Read what is due now."""
        for signal in self._signals:
            now = self._now_unix_ms()
            if now < self._due_unix_ms.get(signal.name, 0):
                continue
            self._due_unix_ms[signal.name] = now + round(1000 * signal.every_s)
            try:
                self._answers[signal.name] = now, signal.read(now)
            except Exception as exc:
                # A shell: what cannot be read is not known, and every other rule is judged.
                self._metrics.failures.labels(signal.name).inc()
                if signal.name not in self._failing:
                    self._failing.add(signal.name)
                    log.warning("signal_failed", signal=signal.name, reason=str(exc))
            else:
                self._failing.discard(signal.name)

    def of(self, base: Observation) -> list[Observation]:
        """Return what rules are told of a cluster at a tick. Args: base: its allocation."""
        told = []
        for at_unix_ms, answer in list(self._answers.values()):
            if self._now_unix_ms() - at_unix_ms > OLD_MS:
                continue
            told += [
                observation(base, rule, found.count, found.whole, causes=(found.kind, found.cards))
                for (cluster, rule), found in answer.items()
                if cluster == base.cluster
            ]
        return told


class Live(Protocol):
    """Live state, as far as it is needed here."""

    def clusters(self) -> Sequence[str]:
        """Clusters that are known now."""

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        """Observations of a cluster at a tick."""


class Observed:
    """Everything that rules are told: rows of now, and signals."""

    def __init__(self, live: Live, signals: Signals) -> None:
        self._live = live
        self.signals = signals

    def clusters(self) -> Sequence[str]:
        """Return the clusters that are known now, and the collector's own."""
        return sorted({*self._live.clusters(), OWN})

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        """Return the observations of a cluster at a tick; none of one without anything in service."""
        if cluster == OWN:
            return self.signals.of(_own(tick_unix_ms))
        seen = self._live.observe(cluster, tick_unix_ms)
        return [*seen, *self.signals.of(seen[0])] if seen else seen


def _own(tick_unix_ms: int) -> Observation:
    return Observation(
        cluster=OWN,
        rule="",
        simulated=False,
        device_kind="",
        tick_unix_ms=tick_unix_ms,
        lo=None,
        hi=None,
        value=None,
        coverage=None,
        in_service_cards=0.0,
        unseen_cards=0.0,
    )

"""Every signal of a collector, wired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from flopwatch_collector import presence
from flopwatch_collector.config import CollectorConfig
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.live import Live
from flopwatch_collector.signals.agents import AgentSignal
from flopwatch_collector.signals.keeper import Observed, SignalMetrics, Signals
from flopwatch_collector.signals.own import Health, OwnSignal
from flopwatch_collector.signals.probes import ProbeSignal
from flopwatch_collector.signals.regressions import RegressionSignal
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.tls import authorities_directory
from flopwatch_collector.trust.authority import Authorities

QUERY_BOUNDS: Final = {"max_execution_time": 30, "max_memory_usage": 2 * 1024**3}


class Whole(Protocol):
    """A collector, as far as it is needed here."""

    @property
    def config(self) -> CollectorConfig:
        """Return what is configured."""

    @property
    def registry(self) -> CollectorRegistry:
        """Return its counters."""

    @property
    def health(self) -> Health:
        """Return what the rollup says of itself."""


class Base(Protocol):
    """What a collector stands on, as far as it is needed here."""

    @property
    def store(self) -> TelemetryStore:
        """Return the telemetry store."""

    @property
    def control(self) -> ControlStore:
        """Return the control store."""

    @property
    def live(self) -> Live:
        """Return live state."""


@contextmanager
def observing(
    whole: Whole, base: Base, failures: Callable[[], int], now_unix_ms: Callable[[], int]
) -> Iterator[Observed]:
    """Yield what rules are told: rows of now, and signals, which somebody must `run`.

    Args:
        failures: ticks of the rules that failed so far.
    """
    directory, control, live = whole.config.directory, base.control, base.live
    handles = base.store.bounded(QUERY_BOUNDS, 1)
    signals = (
        AgentSignal(
            lambda now: presence.merged([*live.agents.listed(now), *presence.told(control)])
        ),
        OwnSignal(whole.registry, whole.health, control, failures, lambda: authorities(directory)),
        ProbeSignal(handles),
        RegressionSignal(handles, live.clusters),
    )
    try:
        yield Observed(live, Signals(signals, SignalMetrics(whole.registry), now_unix_ms))
    finally:
        handles.close()


def authorities(directory: Path) -> Mapping[str, int]:
    """Name of our own authority that signs → when it ends, unix ms; empty where there is none."""
    kept = Authorities(authorities_directory(directory))
    signing = [fact for fact in kept.facts() if fact["signs"]] if kept.numbers() else []
    return {f"authority {fact['authority']}": int(str(fact["expires_unix_ms"])) for fact in signing}

"""What the collector's `/metrics` says of rosters."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class RosterMetrics:
    """Gauges and counters of rosters, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"flopwatch_roster_{name}", meaning, labels, registry=registry)

        self.taken = gauge(
            "taken_timestamp_seconds",
            "When the newest roster was taken; one holds for 5 minutes.",
            "cluster",
            "source",
        )
        self.doubts = gauge(
            "doubts", "Reasons why the newest roster is less than the truth.", "cluster", "source"
        )
        self.hidden_cards = gauge(
            "hidden_cards", "Cards allocated to jobs that may not be seen.", "cluster", "source"
        )
        self.failures = Counter(
            "flopwatch_roster_failures_total",
            "Times that a scheduler did not answer, or its roster was not stored.",
            ("source",),
            registry=registry,
        )

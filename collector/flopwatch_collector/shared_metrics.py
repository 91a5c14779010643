"""What the collector's `/metrics` says where several share their stores."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class SharedMetrics:
    """Gauges and counters of sharing, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lease_held = Gauge(
            "flopwatch_lease_held",
            "1 while this collector holds the lease: pager, rollup.",
            ("lease",),
            registry=registry,
        )
        self.lease_failures = Counter(
            "flopwatch_lease_failures_total",
            "Times that the control store did not answer a renewal.",
            ("lease",),
            registry=registry,
        )
        self.overheard_dropped = Counter(
            "flopwatch_overheard_dropped_total",
            "Leaves and newest rows that other collectors did not get to know.",
            registry=registry,
        )
        self.presence_failures = Counter(
            "flopwatch_presence_failures_total",
            "Times that the control store was not told which agents this collector hears.",
            registry=registry,
        )

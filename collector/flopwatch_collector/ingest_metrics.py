"""Counters of ingest."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class IngestMetrics:
    """Counters of ingest, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"flopwatch_ingest_{name}_total", meaning, labels, registry=registry)

        self.batches = counter("batches", "Batches stored.")
        self.rows = counter("rows", "Interval rows stored, with those that were sent twice.")
        self.rejects = counter("rejects", "Frames refused for good.", "code")
        self.quarantined = counter("quarantined", "Batches set aside.")
        self.gaps = counter("gaps", "Losses that agents reported.")
        self.superseded = counter("superseded", "Sessions ended by a newer one of the same node.")
        self.held = counter("held", "Frames after which a node that ignored its credits was held.")
        self.commit_failures = counter("commit_failures", "Group commits that had to be repeated.")
        self.commit_seconds = Histogram(
            "flopwatch_ingest_commit_seconds",
            "Time of a group commit.",
            registry=registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.streams = Gauge("flopwatch_ingest_streams", "Open streams.", registry=registry)
        self.unacked_bytes = Gauge(
            "flopwatch_ingest_unacked_bytes", "Payload that waits for a commit.", registry=registry
        )
        self.words_lost = Gauge(
            "flopwatch_ingest_words_lost",
            "Events about clones and clocks, and spools' totals, that found no room since the start.",
            registry=registry,
        )

"""How the agent itself does: its own ``/metrics``, and what systemd is told.

The label sets are bounded: sources are a fixed list, and so are driver states, reject codes, what becomes
of a capture and why a job's word is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

import sdnotify
import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flopwatch_agent.clock import Clock, SystemClock
from flopwatch_agent.exposition import CardGauges, DcgmNames
from flopwatch_agent.job_message import DropReason
from flopwatch_agent.jobs import JobTable
from flopwatch_agent.newest import Coverage, Newest
from flopwatch_agent.outgoing import Outgoing
from flopwatch_agent.probing.schedule import Probing
from flopwatch_agent.recorder import Recorder
from flopwatch_agent.sources.kernel_log import KernelLog
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream
from flopwatch_agent.streams import Streams

DRIVER_STATES: Final = ("ok", "absent", "unresponsive", "mismatch", "lost", "released")
_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_log = structlog.get_logger()


class Health:
    """The agent's registry. What happens is counted here; spool and stream are asked when scraped."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock or SystemClock()
        self._coverage: dict[str, Coverage] = {}
        self.registry.register(_Sources(self._coverage, self._clock))
        self.readings = Counter(
            "flopwatch_agent_readings_total",
            "Readings of devices taken.",
            registry=self.registry,
        )
        self.source_seconds = Histogram(
            "flopwatch_source_duration_seconds",
            "Time that one read of a source took.",
            ["source"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.source_failures = Counter(
            "flopwatch_source_failures_total",
            "Reads of a source that failed.",
            ["source"],
            registry=self.registry,
        )
        self.late_ticks = Counter(
            "flopwatch_agent_ticks_missed_total",
            "Reading ticks that were skipped because the one before took too long.",
            registry=self.registry,
        )
        self._driver = Gauge(
            "flopwatch_agent_driver_state",
            "1 for the state that the driver is in.",
            ["state"],
            registry=self.registry,
        )
        self._notifier = sdnotify.SystemdNotifier()

    def watch(
        self,
        spool: Spool,
        stream: Stream | Streams,
        outgoing: Outgoing | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Show spool, stream and what found no room before them too, and the flight recorder."""
        self.registry.register(_Delivery(spool, stream, outgoing))
        if isinstance(stream, Streams):
            self.registry.register(stream)
        if recorder is not None:
            self.registry.register(_Recorded(recorder))

    def show_kernel_log(self, log: KernelLog) -> None:
        """Show which lines of the kernel log were lost."""
        self.registry.register(_Lines(log))

    def show_jobs(self, jobs: JobTable) -> None:
        """Show what jobs said, and what of it was dropped."""
        self.registry.register(_Said(jobs))

    def show_probing(self, probing: Probing) -> None:
        """Show what became of probes."""
        self.registry.register(_Probes(probing))

    def show_cards(self, newest: Newest, *, dtype: str, dcgm_hostname: str | None = None) -> None:
        """Show the cards, and what the agent costs.

        Args:
            dtype: of the cluster.
            dcgm_hostname: the node's name where dcgm-exporter's names are wanted too, else None.
        """
        boottime_ns = self._clock.boottime_ns
        self.registry.register(CardGauges(newest, boottime_ns, dtype=dtype))
        self.registry.register(_Cost(newest))
        if dcgm_hostname is not None:
            self.registry.register(DcgmNames(newest, boottime_ns, hostname=dcgm_hostname))

    def expect(self, source: str) -> None:
        """Expect a read of a source every second from now on."""
        self._coverage[source] = Coverage(self._clock.boottime_ns())

    def came(self, source: str) -> None:
        """Note a read of a source that came."""
        self._coverage[source].came(self._clock.boottime_ns())

    def page(self) -> tuple[str, bytes]:
        """Return ``/metrics``: its content type and its text."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def driver_state(self, state: str) -> None:
        """Note the driver's state; one that is not known shows as no state at all."""
        for known in DRIVER_STATES:
            self._driver.labels(state=known).set(1.0 if known == state else 0.0)

    def ready(self) -> None:
        """Tell systemd that the agent runs."""
        self._notifier.notify("READY=1")

    def alive(self) -> None:
        """Feed systemd's watchdog; called by the agent's own loop, whatever the driver does."""
        self._notifier.notify("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell systemd that the agent ends."""
        self._notifier.notify("STOPPING=1")


class _Delivery(Collector):
    """Spool and stream, read when scraped."""

    def __init__(self, spool: Spool, stream: Stream | Streams, outgoing: Outgoing | None) -> None:
        self._spool = spool
        self._stream = stream
        self._outgoing = outgoing

    def collect(self) -> list[Metric]:
        spool, state = self._spool, self._spool.state
        told = self._stream.counters
        rejects = CounterMetricFamily(
            "flopwatch_stream_rejects", "Batches the collector will never take.", labels=["code"]
        )
        for code, count in sorted(told.rejects.items()):
            rejects.add_metric([code], count)
        metrics: list[Metric] = [
            rejects,
            _gauge(
                "flopwatch_spool_batches", "Batches not yet acknowledged.", spool.pending_batches
            ),
            _gauge("flopwatch_spool_bytes", "Bytes not yet acknowledged.", spool.pending_bytes),
            _gauge("flopwatch_spool_degraded", "1 while the disk refuses.", spool.degraded),
            _total("flopwatch_spool_produced_rows", "Rows ever appended.", state.produced_rows),
            _total("flopwatch_spool_dropped_batches", "Batches lost.", state.dropped_batches),
            _total("flopwatch_spool_dropped_rows", "Rows lost.", state.dropped_rows),
            _total("flopwatch_spool_dropped_bytes", "Bytes lost.", state.dropped_bytes),
            _gauge("flopwatch_stream_connected", "1 while a session stands.", told.connected),
            _total("flopwatch_stream_acked_rows", "Rows acknowledged.", told.acked_rows),
            _total("flopwatch_stream_acked_batches", "Batches passed.", told.acked_batches),
            _total("flopwatch_stream_reconnects", "Sessions that ended.", told.reconnects),
            _total(
                "flopwatch_stream_captures_ignored",
                "Requests for readings that nobody took, or that made trouble.",
                told.captures_ignored,
            ),
        ]
        if self._outgoing is not None:
            text = "Events lost because too many happened between two payloads."
            name = "flopwatch_agent_dropped_events"
            metrics.append(_total(name, text, self._outgoing.dropped_events))
            text = "Events left out because another origin had told the same."
            name = "flopwatch_agent_repeated_events"
            metrics.append(_total(name, text, self._outgoing.repeated_events))
        if told.skew_ms is not None:
            text = "The collector's clock less ours."
            metrics.append(_gauge("flopwatch_stream_skew_seconds", text, told.skew_ms / 1000))
        return metrics


class _Recorded(Collector):
    """The flight recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def collect(self) -> list[Metric]:
        told = self._recorder.counters
        captures = CounterMetricFamily(
            "flopwatch_recorder_captures",
            "Requests for readings, by what became of them: answered, refused, repeated.",
            labels=["outcome"],
        )
        for outcome in ("answered", "refused", "repeated"):
            captures.add_metric([outcome], getattr(told, outcome))
        text = "Readings younger than 15 minutes that were given up for a bound."
        return [
            captures,
            _gauge("flopwatch_recorder_held_bytes", "Readings held.", self._recorder.held_bytes),
            _total("flopwatch_recorder_dropped_readings", text, told.dropped_readings),
        ]


class _Lines(Collector):
    """The kernel log."""

    def __init__(self, log: KernelLog) -> None:
        self._log = log

    def collect(self) -> list[Metric]:
        text = "Lines of the kernel log that were lost or could not be read."
        return [_total("flopwatch_kernel_log_dropped_lines", text, self._log.dropped_total)]


class _Said(Collector):
    """What jobs say of themselves."""

    def __init__(self, jobs: JobTable) -> None:
        self._jobs = jobs

    def collect(self) -> list[Metric]:
        dropped = CounterMetricFamily(
            "flopwatch_jobs_dropped", "What jobs said and was dropped, by why.", labels=["reason"]
        )
        for reason in get_args(DropReason):
            dropped.add_metric([reason], self._jobs.drops[reason])
        text = "Messages of jobs that were taken."
        return [dropped, _total("flopwatch_jobs_messages", text, self._jobs.messages_total)]


class _Probes(Collector):
    """Probes of ours."""

    def __init__(self, probing: Probing) -> None:
        self._probing = probing

    def collect(self) -> list[Metric]:
        started, refused = self._probing.started, self._probing.refused_results
        text = "Results of probes that made no sense, and were removed."
        return [
            _total("flopwatch_probing_started", "Probes that the agent itself started.", started),
            _total("flopwatch_probing_refused_results", text, refused),
        ]


class _Sources(Collector):
    """Which reads of the sources came."""

    def __init__(self, coverage: Mapping[str, Coverage], clock: Clock) -> None:
        self._coverage = coverage
        self._clock = clock

    def collect(self) -> list[Metric]:
        family = GaugeMetricFamily(
            "flopwatch_source_coverage_ratio",
            "Reads of a source that came in the last minute, of those expected.",
            labels=["source"],
        )
        now_ns = self._clock.boottime_ns()
        for source, coverage in self._coverage.items():
            family.add_metric([source], coverage.ratio(now_ns))
        return [family]


class _Cost(Collector):
    """What the agent and its children take of the host."""

    def __init__(self, newest: Newest) -> None:
        self._newest = newest

    def collect(self) -> list[Metric]:
        cpu = CounterMetricFamily(
            "flopwatch_agent_cpu_seconds", "Core-seconds of the agent and its children."
        )
        rss = GaugeMetricFamily(
            "flopwatch_agent_resident_bytes", "Resident memory of the agent and its children."
        )
        for host in self._newest.hosts()[-1:]:
            if host.agent_cpu_ms is not None:
                cpu.add_metric([], host.agent_cpu_ms / 1e3)
            if host.agent_rss_bytes is not None:
                rss.add_metric([], host.agent_rss_bytes)
        return [cpu, rss]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _total(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=float(value))

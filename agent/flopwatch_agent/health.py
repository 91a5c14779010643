"""How the agent itself does: its own ``/metrics``, and what systemd is told.

The label sets are bounded: sources are a fixed list, driver states and reject codes too.
"""

from __future__ import annotations

import threading
from typing import Final
from wsgiref.simple_server import WSGIServer

import sdnotify
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flopwatch_agent.config import split_address
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream
from flopwatch_proto.errors import UsageError

DRIVER_STATES: Final = ("ok", "absent", "unresponsive", "mismatch", "lost", "released")
_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_log = structlog.get_logger()


class Health:
    """The agent's registry. What happens is counted here; spool and stream are asked when scraped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        self._notifier = sdnotify.SystemdNotifier()

    def watch(self, spool: Spool, stream: Stream) -> None:
        """Show spool and stream too."""
        self.registry.register(_Delivery(spool, stream))

    def driver_state(self, state: str) -> None:
        """Note the driver's state; one that is not known shows as no state at all."""
        for known in DRIVER_STATES:
            self._driver.labels(state=known).set(1.0 if known == state else 0.0)

    def serve(self, listen: str) -> str:
        """Serve ``/metrics`` on HOST:PORT from a thread; return the address with its real port.

        Raises:
            UsageError: the address cannot be bound.
        """
        host, port = split_address(listen)
        try:
            self._server = start_http_server(port, addr=host, registry=self.registry)
        except OSError as exc:
            raise UsageError(
                f"metrics.listen = {listen!r}: {exc.strerror or exc}; give another with --http, "
                'or "" for none'
            ) from exc
        return f"{host}:{self._server[0].server_port}"

    def ready(self) -> None:
        """Tell systemd that the agent runs."""
        self._notifier.notify("READY=1")

    def alive(self) -> None:
        """Feed systemd's watchdog; called by the agent's own loop, whatever the driver does."""
        self._notifier.notify("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell systemd that the agent ends."""
        self._notifier.notify("STOPPING=1")

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join(timeout=2.0)
            self._server = None


class _Delivery(Collector):
    """Spool and stream, read when scraped."""

    def __init__(self, spool: Spool, stream: Stream) -> None:
        self._spool = spool
        self._stream = stream

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
        ]
        if told.skew_ms is not None:
            text = "The collector's clock less ours."
            metrics.append(_gauge("flopwatch_stream_skew_seconds", text, told.skew_ms / 1000))
        return metrics


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _total(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=float(value))

"""The port that agents connect to: gRPC options, health, and how it opens and closes."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from flopwatch_collector.captures import Captures
from flopwatch_collector.ingest import Ingest, Sink
from flopwatch_collector.ingest_metrics import IngestMetrics
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.tls import check_ingest
from flopwatch_collector.trust.service import Trust
from flopwatch_proto.errors import UsageError
from flopwatch_proto.v1 import telemetry_pb2_grpc

LEAVE_SECONDS: Final = 3.0
"""How long agents that were sent away have to leave by themselves."""
CLOSE_SECONDS: Final = 2.0
SERVICE: Final = "flopwatch.v1.Ingest"

SERVER_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a busy port is an error, not a lottery
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # For a peer behind something that still answers for it: else it would be 80 s.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.settings_timeout", 10_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.http2.bdp_probe", 0),  # 103 KiB per stream that does not read, instead of 1.4 MiB
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 1024**2),
    ("grpc.max_metadata_size", 8_192),
    ("grpc.absolute_max_metadata_size", 8_192),  # between the two it would be left to chance
    ("grpc.max_concurrent_streams", 4),
)


class IngestServer:
    """The gRPC server around `Ingest`, with health. Attributes: port: the one that was bound."""

    def __init__(
        self,
        store: TelemetryStore,
        sink: Sink,
        *,
        registry: CollectorRegistry,
        credentials: grpc.ServerCredentials | None = None,
        trust: Trust | None = None,
        streams_max: int = 10_000,
        inventoried: Collection[str] = (),
        captures: Captures | None = None,
        now_unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._sink = sink
        self._metrics = IngestMetrics(registry)
        self._credentials = credentials
        self._trust = trust
        self._streams_max = streams_max
        self._inventoried = inventoried
        self._captures = captures
        self._now_unix_ns = now_unix_ns
        self.port = 0

    async def start(self, address: str) -> int:
        """Listen on HOST:PORT (port 0: any free one) and return the port.

        Raises:
            UsageError: the address cannot be bound.
        """
        _check_free(address)
        self._server = grpc.aio.server(
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=self._streams_max * 6 // 5,
            compression=grpc.Compression.NoCompression,
        )
        credentials = self._credentials
        if self._trust is not None:
            credentials = self._trust.server_credentials()
            self._trust.serve_on(self._server)
        check_ingest(address, credentials is not None)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as exc:
            raise UsageError(
                f"--grpc: cannot listen on {address}: it is in use, or no address of this host"
            ) from exc
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._ingest = Ingest(
            self._store,
            self._sink,
            metrics=self._metrics,
            inventoried=self._inventoried,
            captures=self._captures,
            trust=self._trust,
            serving=self._serve,
            now_unix_ns=self._now_unix_ns,
        )
        telemetry_pb2_grpc.add_IngestServicer_to_server(self._ingest, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return self.port

    async def run(self) -> None:
        """Return when commits were stopped. Raises: what ended them otherwise."""
        await self._ingest.run()

    async def stop(self, seconds_max: float = 10.0) -> None:
        """Drain: agents are sent away, what came is stored and acknowledged, then the port closes."""
        await self._health.enter_graceful_shutdown()
        await self._ingest.drain(seconds_max, LEAVE_SECONDS)
        await self._server.stop(CLOSE_SECONDS)

    def _serve(self, serves: bool) -> None:
        status = health_pb2.HealthCheckResponse
        state = status.SERVING if serves else status.NOT_SERVING
        self._telling = asyncio.create_task(self._tell(state))

    async def _tell(self, state: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, state)


def _check_free(address: str) -> None:
    """Bind the address once: of one in use the library would write lines of its own.

    Raises:
        UsageError: the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as exc:
            raise UsageError(
                f"--grpc: cannot listen on {address}: {exc.strerror or exc}; "
                "name another port, or 0 for any free one"
            ) from exc

"""What jobs say by OpenTelemetry metrics: OTLP/gRPC on a unix socket and a loopback port.

| metric (gauge or cumulative sum) | means |
|---|---|
| ``flopwatch.model_flops_total`` | model FLOPs since the process started, of its card |
| ``flopwatch.tokens_total`` | tokens since then |
| ``flopwatch.step`` | number of the newest step |
| ``flopwatch.mfu`` | the MFU that the job itself computes, 0..1 |

Resource attributes: ``job`` (needed), ``team``, ``dtype``, ``convention``, ``workload_class``, ``phase``,
``flops_per_token`` and ``device`` (``cuda:<uuid>`` or ``cpu``). Without a device the figures are of one card,
and count on every card that the job holds on this host: then one exporter of a job may speak per host.

Other metrics are nobody's business and are ignored; what cannot be used is refused by OTLP's partial
success, and counted. Whoever can reach the port is believed: it is bound to loopback.

The server is grpclib's, as everything of the agent that speaks gRPC (see `channel`). It knows no bound for
messages, so their headers are read by hand: what is too large is refused, and what of it is in flight stays
within the HTTP/2 window.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server

from flopwatch_agent.job_message import EVERY_CARD, Message
from flopwatch_agent.jobs import JobTable
from flopwatch_agent.otlp_messages import DELTA, EXPORT_METHOD, message
from flopwatch_proto.errors import UsageError

MESSAGE_BYTES_MAX: Final = 1 << 20
CALLS_MAX: Final = 16
CALL_SECONDS_MAX: Final = 10.0
EXPORTERS_MAX: Final = 1024
REPORTED_MS_MAX: Final = 300_000.0
"""An MFU holds for the time since the export before, and for no longer than this."""

_NAMES: Final = {
    f"flopwatch.{name}": name for name in ("model_flops_total", "tokens_total", "step", "mfu")
}
_HEADER: Final = struct.Struct(">BI")  # compressed or not, length
_CONFIGURATION: Final = Configuration(
    http2_connection_window_size=MESSAGE_BYTES_MAX, http2_stream_window_size=MESSAGE_BYTES_MAX
)
_log: Final = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class _Exporter:
    """Attributes: number: its negative pid in the table; steps: made since it was first heard."""

    number: int
    heard_ms: float
    step: int | None = None
    steps: float = 0.0
    reported_ms: float = 0.0
    reported_mfu_ms: float = 0.0


class Metrics:
    """Turns exports into messages of the job table. Pure; time is passed in.

    Args:
        table: takes the messages.
    """

    def __init__(self, table: JobTable) -> None:
        self._table = table
        self._exporters: dict[tuple[str, ...], _Exporter] = {}
        self._numbers = 0

    def take(self, request: Any, now_ms: float) -> tuple[int, str]:
        """Take an export; return how many of its points are refused, and why."""
        refused, why = 0, ""
        for resource_metrics in request.resource_metrics:
            attributes = {
                entry.key: entry.value.string_value or str(entry.value.int_value)
                for entry in resource_metrics.resource.attributes
            }
            values, deltas = _values(resource_metrics)
            if deltas:
                refused, why = refused + deltas, "flopwatch.*: sums must be cumulative"
            if not values:
                continue
            job = attributes.get("job") or attributes.get("flopwatch.job")
            exporter = None if not job else self._exporter(job, attributes, now_ms)
            if job and exporter is not None:
                self._apply(job, exporter, attributes, values, now_ms)
                continue
            refused += len(values)
            why = "resource attribute job is missing" if not job else "too many exporters"
        if refused:
            self._table.drops["otlp"] += refused
        return refused, why

    def _exporter(self, job: str, attributes: dict[str, str], now_ms: float) -> _Exporter | None:
        key = (job, *(attributes.get(n, "") for n in ("device", "service.instance.id")))
        found = self._exporters.get(key)
        if found is None:
            if len(self._exporters) >= EXPORTERS_MAX:
                oldest = min(self._exporters, key=lambda k: self._exporters[k].heard_ms)
                if now_ms - self._exporters[oldest].heard_ms < REPORTED_MS_MAX:
                    return None
                del self._exporters[oldest]
            self._numbers += 1
            found = self._exporters[key] = _Exporter(number=-self._numbers, heard_ms=now_ms)
        return found

    def _apply(
        self,
        job: str,
        exporter: _Exporter,
        attributes: dict[str, str],
        values: dict[str, float],
        now_ms: float,
    ) -> None:
        passed_ms, exporter.heard_ms = now_ms - exporter.heard_ms, now_ms
        event, said = None, values.get("step")
        step = int(said) if said is not None and 0 <= said <= 2**53 else None
        if step is not None:
            if exporter.step is not None:
                exporter.steps += max(0, step - exporter.step)
                event = "restart" if step < exporter.step else None
            exporter.step = step
        mfu = values.get("mfu")
        if mfu is not None and 0.0 <= mfu <= 1.5 and passed_ms <= REPORTED_MS_MAX:
            exporter.reported_ms += passed_ms
            exporter.reported_mfu_ms += mfu * passed_ms
        reported = exporter.reported_ms > 0.0
        self._table.apply(
            Message(
                v=1,
                pid=exporter.number,
                job=job,
                device=attributes.get("device") or EVERY_CARD,
                event=event,
                step=step,
                steps_total=None if exporter.step is None else exporter.steps,
                model_flops_total=values.get("model_flops_total"),
                tokens_total=values.get("tokens_total"),
                flops_per_token=_positive(attributes.get("flops_per_token")),
                reported_ms_total=exporter.reported_ms if reported else None,
                reported_mfu_ms_total=exporter.reported_mfu_ms if reported else None,
                team=attributes.get("team"),
                dtype=attributes.get("dtype"),
                convention=attributes.get("convention"),
                workload_class=attributes.get("workload_class"),
                phase=attributes.get("phase"),
            ),
            now_ms,
            exporter=True,
        )


def _values(resource_metrics: Any) -> tuple[dict[str, float], int]:
    """Return the newest value of each metric of ours, and how many points were deltas."""
    newest: dict[str, tuple[int, float]] = {}
    deltas = 0
    for scope in resource_metrics.scope_metrics:
        for metric in scope.metrics:
            name = _NAMES.get(metric.name)
            if name is None:
                continue
            if metric.sum.aggregation_temporality == DELTA:
                deltas += len(metric.sum.data_points)
                continue
            for point in (*metric.gauge.data_points, *metric.sum.data_points):
                value = point.as_double + point.as_int  # one of them is set
                at = point.time_unix_nano
                if math.isfinite(value) and at >= newest.get(name, (0, 0.0))[0]:
                    newest[name] = (at, value)
    return {name: value for name, (_, value) in newest.items()}, deltas


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0.0 < value < math.inf else None


class OtlpIntake:
    """The server. A port that is taken leaves the socket; that is no reason to stop measuring.

    Args:
        address: HOST:PORT; empty: none. Port 0 picks a free one.
        path: of the unix socket; anybody on the host may write to it.
        table: takes what is said.
        now_ms: a monotonic clock.

    Attributes:
        port: where it listens; 0: nowhere.
    """

    def __init__(
        self, address: str, path: Path, table: JobTable, now_ms: Callable[[], float]
    ) -> None:
        self.address, self.path, self.port = address, path, 0
        self._metrics = Metrics(table)
        self._now_ms = now_ms
        self._servers: list[Server] = []
        self._calls = 0

    def __mapping__(self) -> dict[str, Handler]:
        """Return the one method there is, as grpclib asks for it."""
        kinds = (message("Request"), message("Response"))
        return {EXPORT_METHOD: Handler(self._export, Cardinality.UNARY_UNARY, *kinds)}

    async def start(self) -> None:
        """Listen.

        Raises:
            UsageError: the socket cannot be made.
        """
        if not self.address:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            await self._serve(path=str(self.path))
            self.path.chmod(0o666)
        except OSError as exc:
            raise UsageError(f"[jobs] otlp_socket = {str(self.path)!r}: {exc}") from exc
        host, _, port = self.address.rpartition(":")
        try:
            listener = socket.create_server((host.strip("[]"), int(port)))
            await self._serve(sock=listener)
            self.port = int(listener.getsockname()[1])
        except OSError as exc:
            _log.warning("otlp_port_taken", address=self.address, error=str(exc))
        _log.info("otlp_listening", port=self.port, socket=str(self.path))

    async def close(self) -> None:
        """Stop; safe unstarted and twice."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
            await server.wait_closed()
        if servers:
            with contextlib.suppress(OSError):
                self.path.unlink()

    async def _serve(self, **where: Any) -> None:
        server = Server([self], config=_CONFIGURATION)
        await server.start(**where)
        self._servers.append(server)

    async def _export(self, call: Any) -> None:
        if self._calls >= CALLS_MAX:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "too many exports at once")
        self._calls += 1
        try:
            async with asyncio.timeout(CALL_SECONDS_MAX):
                request = await _read(call)
        except TimeoutError:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the export never came") from None
        finally:
            self._calls -= 1
        refused, why = self._metrics.take(request, self._now_ms())
        response = message("Response")()
        if refused:
            response.partial_success.rejected_data_points = refused
            response.partial_success.error_message = why
        await call.send_message(response)


async def _read(call: Any) -> Any:
    """Return a call's export, if it is small enough and in clear."""
    header = await call._stream.recv_data(_HEADER.size)
    if len(header) != _HEADER.size:
        raise GRPCError(Status.INVALID_ARGUMENT, "no message")
    compressed, length = _HEADER.unpack(header)
    if compressed:
        raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not read")
    if length > MESSAGE_BYTES_MAX:
        raise GRPCError(Status.RESOURCE_EXHAUSTED, f"more than {MESSAGE_BYTES_MAX} bytes")
    try:
        return message("Request").FromString(await call._stream.recv_data(length))
    except DecodeError:
        raise GRPCError(Status.INVALID_ARGUMENT, "no export of metrics") from None

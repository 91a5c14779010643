"""One connection to a gRPC server: a stream of frames, or one question and its answer.

grpclib (HTTP/2 by h2, on the loop that is there anyway) instead of grpcio, whose core brings threads of its
own: up to 16 on a large host, each awake several times a second, and 9 MiB. See docs/adr/0017.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel as _Client
from grpclib.client import StreamStreamMethod, UnaryUnaryMethod
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from h2.exceptions import H2Error

from flopwatch_proto.v1 import telemetry_pb2 as pb

__all__ = ["BROKEN", "Call", "Channel", "Refusal", "Status", "ask", "ask_once"]

Answer = TypeVar("Answer", bound=Message)

WINDOW_BYTES: Final = 1024 * 1024
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
KEEPALIVE_SECONDS: Final = 20.0
KEEPALIVE_TIMEOUT_SECONDS: Final = 10.0
SHUTDOWN_SECONDS: Final = 1.0
"""How long a connection that is closed waits for the other side's word that TLS ends."""

_STREAM: Final = "/flopwatch.v1.Ingest/Stream"
_UNHEARD: Final = (
    "the collector closed the connection before a word, as it does with certificates that it does not "
    "believe: its log says why"
)

Refusal = GRPCError
"""A status other than OK: `status` and `message`."""

BROKEN: Final = (StreamTerminatedError, ProtocolError, H2Error, OSError)
"""What a call raises when its connection ends, beside `Refusal`."""

CONFIGURATION: Final = Configuration(
    _keepalive_time=KEEPALIVE_SECONDS,
    _keepalive_timeout=KEEPALIVE_TIMEOUT_SECONDS,
    _keepalive_permit_without_calls=False,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=KEEPALIVE_TIMEOUT_SECONDS,
    http2_connection_window_size=WINDOW_BYTES,
    http2_stream_window_size=WINDOW_BYTES,
)
"""A dead link is noticed within half a minute."""


class Channel:
    """A connection of its own to the collector at HOST:PORT; opened by the first call.

    Args:
        trust: for TLS; None: in clear text.
    """

    def __init__(self, target: str, trust: ssl.SSLContext | None = None) -> None:
        self._connection = _connection(target, trust)
        self._is_secured = trust is not None

    async def stream(self) -> Call:
        """Open ``Ingest.Stream``.

        Raises:
            OSError: nobody listens there.
        """
        method: Any = StreamStreamMethod(
            self._connection, _STREAM, pb.AgentFrame, pb.CollectorFrame
        )
        call = await method.open().__aenter__()
        await call.send_request()
        return Call(call, _UNHEARD if self._is_secured else "")

    def close(self) -> None:
        """Close the connection, and with it the call."""
        self._connection.close()


class Call:
    """A stream of frames in both directions. One task may write while another reads.

    Args:
        unheard: what it means that the connection ends before a frame came; empty: nothing more.
    """

    def __init__(self, call: Any, unheard: str = "") -> None:
        self._call = call
        self._unheard = unheard

    async def write(self, frame: pb.AgentFrame) -> None:
        """Send a frame; one of `BROKEN` when the connection has ended."""
        await self._call.send_message(frame)

    async def read(self) -> pb.CollectorFrame | None:
        """Return the next frame; None: the collector ended the call with OK.

        Raises:
            Refusal: it ended with another status; one of `BROKEN`: the connection did.
        """
        try:
            frame: pb.CollectorFrame | None = await self._call.recv_message()
            if frame is None:
                self._call._end_done = True  # ours need not have ended: the status is wanted
                await self._call.recv_trailing_metadata()
        except StreamTerminatedError as exc:
            self._call._maybe_raise()  # a status may have come before the connection went
            if self._unheard:
                raise StreamTerminatedError(self._unheard) from exc
            raise
        self._unheard = ""
        return frame

    async def end(self) -> None:
        """Say that no frame follows."""
        await self._call.end()

    async def close(self) -> None:
        """Let go of the call, whatever its state; safe once."""
        with contextlib.suppress(Refusal, *BROKEN):
            await self._call.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)


class _Connection(_Client):
    """One that is given up when it is closed: TLS would wait half a minute for a side that is gone."""

    async def _create_connection(self) -> Any:
        if self._ssl is None:
            return await super()._create_connection()
        _, protocol = await self._loop.create_connection(
            self._protocol_factory,
            self._host,
            self._port,
            ssl=self._ssl,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        return protocol


class _Bytes(CodecBase):
    """Messages as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        if len(data) > ANSWER_BYTES_MAX:
            raise OSError(errno.EMSGSIZE, f"an answer of {len(data)} bytes")
        return data


async def ask(path: Path, method: str, request: bytes, *, seconds_max: float) -> bytes:
    """Return the answer of one method of a server on a unix socket.

    Raises:
        Refusal: a status other than OK; TimeoutError, or one of `BROKEN`: no answer.
    """
    connection = _Connection(path=str(path), codec=_Bytes())
    # A unix path is no host name; kubelets refuse one.
    connection._authority = "localhost"
    try:
        return await _asked(connection, method, request, seconds_max)
    finally:
        connection.close()


async def ask_once(
    target: str,
    method: str,
    request: Message,
    answer: type[Answer],
    trust: ssl.SSLContext,
    *,
    seconds_max: float,
) -> Answer:
    """Return the answer of one method of the collector, over a connection of its own.

    Raises:
        Refusal: a status other than OK; TimeoutError, or one of `BROKEN`: no answer.
    """
    connection = _connection(target, trust, _Bytes())
    try:
        content = await _asked(connection, method, request.SerializeToString(), seconds_max)
    finally:
        connection.close()
    try:
        return answer.FromString(content)
    except DecodeError as exc:
        raise OSError(errno.EBADMSG, f"{target} answers something else") from exc


def _connection(
    target: str, trust: ssl.SSLContext | None, codec: CodecBase | None = None
) -> _Connection:
    host, _, port = target.rpartition(":")
    return _Connection(host.strip("[]"), int(port), ssl=trust, config=CONFIGURATION, codec=codec)


async def _asked(connection: _Connection, method: str, request: bytes, seconds_max: float) -> bytes:
    call: Any = UnaryUnaryMethod(connection, method, bytes, bytes)
    answer: bytes = await call(request, timeout=seconds_max)
    return answer

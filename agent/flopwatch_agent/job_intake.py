"""The unix datagram socket that jobs' messages arrive on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from flopwatch_agent.job_message import Message
from flopwatch_agent.jobs import JobTable
from flopwatch_proto.errors import UsageError

MESSAGE_BYTES_MAX: Final = 4096
_DATAGRAMS_PER_WAKE: Final = 256
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid


class Intake:
    """The socket.

    Args:
        path: of the socket; its folder is made. Anybody on the host may write to it.
        table: takes the messages.
        now_ms: a monotonic clock.
    """

    def __init__(self, path: Path, table: JobTable, now_ms: Callable[[], float]) -> None:
        self.path = path
        self.table = table
        self._now_ms = now_ms
        self._socket: socket.socket | None = None
        self._decode = msgspec.json.Decoder(Message).decode

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            UsageError: the path is too long, not writable, or another agent listens on it.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replace_stale()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            listener.bind(str(self.path))
            self.path.chmod(0o666)
        except OSError as exc:
            listener.close()
            raise UsageError(f"[jobs] socket = {str(self.path)!r}: {exc}") from exc
        self._socket = listener
        asyncio.get_running_loop().add_reader(listener, self._drain)

    async def close(self) -> None:
        """Stop listening and remove the socket; safe unstarted and twice."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _replace_stale(self) -> None:
        """Remove a socket nobody listens on; refuse to take a living one away."""
        if not self.path.is_socket():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                structlog.get_logger().info("jobs_socket_replaced", path=str(self.path))

    def _drain(self) -> None:
        """Take what has arrived, at most so much that other work gets its turn."""
        for _ in range(_DATAGRAMS_PER_WAKE):
            if self._socket is None:
                return
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    MESSAGE_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return
            except OSError:
                self.table.drops["socket"] += 1
                return
            if flags & socket.MSG_TRUNC:
                self.table.drops["too_large"] += 1
                continue
            try:
                message = self._decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.table.drops["malformed"] += 1
                continue
            pid = _sender(ancillary)
            if pid:
                message = msgspec.structs.replace(message, pid=pid)
            self.table.apply(message, self._now_ms())


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the sender's pid as the kernel knows it; 0 where it cannot say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            return pid
    return 0

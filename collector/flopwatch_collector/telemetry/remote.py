"""Reads for other processes: the collector serves bounded queries on a unix socket.

One process may hold the store's directory, so the web process asks the collector. Readers must never
delay the pager: at most ``concurrent`` queries run, few more wait and not for long, and each is bounded in
time, memory and size of its answer; whatever exceeds that is shed with a RetryableError. Statements that
write are refused by the engine.

    request   length (4 bytes, big endian) · JSON of `Request`
    response  kind (1 byte) · length (4 bytes) · body

    kind  A  an Arrow IPC stream      T  text                    J  JSON
          R  text of a RetryableError P  text of a PermanentError

The socket has mode 0600 in the data directory: whoever may read the files may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from flopwatch_collector.telemetry import NO_PARAMETERS
from flopwatch_collector.telemetry.snapshot import Snapshot
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import PermanentError, RetryableError, UsageError

_LENGTH: Final = struct.Struct("!I")
_HEADER: Final = struct.Struct("!cI")
REQUEST_BYTES_MAX: Final = 1024 * 1024
REQUEST_SECONDS_MAX: Final = 30.0
SOCKET_PATH_BYTES_MAX: Final = 100  # the kernel's limit is 108 with its terminator


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One question: SQL with parameters, or ``status`` (JSON), or ``metrics`` (text), or ``agents``
    (JSON), or ``snapshot`` (JSON): it stands as long as the connection."""

    sql: str = ""
    parameters: dict[str, Any] = {}
    max_seconds: float = 10.0
    status: bool = False
    metrics: bool = False
    agents: bool = False
    snapshot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBounds:
    """What readers may take.

    Attributes:
        concurrent: queries that run at a time.
        waiting_max: queries that may wait for one of those.
        waiting_seconds_max: how long one may wait before it is shed.
        seconds_max: time of one query in the engine.
        memory_bytes_max: memory of one query in the engine.
        result_bytes_max: size of one answer.
    """

    concurrent: int = 2
    waiting_max: int = 8
    waiting_seconds_max: float = 5.0
    seconds_max: float = 10.0
    memory_bytes_max: int = 1024**3
    result_bytes_max: int = 64 * 1024**2

    def engine_settings(self) -> dict[str, Any]:
        """Return the bounds as settings of the engine; ``readonly`` comes last."""
        return {
            "max_threads": max(1, (os.cpu_count() or 1) // 2),
            "max_execution_time": self.seconds_max,
            "max_memory_usage": self.memory_bytes_max,
            "max_result_bytes": self.result_bytes_max,
            "result_overflow_mode": "throw",
            "readonly": 2,
        }


class ReadServer:
    """Answers requests on a unix socket. Attributes: shed: requests refused because of load."""

    def __init__(
        self,
        store: TelemetryStore,
        path: Path,
        *,
        status: Callable[[], dict[str, Any]] = dict,
        metrics: Callable[[], str] = str,
        agents: Callable[[], list[dict[str, Any]]] = list,
        snapshots: Callable[[], AbstractContextManager[Snapshot]] | None = None,
        bounds: ReadBounds | None = None,
    ) -> None:
        self._path = path
        self._status = status
        self._metrics = metrics
        self._agents = agents
        self._snapshots = snapshots
        self._bounds = bounds or ReadBounds()
        self._store = store
        self._waiting = 0
        self.shed = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to answer.

        Raises:
            UsageError: the socket cannot be made.
        """
        concurrent = self._bounds.concurrent
        self._handles = self._store.bounded(self._bounds.engine_settings(), concurrent)
        self._threads = ThreadPoolExecutor(concurrent, thread_name_prefix="read")
        self._free = asyncio.Semaphore(concurrent)
        try:
            self._server = await asyncio.start_unix_server(self._serve, sock=_bound(self._path))
        except OSError as exc:
            raise UsageError(f"--data: cannot make socket {self._path}: {exc.strerror}") from exc

    async def close(self) -> None:
        """Stop answering, let queries that run end, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._handles.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = contextlib.ExitStack()
        limit: float | None = REQUEST_SECONDS_MAX
        try:
            while True:
                async with asyncio.timeout(limit):
                    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                    if size > REQUEST_BYTES_MAX:
                        return
                    content = await reader.readexactly(size)
                kind, body = await self._answer(content, held)
                if kind == b"S":
                    kind, limit = b"J", None
                writer.write(_HEADER.pack(kind, len(body)))
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            pass  # the peer is gone, or has nothing to ask
        finally:
            writer.close()
            await asyncio.to_thread(held.close)

    async def _answer(self, content: bytes, held: contextlib.ExitStack) -> tuple[bytes, bytes]:
        try:
            request = msgspec.json.decode(content, type=Request)
        except msgspec.DecodeError as exc:
            return b"P", f"request: {exc}".encode()
        if request.status:
            return b"J", msgspec.json.encode(self._status())
        if request.metrics:
            return b"T", self._metrics().encode()
        if request.agents:
            return b"J", msgspec.json.encode(self._agents())
        try:
            if request.snapshot and self._snapshots is not None:
                taken = await asyncio.to_thread(held.enter_context, self._snapshots())
                return b"S", msgspec.json.encode(taken)
            return b"A", await self._query(request)
        except RetryableError as exc:
            return b"R", str(exc).encode()
        except (PermanentError, UsageError) as exc:
            return b"P", str(exc).encode()

    async def _query(self, request: Request) -> bytes:
        if self._waiting >= self._bounds.waiting_max and self._free.locked():
            self.shed += 1
            raise RetryableError("busy: too many queries wait")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._bounds.waiting_seconds_max):
                await self._free.acquire()
        except TimeoutError:
            self.shed += 1
            raise RetryableError("busy: no query ended in time") from None
        finally:
            self._waiting -= 1
        seconds = max(0.001, min(request.max_seconds, self._bounds.seconds_max))
        running = asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: self._handles.query_stream(
                request.sql, request.parameters, seconds_max=seconds
            ),
        )
        running.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(running)


class RemoteStore:
    """A Reader over the socket of `ReadServer`; any number of threads may use it."""

    def __init__(self, path: Path, *, seconds_max: float = 10.0) -> None:
        self._path = path
        self._seconds_max = seconds_max

    def query(self, sql: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> pa.Table:
        """Return the answer as a table; see `flopwatch_collector.telemetry.Reader`."""
        request = Request(sql=sql, parameters=dict(parameters), max_seconds=self._seconds_max)
        return pa.ipc.open_stream(self._ask(request, b"A")).read_all()

    def status(self) -> dict[str, Any]:
        """Return what the collector says of itself."""
        return msgspec.json.decode(self._ask(Request(status=True), b"J"), type=dict[str, Any])

    def agents(self) -> list[dict[str, Any]]:
        """Return which agents the collector hears; the records of `agents.Agents`."""
        body = self._ask(Request(agents=True), b"J")
        return msgspec.json.decode(body, type=list[dict[str, Any]])

    def metrics(self) -> str:
        """Return the collector's metrics in Prometheus text format."""
        return self._ask(Request(metrics=True), b"T").decode()

    def answers(self) -> bool:
        """Whether a collector is there."""
        try:
            self.status()
        except RetryableError:
            return False
        return True

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Have the collector take a snapshot; it stands until the block ends."""
        with socket.socket(socket.AF_UNIX) as peer:
            body = self._ask(Request(snapshot=True), b"J", peer)
            yield msgspec.json.decode(body, type=Snapshot)

    def _ask(
        self, request: Request, kind_expected: bytes, peer: socket.socket | None = None
    ) -> bytes:
        if peer is None:
            with socket.socket(socket.AF_UNIX) as peer:
                return self._ask(request, kind_expected, peer)
        content = msgspec.json.encode(request)
        bounds = ReadBounds()
        try:
            with _short(self._path) as path:
                peer.settimeout(self._seconds_max + bounds.waiting_seconds_max + 5.0)
                peer.connect(path)
                peer.sendall(_LENGTH.pack(len(content)) + content)
                kind, size = _HEADER.unpack(_exactly(peer, _HEADER.size))
                body = _exactly(peer, size)
        except OSError as exc:
            raise RetryableError(f"the collector does not answer on {self._path}: {exc}") from exc
        if kind == kind_expected:
            return body
        if kind == b"R":
            raise RetryableError(body.decode())
        raise PermanentError(body.decode(errors="replace"))


def _exactly(peer: socket.socket, size: int) -> bytes:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = peer.recv_into(view)
        if count == 0:
            raise ConnectionResetError("the connection ended inside an answer")
        view = view[count:]
    return bytes(content)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name of the path that fits a socket address, however deep the directory lies."""
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _bound(path: Path) -> socket.socket:
    """Return a socket bound to the path, in place of one that a dead process left."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _short(path) as short:
            listener.bind(short)
            path.chmod(0o600)  # before anyone can connect: nobody listens yet
    except BaseException:
        listener.close()
        raise
    return listener

"""Listening: the socket, and the three ways to end.

The collector holds the other end of this process's standard input. When that pipe closes, however the
collector went, the listening socket is closed at once, streams end, and the process goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from typing import Final

import uvicorn
from fastapi import FastAPI

from flopwatch_proto.errors import UsageError

BACKLOG: Final = 128
GRACE_S: Final = 2


def listening(address: str) -> socket.socket:
    """Return a socket that listens on HOST:PORT; port 0 takes any free one.

    Raises:
        UsageError: naming the flag and the address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--http: {address!r} is no address; write HOST:PORT: 127.0.0.1:9750")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise UsageError(
            f"--http: cannot listen on {address}: {exc.strerror or exc}; "
            "name another port, or 0 for any free one"
        ) from exc
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to `serve`: a Ctrl-C is the collector's to answer, not ours."""
        yield


async def serve(app: FastAPI, listener: socket.socket, stopping: asyncio.Event) -> None:
    """Serve until standard input ends or SIGTERM comes."""
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_S,
        )
    )

    def stop() -> None:
        stopping.set()
        for opened in getattr(server, "servers", []):
            opened.close()
        listener.close()
        server.should_exit = True

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watcher = threading.Thread(target=_until_end_of_input, args=(loop, stop), daemon=True)
    watcher.start()
    await server.serve(sockets=[listener])


def _until_end_of_input(loop: asyncio.AbstractEventLoop, stop: object) -> None:
    """Read standard input to its end, then stop; nothing that comes on it means anything."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop)  # type: ignore[arg-type]

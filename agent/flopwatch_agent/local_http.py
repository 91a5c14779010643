"""The agent's own HTTP: a few pages for GET, from its event loop.

No thread and no polling: nothing wakes up while nobody asks. HTTP/1.1 as far as that needs it: one request
a connection, a bounded head, a deadline, an answer with its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Final

from flopwatch_agent.config import split_address
from flopwatch_proto.errors import UsageError

HEAD_BYTES_MAX: Final = 8 << 10
SECONDS_MAX: Final = 5.0
CONNECTIONS_MAX: Final = 16

Page = Callable[[], tuple[str, bytes]]
"""Returns content type and body."""


class LocalHttp:
    """Serves pages by their path."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        """Args: pages: path → page."""
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, listen: str) -> str:
        """Serve on HOST:PORT; return the address with its real port.

        Raises:
            UsageError: the address cannot be bound.
        """
        host, port = split_address(listen)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES_MAX)
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
            raise UsageError(
                f'metrics.listen = {listen!r}: {reason}; give another with --http, or "" for none'
            ) from exc
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._open) < CONNECTIONS_MAX:
                self._open.add(writer)
                async with asyncio.timeout(SECONDS_MAX):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, is too slow, or speaks something else
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET only\n")
        page = self._pages.get(path)
        if page is None:
            listed = " ".join(sorted(self._pages))
            return _response("404 Not Found", "text/plain", f"here are: {listed}\n".encode())
        answer = _response("200 OK", *page())
        return answer if method == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body

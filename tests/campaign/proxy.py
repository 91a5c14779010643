"""A TCP proxy that ill-treats what goes through it, one toxic at a time.

slow       at most 256 bytes at a time, some milliseconds apart, and an end after two seconds
half-open  after some bytes nothing more arrives on either side, and nobody hears of it
reset      after some bytes, in the middle of a frame, both sides get a RST
one-byte   every byte is a segment of its own, and an end after some thousands
cut        after some bytes, in the middle of a frame, both sides get a FIN
late       the client gets a RST, and what it had sent arrives after its next connection stands
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

TOXICS: Final = ("slow", "half-open", "reset", "one-byte", "cut", "late")
SLOW_SECONDS: Final = 2.0
NOTICED_SECONDS_MAX: Final = 120.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Manner:
    """How bytes go. Attributes: left: bytes until the end, of both ways together; None: no end."""

    size: int = 65_536
    wait_seconds: float = 0.0
    left: int | None = None


class Proxy:
    """Listens on loopback and passes on to the target.

    Attributes:
        toxic: what new connections suffer; None: nothing.
        hits: connections that suffered to the end, by toxic.
        noticed_seconds: how long client and server did not see that their connection was half open.
    """

    def __init__(self, target: str, seed: int) -> None:
        self._target = target
        self._chance = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.toxic: str | None = None
        self.hits: dict[str, int] = {}
        self.noticed_seconds: dict[str, list[float]] = {"client": [], "server": []}

    async def start(self) -> str:
        """Listen; return the address."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """End everything."""
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def clear(self) -> None:
        """Ill-treat nobody any more: new connections pass, and those that suffer end."""
        self.toxic = None
        for task in tuple(self._tasks):
            task.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, toxic = asyncio.current_task(), self.toxic
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        host, _, port = self._target.rpartition(":")
        # A connection that is cancelled, as all are at the end, is no error of the server's.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            server = await asyncio.open_connection(host, int(port))
            try:
                await self._pass(toxic, (reader, writer), server)
                if toxic is not None:
                    self.hits[toxic] = self.hits.get(toxic, 0) + 1
            finally:
                if toxic == "reset":
                    _reset(server[1])
                server[1].close()
        if toxic == "reset":
            _reset(writer)
        writer.close()

    async def _pass(self, toxic: str | None, client: Streams, server: Streams) -> None:
        chance = self._chance
        match toxic:
            case "slow":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SLOW_SECONDS):
                        await _both(client, server, Manner(256, chance.uniform(0.005, 0.02)))
            case "one-byte":
                await _both(client, server, Manner(size=1, left=chance.randrange(500, 4_000)))
            case "half-open":
                await _both(client, server, Manner(left=chance.randrange(200, 3_000)))
                await self._swallow(client, server)
            case "late":
                await _both(client, server, Manner(left=chance.choice((0, 400, 2_000))))
                await self._deliver_late(client, server)
            case None:
                await _both(client, server, Manner())
            case _:
                await _both(client, server, Manner(left=chance.randrange(1, 3_000)))

    async def _swallow(self, client: Streams, server: Streams) -> None:
        """Let both sides speak to nobody until they notice, and note when."""
        began = time.monotonic()

        async def noticed(name: str, reader: asyncio.StreamReader) -> None:
            with contextlib.suppress(OSError):
                while await reader.read(65_536):
                    pass
            self.noticed_seconds[name].append(time.monotonic() - began)

        async with asyncio.timeout(NOTICED_SECONDS_MAX):
            await asyncio.gather(noticed("client", client[0]), noticed("server", server[0]))

    async def _deliver_late(self, client: Streams, server: Streams) -> None:
        """Keep what the client sends, break with it, and pass it on when it is long back."""
        kept = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(0.05, 1.0)):
                while data := await client[0].read(65_536):
                    kept += data
        _reset(client[1])
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
        server[1].write(kept)
        await server[1].drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while await server[0].read(65_536):
                    pass


async def _both(client: Streams, server: Streams, manner: Manner) -> None:
    """Pass bytes on both ways until one of them ends."""
    ways = [
        asyncio.create_task(_pipe(client[0], server[1], manner)),
        asyncio.create_task(_pipe(server[0], client[1], manner)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while manner.left != 0 and (data := await reader.read(manner.size)):
        if manner.left is not None:
            data = data[: manner.left]
            manner.left -= len(data)
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(manner.wait_seconds)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

"""Server-sent events: the fleet's answer at every new boundary, computed once for all who listen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from flopwatch_collector.ledger.window import LIVE_DELAY_MS
from flopwatch_collector.web.problems import RETRY_AFTER_S, Problem
from flopwatch_collector.web.sources import Sources
from flopwatch_proto.errors import FlopwatchError
from flopwatch_proto.rows import INTERVAL_MS

LISTENERS_MAX: Final = 64
RECONNECT_MS: Final = 5_000


def admitted(sources: Sources) -> None:
    """Refuse a listener beyond the bound. Raises: Problem: 503."""
    if sources.listeners >= LISTENERS_MAX:
        raise Problem(
            503, f"{LISTENERS_MAX} pages listen already; this one refreshes when it is loaded again"
        )


async def events(
    sources: Sources, fleet: Callable[[], Awaitable[bytes]], stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    """Yield ``fleet`` events until the listener goes or the process stops."""
    sources.listeners += 1
    try:
        yield f"retry: {RECONNECT_MS}\n\n".encode()
        while not stopping.is_set():
            try:
                body = await fleet()
            except (FlopwatchError, Problem) as exc:
                yield b"event: busy\ndata: " + str(exc).replace("\n", " ").encode() + b"\n\n"
                wait = float(RETRY_AFTER_S)
            else:
                yield b"event: fleet\ndata: " + body + b"\n\n"
                wait = seconds_to_boundary(sources.now_unix_ms())
            try:
                async with asyncio.timeout(wait):
                    await stopping.wait()
            except TimeoutError:
                pass
    finally:
        sources.listeners -= 1


def seconds_to_boundary(now_unix_ms: int) -> float:
    """Return how long it takes until the next interval may be answered for."""
    return (INTERVAL_MS - (now_unix_ms - LIVE_DELAY_MS) % INTERVAL_MS) / 1000 + 0.05

"""What systemd is told of the collector: that it is ready, alive, ending. Silent where nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import sdnotify

ALIVE_EVERY_S: Final = 5.0
"""Well below the unit's watchdog; the event loop itself feeds it, so a stuck loop is noticed."""


@asynccontextmanager
async def supervised() -> AsyncIterator[Callable[[], None]]:
    """Feed the watchdog while the block runs; yield what says that the start is over."""
    notify = sdnotify.SystemdNotifier().notify

    async def keep_alive() -> None:
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(ALIVE_EVERY_S)

    feeding = asyncio.create_task(keep_alive())
    try:
        yield lambda: notify("READY=1")
    finally:
        notify("STOPPING=1")
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding

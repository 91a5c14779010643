"""Work beside the event loop, in a thread that nobody else can fill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Aside:
    """Runs calls one after the other in one thread of its own.

    The loop's shared threads may all be waiting for readers' queries: what pages must not queue there.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a call returns. One that began goes on to its end where its caller is cancelled."""

        def call() -> T:
            return work(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """Wait for everything that was asked."""
        self._thread.shutdown(wait=True)

    async def end(self) -> None:
        """Close it without the loop waiting."""
        try:
            await self(lambda: None)
        finally:
            self._thread.shutdown(wait=False)

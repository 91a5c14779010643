"""Jobs that run side by side for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def together(*jobs: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Run jobs that never end; yield a task that ends when one of them fails."""
    tasks = [asyncio.create_task(job) for job in jobs]

    async def first_failure() -> None:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    try:
        yield asyncio.create_task(first_failure())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""Answers that cost something: computed once for everyone who asks, two at a time, shed when many wait.

One refresh of a dashboard that fifty people watch is one computation. What is asked for beyond the bounds
is refused at once with a RetryableError; the collector's own work never waits for a reader.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from flopwatch_proto.errors import RetryableError

T = TypeVar("T")

LIVE_KEPT_S: Final = 10.0
"""How long an answer about the newest window is shared."""
PAST_KEPT_S: Final = 1.0
"""The same for a window that was asked for by its end: late data must show at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBounds:
    """What readers may take. Attributes: as their names say; waiting counts questions, not people."""

    concurrent: int = 2
    waiting_max: int = 8
    waiting_s: float = 5.0
    entries_max: int = 64


class Answers:
    """Computes, shares and bounds answers. One event loop uses it. Attributes: monotonic_s: the clock."""

    def __init__(
        self, monotonic_s: Callable[[], float], bounds: AnswerBounds | None = None
    ) -> None:
        self.monotonic_s = monotonic_s
        self._bounds = bounds or AnswerBounds()
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._free = asyncio.Semaphore(self._bounds.concurrent)
        self._waiting = 0
        self._threads = ThreadPoolExecutor(self._bounds.concurrent, thread_name_prefix="answer")
        self.shed = 0

    async def get(self, key: Hashable, compute: Callable[[], T], kept_s: float) -> T:
        """Return the answer to a question, from the last ``kept_s`` seconds or computed now.

        Raises:
            RetryableError: too many other questions wait, or the store is busy.
        """
        kept = self._kept.get(key)
        if kept is not None and self.monotonic_s() - kept[0] < kept_s:
            self._kept.move_to_end(key)
            found: T = kept[1]
            return found
        running = self._running.get(key)
        if running is None:
            running = asyncio.create_task(self._compute(key, compute))
            self._running[key] = running
            running.add_done_callback(lambda task: self._ended(key, task))
        answer: T = await asyncio.shield(running)
        return answer

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # whoever asked may have gone: it is no news that nobody read it

    async def _compute(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if self._waiting >= self._bounds.waiting_max and self._free.locked():
            self.shed += 1
            raise RetryableError("busy: too many questions wait")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._bounds.waiting_s):
                await self._free.acquire()
        except TimeoutError:
            self.shed += 1
            raise RetryableError("busy: no other question was answered in time") from None
        finally:
            self._waiting -= 1
        began = self.monotonic_s()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, compute)
        finally:
            self._free.release()
        self._kept[key] = (began, answer)
        self._kept.move_to_end(key)
        while len(self._kept) > self._bounds.entries_max:
            self._kept.popitem(last=False)
        return answer

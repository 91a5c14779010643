"""Something that is dear to know: read in the background now and then, and shown as it was found last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import structlog

from flopwatch_proto.errors import RetryableError

T = TypeVar("T")

EVERY_S: Final = 300.0
RETRY_S: Final = 30.0

log = structlog.get_logger()


class Lookout(Generic[T]):
    """Reads when somebody asks and what is known is old; one reading at a time. One event loop uses it.

    A page or a scrape takes the `newest` and never waits. Where nobody asks, nothing is read.
    """

    def __init__(self, read: Callable[[], T], monotonic_s: Callable[[], float]) -> None:
        """read: called in a thread."""
        self._read = read
        self._monotonic_s = monotonic_s
        self._known: T | None = None
        self._due_s = float("-inf")
        self._task: asyncio.Task[T] | None = None

    @property
    def looking(self) -> bool:
        """Whether it is being read."""
        return self._task is not None

    def newest(self) -> T | None:
        """Return what was found last, None before the first time; have it read anew where that is old."""
        self._begin()
        return self._known

    async def looked(self) -> T:
        """Return what was found last; wait where nothing was yet.

        Raises:
            RetryableError: it could not be read.
        """
        self._begin()
        if self._known is not None:
            return self._known
        if self._task is None:
            raise RetryableError("it could not be read a moment ago")
        return await asyncio.shield(self._task)

    def _begin(self) -> None:
        if self._task is None and self._monotonic_s() >= self._due_s:
            self._task = asyncio.create_task(self._look())
            self._task.add_done_callback(self._ended)

    async def _look(self) -> T:
        self._due_s = self._monotonic_s() + RETRY_S
        found = await asyncio.to_thread(self._read)
        self._due_s = self._monotonic_s() + EVERY_S
        self._known = found
        return found

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.warning("not_read", reason=str(exc))

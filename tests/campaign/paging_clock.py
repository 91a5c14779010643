"""A clock that several processes share and one of them moves, and an event loop that lives by it.

Time is what the campaign says it is: it goes up to `SPEED` times as fast as the machine's, and waits for
whoever is still at work on a tick. What sleeps, times out, holds a lease or dates a page goes by it.
"""

from __future__ import annotations

import asyncio
import mmap
import selectors
import struct
import time
from pathlib import Path
from typing import Any, Final

SPEED: Final = 20
BEHIND_MS: Final = 12_000
WORKING_NS: Final = 500_000_000
POLL_SECONDS_MAX: Final = 0.02
_MOMENT: Final = struct.Struct("q")


class Clock:
    """Attributes: path: the file that holds it."""

    def __init__(self, path: Path, start_unix_ms: int | None = None) -> None:
        """start_unix_ms: makes a new one; None: there is one."""
        self.path = path
        if start_unix_ms is not None:
            path.write_bytes(2 * _MOMENT.pack(start_unix_ms) + _MOMENT.pack(0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def now(self) -> int:
        """Return the moment, in Unix ms."""
        return self._read(0)

    def move(self, by_ms: int) -> None:
        """Let time pass."""
        _MOMENT.pack_into(self._memory, 0, self.now() + by_ms)

    def judged(self, now_unix_ms: int) -> None:
        """Note that somebody judges a tick."""
        _MOMENT.pack_into(self._memory, _MOMENT.size, now_unix_ms)

    def works(self) -> None:
        """Note that somebody is at it."""
        _MOMENT.pack_into(self._memory, 2 * _MOMENT.size, time.monotonic_ns())

    def is_behind(self) -> bool:
        """Return whether the newest tick is old and somebody is at work on it, or on the one before."""
        old = self.now() - self._read(_MOMENT.size) > BEHIND_MS
        return old and time.monotonic_ns() - self._read(2 * _MOMENT.size) < WORKING_NS

    def _read(self, offset: int) -> int:
        return int(_MOMENT.unpack_from(self._memory, offset)[0])


class _Selector(selectors.DefaultSelector):
    """Waits for less than it is asked to: the loop looks at the clock again."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            timeout = min(timeout / SPEED, POLL_SECONDS_MAX)
        return super().select(timeout)


class Loop(asyncio.SelectorEventLoop):
    """An event loop of the clock's time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector())
        self._shared = clock

    def time(self) -> float:
        return self._shared.now() / 1000


def run(clock: Clock, work: Any) -> None:
    """Run a coroutine by the clock."""
    with asyncio.Runner(loop_factory=lambda: Loop(clock)) as runner:
        runner.run(work)

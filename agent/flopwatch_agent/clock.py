"""The only place of the agent that asks what time it is.

Pure code takes the time as an argument; loops take a Clock. Tests pass their own.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What loops need of time."""

    def wall_unix_ns(self) -> int:
        """UTC now in nanoseconds since 1970; may step."""
        ...

    def boottime_ns(self) -> int:
        """Nanoseconds since boot, suspend included; never steps. Rates come from it."""
        ...

    def monotonic_seconds(self) -> float:
        """Seconds from an arbitrary start; never steps."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds; at once for zero or less."""
        ...


class SystemClock:
    """The host's clocks."""

    def wall_unix_ns(self) -> int:
        return time.time_ns()

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


def wall_unix_ms(clock: Clock) -> int:
    """Return UTC now in whole milliseconds."""
    return clock.wall_unix_ns() // 1_000_000


def seconds_to_next(multiple_ms: int, now_unix_ns: int) -> float:
    """Return the seconds from now to the next UTC multiple; never zero.

    Args:
        multiple_ms: the grid, in milliseconds.
        now_unix_ns: the wall clock.
    """
    grid_ns = multiple_ms * 1_000_000
    return (grid_ns - now_unix_ns % grid_ns) / 1e9

"""How much one node may send, and how fast. Pure; the seconds are those of a monotonic clock.

Credits are what an honest agent obeys: so many batches and bytes may be in flight. A node that takes more
than its share of a large fleet's rate gets none until its bucket fills again; one that sends all the same is
read no faster than that, so it holds up itself and nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

CREDIT_BATCHES: Final = 32
CREDIT_BYTES: Final = 4 * 1024**2
BATCH_BYTES_MAX: Final = 512 * 1024
IN_FLIGHT_MAX: Final = 2 * CREDIT_BATCHES
"""Frames of one stream that wait for a commit; more are not read."""
SMALL_FLEET_STREAMS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What one node may send for ever; ten seconds of it at once."""

    batches_per_second: float
    bytes_per_second: float
    burst_seconds: float = 10.0


LARGE_FLEET: Final = Rate(batches_per_second=2.0, bytes_per_second=64 * 1024)
"""Twenty times the pace of the present, which has a batch of some kilobytes every 10 s."""
SMALL_FLEET: Final = Rate(batches_per_second=100.0, bytes_per_second=8 * 1024**2)


@dataclass(slots=True)
class Bucket:
    """The tokens of one stream. They begin full, and go below zero where a node ignores its credits."""

    rate: Rate = SMALL_FLEET
    _batches: float = field(default=float("inf"))
    _bytes: float = field(default=float("inf"))
    _filled_at: float = 0.0

    def take(self, size_bytes: int, now_seconds: float) -> float:
        """Take a frame of that size; return how long to wait before the next one is read."""
        self._fill(now_seconds)
        self._batches -= 1
        self._bytes -= size_bytes
        # Another burst is forgiven: credits that were given are on their way.
        over_batches = -self._batches / self.rate.batches_per_second - self.rate.burst_seconds
        over_bytes = -self._bytes / self.rate.bytes_per_second - self.rate.burst_seconds
        return max(0.0, over_batches, over_bytes)

    def credit(self, now_seconds: float) -> tuple[int, int]:
        """Return how many batches and bytes may be in flight; no batches where either is used up."""
        self._fill(now_seconds)
        if self._batches < 1 or self._bytes <= 0:
            return 0, BATCH_BYTES_MAX
        size_bytes = int(min(CREDIT_BYTES, max(self._bytes, BATCH_BYTES_MAX)))
        return int(min(CREDIT_BATCHES, self._batches)), size_bytes

    def _fill(self, now_seconds: float) -> None:
        rate, passed = self.rate, max(0.0, now_seconds - self._filled_at)
        self._filled_at = now_seconds
        self._batches = min(
            rate.batches_per_second * rate.burst_seconds,
            self._batches + passed * rate.batches_per_second,
        )
        self._bytes = min(
            rate.bytes_per_second * rate.burst_seconds,
            self._bytes + passed * rate.bytes_per_second,
        )

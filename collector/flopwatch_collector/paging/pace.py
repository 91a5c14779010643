"""How fast a receiver may be sent to: a bucket that fills over a minute. Pure; time is passed in."""

from __future__ import annotations

from typing import Final

MINUTE_MS: Final = 60_000


class Pace:
    """So many a minute, and as many at once after a quiet minute.

    Args:
        per_minute: pages a minute.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._left = float(per_minute)
        self._filled_unix_ms: int | None = None

    def take(self, now_unix_ms: int) -> bool:
        """Return whether one more may go now, and count it if so."""
        if self._filled_unix_ms is not None:
            passed_ms = max(0, now_unix_ms - self._filled_unix_ms)
            self._left = min(
                self._per_minute, self._left + passed_ms * self._per_minute / MINUTE_MS
            )
        self._filled_unix_ms = now_unix_ms
        if self._left < 1:
            return False
        self._left -= 1
        return True

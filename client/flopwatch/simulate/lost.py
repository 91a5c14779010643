"""How long a simulator waits for a collector that is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flopwatch_proto.errors import FlopwatchError

ABSENT_SECONDS_MAX: Final = 60.0
LOST_SECONDS_MAX: Final = 600.0


class CollectorLostError(FlopwatchError):
    """No collector answered for too long; the text says where and how long."""


@dataclass(slots=True, kw_only=True)
class Patience:
    """Watches whether anybody is connected. Pure.

    Attributes:
        target: the collector's address, for the error's text.
        since_seconds: when somebody was last connected, or when the wait began.
        met: whether anybody ever was.
    """

    target: str
    since_seconds: float
    met: bool = False

    def check(self, now_seconds: float, *, connected: bool, error: str = "") -> None:
        """Take a look. Args: error: why the last session ended.

        Raises:
            CollectorLostError: absent for a minute, or lost for ten.
        """
        if connected:
            self.met, self.since_seconds = True, now_seconds
            return
        why = f" ({error})" if error else ""
        waited = now_seconds - self.since_seconds
        if not self.met and waited >= ABSENT_SECONDS_MAX:
            raise CollectorLostError(
                f"cannot reach a collector at {self.target}: no answer in {waited:.0f} s{why}; "
                'is it running? start it with "flopwatch up"'
            )
        if self.met and waited >= LOST_SECONDS_MAX:
            raise CollectorLostError(
                f"lost the collector at {self.target}: no answer in {waited:.0f} s{why}"
            )

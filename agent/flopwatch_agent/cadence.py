"""Which readings are folded into rows while a capture reads more often than once a second.

Some means come less often than readings may: GPM samples lie 200 ms apart, and the one that comes then
covers all of the time since the one before. The fold takes a mean for the time since the last reading it
saw; so it must not see the readings in between, or two thirds of the time would be without counters. The
recorder and other watchers see them all.
"""

from __future__ import annotations

from typing import Final

from flopwatch_agent.reading import Reading
from flopwatch_proto.rows import Absence

USUAL_NS: Final = 900_000_000
"""From so long after the last folded reading on, the next one is folded whatever it lacks."""


class Cadence:
    """Chooses readings, slot by slot."""

    def __init__(self) -> None:
        self._folded: dict[str, Reading] = {}

    def folds(self, reading: Reading) -> bool:
        """Whether a reading is for the fold: it came at the usual time, has everything that the last
        folded one had, or says that the device does not answer."""
        last = self._folded.get(reading.device.slot)
        if last is not None and reading.alive and last.alive and reading.device == last.device:
            soon = 0 <= reading.boottime_ns - last.boottime_ns < USUAL_NS
            if soon and not _as_complete(reading, last):
                return False
        self._folded[reading.device.slot] = reading
        return True


def _as_complete(reading: Reading, last: Reading) -> bool:
    return all(
        not isinstance(reading.values.get(name, Absence.MISSING), Absence)
        for name, value in last.values.items()
        if not isinstance(value, Absence)
    )

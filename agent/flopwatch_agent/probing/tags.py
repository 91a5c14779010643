"""Time with a probe of ours on a card counts for nobody: readings are tagged before anybody sees them.

A probe of half a second lies between two readings, and their means hold it; so the card's lock is asked since
when and until when, not only which processes are there now. What a tagged reading loses are the means that
the probe made (activity, clock, traffic) and the probe's processes; energy, temperatures and errors are real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from flopwatch_agent.probing.lock import Word, descends, word_of
from flopwatch_agent.reading import Reading
from flopwatch_proto.codec import Value

SETTLE_NS: Final = 1_000_000_000
"""After a probe has ended: the driver's own means still hold some of it."""

_MADE_BY_LOAD: Final = ("_ratio", "_per_second")


class Tags:
    """Args: directory: of the locks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen_ns: dict[str, tuple[int, int]] = {}
        self._tagged_ns: dict[str, int] = {}

    def tagged(self, reading: Reading) -> Reading:
        """Return the reading, without what a probe of ours did since the one before."""
        slot = reading.device.slot
        word = word_of(self._directory, name_of(reading))
        before = self._tagged_ns.get(slot, 0)
        self._tagged_ns[slot] = reading.boottime_ns
        if word is None or word.began_ns > reading.boottime_ns:
            return reading
        running = word.ended_ns is None and word.alive
        if running:
            self._seen_ns[slot] = (word.began_ns, reading.boottime_ns)
        until = min(self._end_ns(slot, word) + (0 if running else SETTLE_NS), reading.boottime_ns)
        processes = reading.processes
        if running and processes:
            processes = tuple(p for p in processes if not descends(p.pid, word.pid))
        if until <= before:
            return reading
        return replace(
            reading,
            probed_ns=until,
            processes=processes,
            values=_without_load(reading.values),
            instances={n: _without_load(v) for n, v in reading.instances.items()},
        )

    def _end_ns(self, slot: str, word: Word) -> int:
        """Return when a probe ended, or was last seen alive: a killed parent says no end."""
        if word.ended_ns is not None:
            return word.ended_ns
        began_ns, seen_ns = self._seen_ns.get(slot, (0, 0))
        return seen_ns if began_ns == word.began_ns else word.began_ns


def name_of(reading: Reading) -> str:
    """Return what a probe calls the device: a card by its UUID, else by its slot."""
    return reading.device.uuid or reading.device.slot


def _without_load(values: Mapping[str, Value]) -> dict[str, Value]:
    return {
        name: value
        for name, value in values.items()
        if not name.endswith(_MADE_BY_LOAD) and name != "sm_clock_mhz"
    }

"""The newest reading of every card and of the host, kept for whoever asks: `/metrics` and `/now`.

A reading costs a few references here; everything else is worked out when somebody asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from flopwatch_agent.reading import Reading, Share
from flopwatch_agent.shares import declared
from flopwatch_agent.sources.host import HostReading
from flopwatch_proto.v1 import telemetry_pb2 as pb

PERIOD_NS: Final = 1_000_000_000
"""Readings are expected this often."""

WINDOW_READINGS: Final = 60
STALE_SECONDS: Final = 10.0
"""A reading older than this says nothing about now."""

FORGET_SECONDS: Final = 600.0
SLOTS_MAX: Final = 256
_MODEL_SECONDS_MIN: Final = 5.0  # jobs declare by the step: less time than this is mostly rounding


class Coverage:
    """Which of the readings expected within the last minute came."""

    def __init__(self, since_ns: int) -> None:
        """Args: since_ns: boottime from which they are expected."""
        self._since_ns = since_ns
        self._came: deque[int] = deque(maxlen=WINDOW_READINGS)

    def came(self, now_ns: int) -> None:
        """Note one that came."""
        self._came.append(now_ns)

    def ratio(self, now_ns: int) -> float:
        """Return came / expected, 0 … 1."""
        begin_ns = now_ns - WINDOW_READINGS * PERIOD_NS
        expected = (now_ns - max(begin_ns, self._since_ns)) // PERIOD_NS
        return min(1.0, sum(ns > begin_ns for ns in self._came) / max(1, expected))


@dataclass(slots=True, kw_only=True)
class Seen:
    """What is remembered of one slot.

    Attributes:
        shares: who holds the card from the reading on.
        model: (boottime ns, shares) of the last minute in which somebody declared model FLOPs.
    """

    reading: Reading
    shares: Sequence[Share]
    coverage: Coverage
    model: deque[tuple[int, Sequence[Share]]] = field(
        default_factory=lambda: deque(maxlen=WINDOW_READINGS)
    )

    def age_seconds(self, now_ns: int) -> float:
        """Return how old the reading is."""
        return max(0.0, (now_ns - self.reading.boottime_ns) / 1e9)

    def speaks(self, now_ns: int) -> bool:
        """Return whether the reading says what the card does now."""
        return self.reading.alive and self.age_seconds(now_ns) <= STALE_SECONDS

    def model_flops_per_second(self) -> float | None:
        """Return the model FLOP/s that the card's jobs declared; None: nobody did for long enough."""
        entries = list(self.model)
        seconds = (entries[-1][0] - entries[0][0]) / 1e9 if entries else 0.0
        if seconds < _MODEL_SECONDS_MIN or entries[-1][0] != self.reading.boottime_ns:
            return None
        steps = (declared(before, after, {}) for (_, before), (_, after) in pairwise(entries))
        return sum(c.get("model_flops", 0.0) for step in steps for c in step.values()) / seconds


class Newest:
    """Watches the readings of all slots and of the host."""

    def __init__(self) -> None:
        self._slots: dict[str, Seen] = {}
        self._hosts: deque[HostReading] = deque(maxlen=2)

    def see(self, reading: Reading, shares: Sequence[Share]) -> None:
        """Keep a reading and who holds its card."""
        slot = reading.device.slot
        seen = self._slots.get(slot)
        if seen is None:
            if len(self._slots) >= SLOTS_MAX:
                return
            coverage = Coverage(reading.boottime_ns - PERIOD_NS)
            seen = self._slots[slot] = Seen(reading=reading, shares=shares, coverage=coverage)
        seen.reading, seen.shares = reading, shares
        if reading.alive:
            seen.coverage.came(reading.boottime_ns)
        for share in shares:
            if share.model_flops_total is not None:
                seen.model.append((reading.boottime_ns, shares))
                return
        seen.model.clear()

    def see_host(self, reading: HostReading) -> None:
        """Keep a reading of the host beside the one before."""
        self._hosts.append(reading)

    def events(self) -> tuple[pb.Event, ...]:
        """Nothing is told."""
        return ()

    def cards(self, now_ns: int) -> Iterator[Seen]:
        """Yield the slots in their order; one that nobody reads any more is forgotten."""
        for slot in sorted(self._slots):
            if self._slots[slot].age_seconds(now_ns) > FORGET_SECONDS:
                del self._slots[slot]
            else:
                yield self._slots[slot]

    def hosts(self) -> tuple[HostReading, ...]:
        """Return the last two readings of the host, or fewer."""
        return tuple(self._hosts)

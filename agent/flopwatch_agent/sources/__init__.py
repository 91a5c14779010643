"""Sources: where readings come from. Each file is one origin, and a source only reads.

A source that finds nothing of its kind on this host raises NoDevice from ``start``; that is no failure.
Every other trouble is data: a reading with ``alive=False``, an event, a driver state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flopwatch_agent.reading import Reading
from flopwatch_proto.v1 import telemetry_pb2 as pb


class NoDevice(Exception):
    """This host has nothing that the source could read; the text says what was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What a source has to say after one read.

    Attributes:
        readings: one for each device, in the order of the slots.
        events: what happened since the report before.
        driver_state: of ``ok absent unresponsive mismatch lost released``; None: the source has no driver.
    """

    readings: tuple[Reading, ...] = ()
    events: tuple[pb.Event, ...] = ()
    driver_state: str | None = None


class Source(Protocol):
    """An origin of readings. `read` answers within its own deadline and never raises for a device."""

    @property
    def name(self) -> str:
        """Return the source's name, as the configuration and the logs use it."""
        ...

    async def start(self) -> None:
        """Open the origin; raise NoDevice where there is none."""
        ...

    async def read(self) -> SourceReport:
        """Return the next readings."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...

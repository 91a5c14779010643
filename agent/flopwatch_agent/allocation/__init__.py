"""Who holds the cards of this host: one file per source of that knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flopwatch_agent.jobs import JobTable
from flopwatch_agent.reading import Reading, Share
from flopwatch_proto.v1 import telemetry_pb2 as pb


class Allocation(Protocol):
    """A source that knows who holds a card."""

    name: str

    def shares(self, reading: Reading, jobs: JobTable) -> tuple[Share, ...]:
        """Return who holds the reading's card from that reading on; weights sum to 1."""
        ...

    async def refresh(self) -> None:
        """Ask whoever must be asked (a kubelet, files); called again and again, never beside itself."""
        ...

    def events(self) -> Sequence[pb.Event]:
        """Return what is worth telling since the last call."""
        ...

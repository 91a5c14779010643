"""Who holds the cards of this host: one file per source of that knowledge."""

from __future__ import annotations

from typing import Protocol

from flopwatch_agent.jobs import JobTable
from flopwatch_agent.reading import Reading, Share


class Allocation(Protocol):
    """A source that knows who holds a card."""

    name: str

    def shares(self, reading: Reading, jobs: JobTable) -> tuple[Share, ...]:
        """Return who holds the reading's card from that reading on; weights sum to 1."""
        ...

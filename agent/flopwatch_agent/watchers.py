"""Watchers: who looks at every reading beside the fold. They keep their own state and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flopwatch_agent.reading import Reading, Share
from flopwatch_proto.v1 import telemetry_pb2 as pb


class Watcher(Protocol):
    """Sees readings in the order in which they were taken. Called on the event loop; must be quick."""

    def see(self, reading: Reading, shares: Sequence[Share]) -> None:
        """Look at a reading and at who holds its card from it on."""
        ...

    def events(self) -> Sequence[pb.Event]:
        """Return what is worth telling since the last call."""
        ...

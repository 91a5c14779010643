"""What is known now of one cluster, in memory: the state of `live`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from flopwatch_collector.counted import Counts
from flopwatch_collector.ledger.evidence import FOREVER, NEVER, Rosters, Seats
from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_collector.live_rows import RecentRows
from flopwatch_collector.tally import Tallies
from flopwatch_proto.rows import INTERVAL_MS, SlotState


@dataclass(slots=True)
class Known:
    """What is known now of one cluster.

    Attributes:
        goodbyes: node → when it took leave, and until when its silence is expected.
        onboarded: share of slots in service, and until when it holds for moments that follow.
        revisions: interval → how often rows came for it; revision: how often all was to be judged again.
    """

    simulated: bool
    rows: RecentRows = field(default_factory=RecentRows)
    rosters: dict[tuple[str, int], pa.Table] = field(default_factory=dict)
    slots: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    heard: dict[tuple[str, str], int] = field(default_factory=dict)
    goodbyes: dict[str, tuple[int, int]] = field(default_factory=dict)
    sheets: dict[int, Sheet] = field(default_factory=dict)
    revisions: dict[int, int] = field(default_factory=dict)
    revision: int = 0
    newest_row_unix_ms: int | None = None
    seats: Seats | None = None
    said: Rosters | None = None
    onboarded: tuple[float, int] = 1.0, NEVER
    tallies: Tallies = field(default_factory=Tallies)
    counts: Counts = field(default_factory=Counts)

    def leaving(self, at_unix_ms: int) -> set[str]:
        """Return the nodes that took leave and are not yet overdue."""
        return {node for node, (_, until) in self.goodbyes.items() if until >= at_unix_ms}

    def declared(self) -> None:
        """Make anew what follows from declarations."""
        self.seats, self.onboarded = None, (1.0, NEVER)

    def onboarded_ratio(self, at_unix_ms: int) -> float:
        """Return the share of slots in service; counted again only when it may have changed."""
        if at_unix_ms >= self.onboarded[1]:
            self.onboarded = onboarded_ratio(self.slots.values(), at_unix_ms)
        return self.onboarded[0]

    def forget_sheets(self, since_unix_ms: int) -> None:
        """Judge again, when asked, what ends after a moment."""
        self.sheets = {t: s for t, s in self.sheets.items() if t + INTERVAL_MS <= since_unix_ms}
        self.revision += 1

    def standing(self, interval: int) -> tuple[int, int]:
        """Return what is another one as soon as a sheet of the interval no longer holds."""
        return self.revisions.get(interval, 0), self.revision


def in_service(seats: Seats, start: int, end: int) -> bool:
    """Return whether any seat is in service between two moments."""
    return bool(((seats.start < end) & (seats.end > start)).any())


def onboarded_ratio(slots: Iterable[Mapping[str, Any]], at_unix_ms: int) -> tuple[float, int]:
    """Return the share of slots in service of all that are expected, and until when it stays so.

    Expected are those that onboard or are in service.
    """
    states: dict[tuple[str, str], tuple[int, int]] = {}
    until = FOREVER
    for record in slots:
        begins, ends = record["from_unix_ms"], record["to_unix_ms"] or FOREVER
        if begins <= at_unix_ms < ends:
            name = record["node"], record["slot"]
            states[name] = max(states.get(name, (NEVER, 0)), (begins, record["state"]))
        if ends > at_unix_ms:
            until = min(until, begins if begins > at_unix_ms else ends)
    owned = [state for _, state in states.values() if state != SlotState.RETIRED]
    return owned.count(SlotState.IN_SERVICE) / len(owned) if owned else 1.0, until

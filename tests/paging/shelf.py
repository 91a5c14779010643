"""A control store in memory, for a watch of whose time days or years pass: what a tick writes and reads."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from flopwatch_collector.control.observations import Judged
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import IncidentState

MINUTE_MS: Final = 60_000
WEEK_MS: Final = 7 * 24 * 60 * MINUTE_MS


class Shelf:
    """Attributes: states: by rule and cluster; pages: in order; judged: observations on the minute."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], IncidentState] = {}
        self.pages: list[OutboxRow] = []
        self.judged: dict[tuple[str, str], list[Judged]] = {}

    def incidents(self) -> list[IncidentState]:
        """Return every state."""
        return list(self.states.values())

    def save(
        self,
        *,
        states: Sequence[IncidentState] = (),
        pages: Sequence[OutboxRow] = (),
        observations: Sequence[Judged] = (),
        fence: int | None = None,
    ) -> None:
        """Keep a tick's outcome."""
        for state in states:
            self.states[state.rule, state.cluster] = replace(state, version=state.version + 1)
        self.pages.extend(pages)
        for judged in observations:
            seen = judged.observation
            if seen.tick_unix_ms % MINUTE_MS == 0:
                self.judged.setdefault((seen.rule, seen.cluster), []).append(judged)

    def baseline(self, rule: str, cluster: str, now_unix_ms: int) -> float | None:
        """Return the median of the judged figure over seven days."""
        kept = self.judged.get((rule, cluster), [])
        first = bisect_left(kept, now_unix_ms - WEEK_MS, key=lambda j: j.observation.tick_unix_ms)
        figures = [
            judged.observation.hi
            for judged in kept[first:]
            if judged.condition != "unknown" and judged.observation.hi is not None
        ]
        return statistics.median(figures) if figures else None

    def prune(self, now_unix_ms: int) -> int:
        """Forget nothing."""
        return 0

    def told(self) -> list[tuple[str, str]]:
        """Return rule and action of every page."""
        return [(page.rule, page.action) for page in self.pages]

    def into(self, control: ControlStore) -> None:
        """Put it into a real store that has nothing yet, as if it had been written there."""
        everything: dict[str, Any] = {
            "states": [replace(state, version=0) for state in self.states.values()],
            "pages": self.pages,
            "observations": [judged for kept in self.judged.values() for judged in kept],
        }
        control.save(**everything)

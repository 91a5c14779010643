"""What an explanation is found from: what was seen now and before it fell, in sums and by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.news import NO_DEMAND, NOT_CAUSES
from flopwatch_collector.paging.background import Background
from flopwatch_collector.rules import Cause, Observation
from flopwatch_collector.tally import Layout, Tally

GREW_SHARE: Final = 0.25
"""What grew must be this share of what is lost, else the largest loss stands."""
TOLD_SHARE: Final = 0.6
"""The ten nodes that an observation names are those of a loss when their points are about as many."""
CARDS_MIN: Final = 0.01
USABLE: Final = ("FREE", "STRANDED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen at a moment, of an observation or of what an incident kept of one.

    Attributes:
        points: bucket or step → lost points; causes: the largest first.
        cards: in service; 0: not known. silent: nodes without a word. Other fields as of Observation.
    """

    points: Mapping[str, float]
    causes: tuple[Cause, ...] = ()
    cards: float = 0.0
    unseen_cards: float = 0.0
    unwanted_points: float = 0.0
    witnessed_points: float = 0.0
    silent: tuple[str, ...] = ()

    @classmethod
    def of(cls, observation: Observation) -> Seen:
        """Return what an observation tells."""
        return cls(
            points=observation.lost_points,
            causes=observation.causes,
            cards=observation.in_service_cards,
            unseen_cards=observation.unseen_cards,
            unwanted_points=observation.free_without_demand_points,
            witnessed_points=observation.witnessed_missing_points,
            silent=tuple(observation.silent_nodes),
        )

    @classmethod
    def of_state(cls, state: IncidentState) -> Seen:
        """Return what an incident kept."""
        unwanted = state.lost_points.get("FREE", 0.0) if state.leading_cause == NO_DEMAND else 0.0
        return cls(points=state.lost_points, causes=state.causes, unwanted_points=unwanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Attributes: before, tally, earlier: as of Background; None: not known."""

    now: Seen
    before: Seen | None = None
    tally: Tally | None = None
    earlier: Tally | None = None

    @classmethod
    def of(cls, state: IncidentState, background: Background) -> Evidence:
        """Return what is known of an incident."""
        now, before = background.now, background.before
        return cls(
            now=Seen.of_state(state) if now is None else Seen.of(now),
            before=None if before is None else Seen.of(before),
            tally=background.tally,
            earlier=background.earlier,
        )

    @property
    def layout(self) -> Layout:
        """The nodes and racks of the cluster; empty where nothing tells them."""
        return Layout() if self.tally is None else self.tally.layout

    @property
    def known(self) -> tuple[Cause, ...]:
        """Causes of before."""
        return () if self.before is None else self.before.causes

    @property
    def cards(self) -> float:
        """Cards that points of allocation are of; 0: not known."""
        return max(0.0, self.now.cards - self.now.unseen_cards)

    @property
    def mfu_cards(self) -> float:
        """Cards that points of MFU are of; 0: not known."""
        return 0.0 if self.tally is None else self.tally.mfu_cards

    def gone(self) -> dict[str, float]:
        """Return node → cards that nobody could use, since whenever."""
        if self.tally is None:
            return {}
        return _lost(self.tally, tuple(b for b in self.tally.lost if b not in USABLE))

    def ended(self) -> dict[str, float]:
        """Return job → cards that it held before, of jobs that hold none any more."""
        if self.tally is None or self.earlier is None:
            return {}
        left = self.tally.held
        return {job: cards for job, cards in self.earlier.held.items() if not left.get(job)}

    def points_before(self, name: str) -> float:
        """Return points that were lost before."""
        return 0.0 if self.before is None else self.before.points.get(name, 0.0)

    def grown(self) -> dict[str, float]:
        """Return bucket or step → points that it lost since before; all where little grew."""
        now = {n: lost for n, lost in self.now.points.items() if n not in NOT_CAUSES and lost > 0}
        return _news(now, {name: self.points_before(name) for name in now})

    def nodes(self, points: float, *buckets: str) -> dict[str, float]:
        """Return node → cards that it lost to buckets since before; empty where no names are known.

        Args:
            points: that the buckets lost.
        """
        if self.tally is not None:
            now = _lost(self.tally, buckets)
            return _news(now, {} if self.earlier is None else _lost(self.earlier, buckets))
        causes = [cause for cause in self.now.causes if cause.kind == "node"]
        told = sum(cause.points for cause in causes)
        if not TOLD_SHARE * points <= told <= points / TOLD_SHARE:
            return {}
        before = {cause.name: cause.cards for cause in self.known if cause.kind == "node"}
        return _news({cause.name: cause.cards for cause in causes}, before)


def _lost(tally: Tally, buckets: tuple[str, ...]) -> dict[str, float]:
    lost: dict[str, float] = {}
    for bucket in buckets:
        for node, cards in tally.lost.get(bucket, {}).items():
            lost[node] = lost.get(node, 0.0) + cards
    return lost


def _news(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Return what is more than before; what is now where that is hardly any of it."""
    grown = {name: lost - before.get(name, 0.0) for name, lost in now.items()}
    grown = {name: lost for name, lost in grown.items() if lost > CARDS_MIN}
    return grown if sum(grown.values()) >= GREW_SHARE * sum(now.values()) else dict(now)

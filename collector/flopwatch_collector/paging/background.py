"""What a page is written from beside the incident itself, and where that is found.

Gathered only when something is sent, and nothing of it holds a page back: what cannot be had at once is
left out, and the page says less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from flopwatch_collector.incident_state import Act, Action, IncidentState
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import Rule
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.tally import Tallies, Tally
from flopwatch_proto.errors import FlopwatchError

log = structlog.get_logger()

BEFORE_MS: Final = 15 * 60_000
"""How long before it fell the best figure is looked for, and what changed."""
NEWS: Final = ("value", "baseline")
"""Reasons of an escalation that are a fall of their own: they are compared with just before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that happened before. Attributes: count: how often; nodes: where, the first few."""

    unix_ms: int
    what: str
    count: int = 1
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """Everything that a page may tell and an incident does not keep. None: not known.

    Attributes:
        settings: of the rule on this cluster.
        now, before: what the rule was told at this tick, and when the figure stood best before it fell.
        tally, earlier: who lost what at this tick, and before it fell.
        changes: what happened in the cluster just before, the newest first; None: could not be asked.
        usd_per_card_hour: price of a card of this cluster.
        told: routes that have a page of the episode already: they hear how it goes on.
    """

    settings: RuleSettings | None = None
    now: Observation | None = None
    before: Observation | None = None
    tally: Tally | None = None
    earlier: Tally | None = None
    changes: tuple[Change, ...] | None = None
    usd_per_card_hour: float | None = None
    told: frozenset[str] = frozenset()

    def figure_before(self, rule: Rule) -> float | None:
        """Return what the rule judged before it fell; None where that is not known."""
        before = self.before
        if before is None:
            return None
        if rule.name == rule.reads:
            return before.value if before.value is not None else before.hi
        # A rule that reads another rule's observation judges a figure of its own.
        return rule.judge(before, self.settings or rule.defaults).figure


NOTHING: Final = Background()


class Kept(Protocol):
    """What is needed of the control store."""

    def best(
        self, rule: str, cluster: str, since_unix_ms: int, until_unix_ms: int
    ) -> Observation | None:
        """Return the observation with the highest figure of a time; None: there is none."""

    def routes_told(self, rule: str, cluster: str, episode: str) -> frozenset[str]:
        """Return the routes that have a page of an episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backgrounds:
    """Finds the background of pages.

    Attributes:
        kept: the control store.
        tallies: of a cluster; None: there are none.
        changes: what happened in a cluster between two moments; may fail, and takes a bounded time.
        prices: cluster → price of a card's hour in USD.
    """

    kept: Kept
    tallies: Callable[[str], Tallies | None] = lambda cluster: None
    changes: Callable[[str, int, int], Sequence[Change]] | None = None
    prices: Mapping[str, float]

    def of(
        self,
        state: IncidentState,
        actions: Sequence[Action],
        now: Observation | None,
        settings: RuleSettings,
        now_unix_ms: int,
    ) -> Background:
        """Return the background of an incident's pages. Args: now: what the rule was told."""
        over = all(action.act is Act.RESOLVE for action in actions)
        fell_unix_ms = _fell(state, actions, now_unix_ms)
        since_unix_ms = fell_unix_ms - BEFORE_MS
        before = None
        if now is not None:
            before = self.kept.best(now.rule, state.cluster, since_unix_ms, fell_unix_ms)
        tallies = self.tallies(state.cluster)
        earlier_unix_ms = fell_unix_ms if before is None else before.tick_unix_ms
        return Background(
            settings=settings,
            now=now,
            before=before,
            tally=None if tallies is None else tallies.newest(),
            earlier=None if tallies is None else tallies.before(earlier_unix_ms),
            changes=None if over else self._changes(state.cluster, since_unix_ms, now_unix_ms),
            usd_per_card_hour=self.prices.get(state.cluster),
            told=self.kept.routes_told(state.rule, state.cluster, state.episode),
        )

    def _changes(
        self, cluster: str, since_unix_ms: int, until_unix_ms: int
    ) -> tuple[Change, ...] | None:
        if self.changes is None:
            return None
        try:
            return tuple(self.changes(cluster, since_unix_ms, until_unix_ms))
        except FlopwatchError as exc:
            log.warning("page_changes_unknown", cluster=cluster, reason=str(exc))
            return None


def _fell(state: IncidentState, actions: Sequence[Action], now_unix_ms: int) -> int:
    """Return the moment before which the cluster was as it had been."""
    for action in actions:
        if action.act is Act.ESCALATE and action.reason in NEWS:
            return now_unix_ms
    return now_unix_ms if state.began_unix_ms is None else state.began_unix_ms

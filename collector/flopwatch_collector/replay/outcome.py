"""Outcomes: what outages of a window come to, rule by rule, and where two sets of rules differ. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flopwatch_collector.incident_state import Act
from flopwatch_collector.replay import Moment, Outage
from flopwatch_collector.replay.player import Player
from flopwatch_collector.rules.registry import RULES
from flopwatch_collector.rules.verdict import Condition

PAGES: Final = (Act.TRIGGER.value, Act.ESCALATE.value)
REPORT_EVERY: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is asked about: ``[since, until)``, Unix ms."""

    since_unix_ms: int
    until_unix_ms: int

    def length_ms(self, outage: Outage) -> int:
        """How much of an outage lies in the window."""
        ended = self.until_unix_ms if outage.ended_unix_ms is None else outage.ended_unix_ms
        return min(ended, self.until_unix_ms) - max(outage.began_unix_ms, self.since_unix_ms)

    def has(self, unix_ms: int) -> bool:
        """Whether a moment lies in the window."""
        return self.since_unix_ms <= unix_ms < self.until_unix_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one rule did in a window.

    Attributes:
        pages: triggers and escalations; notices: standing, flapping, cards that nobody waits for.
        outages: that had a page; standing: of those, how many stood a day or more.
        out_ms: time in these outages; longest_ms: the longest, as far as it lies in the window.
        unknown_ms: time that could not be judged, from the beginning of the history.
    """

    rule: str
    enabled: bool
    line: float
    pages: int
    notices: int
    outages: int
    standing: int
    out_ms: int
    longest_ms: int
    unknown_ms: int


class Lowest:
    """The lowest judged figure of each rule, by equal parts of a window."""

    def __init__(self, window: Window, parts: int) -> None:
        self._since = window.since_unix_ms
        self._part_ms = max(1, -(-(window.until_unix_ms - window.since_unix_ms) // parts))
        own = [rule.name for rule in RULES if rule.name == rule.reads]
        self.figures: dict[str, list[float | None]] = {name: [None] * parts for name in own}

    def add(self, tick_unix_ms: int, player: Player) -> None:
        """Take up what a player made of its newest moment."""
        if tick_unix_ms < self._since:
            return
        part = (tick_unix_ms - self._since) // self._part_ms
        for name, figures in self.figures.items():
            verdict = player.verdicts[name]
            if verdict.figure is None or verdict.condition is Condition.UNKNOWN:
                continue
            lowest = figures[part]
            if lowest is None or verdict.figure < lowest:
                figures[part] = verdict.figure


def played(moments: Iterable[Moment], players: Sequence[Player], lowest: Lowest) -> Iterator[int]:
    """Let players judge every moment; yields how far they are, Unix ms, now and then."""
    for number, moment in enumerate(moments):
        for player in players:
            player.play(moment)
        lowest.add(moment.tick_unix_ms, players[0])
        if number % REPORT_EVERY == 0:
            yield moment.tick_unix_ms


def paged(outages: Iterable[Outage], window: Window) -> list[Outage]:
    """Outages with a page that hold within a window."""
    return [
        outage
        for outage in outages
        if window.length_ms(outage) > 0 and any(told.act in PAGES for told in outage.told)
    ]


def outcomes(player: Player, window: Window) -> list[Outcome]:
    """Every rule's outcome, in the order of the listing."""
    return [_outcome(rule.name, player, window) for rule in RULES]


def _outcome(rule: str, player: Player, window: Window) -> Outcome:
    of = [outage for outage in player.outages if outage.rule == rule]
    told = [page for outage in of for page in outage.told if window.has(page.unix_ms)]
    held = paged(of, window)
    lengths = [window.length_ms(outage) for outage in held]
    settings = player.settings(rule)
    return Outcome(
        rule=rule,
        enabled=settings.enabled,
        line=settings.line,
        pages=sum(page.act in PAGES for page in told),
        notices=sum(page.act not in PAGES for page in told),
        outages=len(held),
        standing=sum(outage.standing_unix_ms is not None for outage in held),
        out_ms=sum(lengths),
        longest_ms=max(lengths, default=0),
        unknown_ms=player.unknown_ms(rule),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Outages of two sets of rules that overlap: None where one set has none."""

    today: Outage | None
    tried: Outage | None

    @property
    def either(self) -> Outage:
        """Today's, or the other."""
        found = self.today or self.tried
        assert found is not None
        return found


def pairs(today: Sequence[Outage], tried: Sequence[Outage] = ()) -> list[Pair]:
    """Each outage with the first of the other set that overlaps it, oldest first; each stands once."""
    left = list(tried)
    found: list[Pair] = []
    for outage in today:
        match = next((other for other in left if _overlap(outage, other)), None)
        if match is not None:
            left.remove(match)
        found.append(Pair(today=outage, tried=match))
    found.extend(Pair(today=None, tried=other) for other in left)
    return sorted(found, key=lambda pair: (pair.either.began_unix_ms, pair.either.rule))


def _overlap(one: Outage, other: Outage) -> bool:
    if one.rule != other.rule:
        return False
    return (one.ended_unix_ms is None or other.began_unix_ms < one.ended_unix_ms) and (
        other.ended_unix_ms is None or one.began_unix_ms < other.ended_unix_ms
    )

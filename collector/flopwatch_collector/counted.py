"""What rules count at a tick: silent nodes, failed, throttled and rogue cards, jobs that stand still. Pure.

`Counts` is told every tick what is seen of a cluster, and remembers what it counted. A card or job that was
counted when last seen and is unseen now is counted apart (``subjects_unseen``): it may decide nothing. What
is MISSING (15 minutes of silence) is not unseen any more: the silence is the verdict on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.draft import CLASS, JOB, Lines
from flopwatch_collector.ledger.evidence import NEVER, Bools, Floats, Ints
from flopwatch_collector.ledger.lines import LINE_TEXTS
from flopwatch_collector.observe import CAUSES_MAX, STEADY_PHASES, UNLABELLED
from flopwatch_collector.rules import Cause, Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_proto.rows import INTERVAL_MS, Bucket

SILENT_MS_MIN: Final = 60_000
"""A batch may be late by less."""
IDLE_SM_RATIO: Final = 0.01
UNLABELLED_CARDS_MIN: Final = 8
HEATED_SHARE: Final = 0.5
"""Of its interval, with heat or a power brake as the reason for its clock."""
STARVED_SHARE: Final = 0.25
"""Of its time, lost to its own power limit."""
_HEAT: Final = ("throttled_thermal_sw_ms", "throttled_thermal_hw_ms", "throttled_power_brake_ms")
_TELLS: Final = (*_HEAT, "throttled_power_ms")
_RUNS: Final = (Bucket.ACTIVE, Bucket.IDLE_ALLOC, Bucket.ALLOCATED)
_PHASE: Final = LINE_TEXTS.index("phase")
Place = tuple[str, str]
"""Node and slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is seen of a cluster at a tick.

    Attributes:
        base: the observation of allocation.
        lines: of the newest interval, per slot, without what is excused.
        heard: (node, slot) → end of its last row; word: a node's agent's last word, 0: none.
        goodbyes: nodes that took leave and are not yet overdue.
        ready_unix_ms: when this collector began to hear.
        settings: of a rule on this cluster; classes: that the MFU rule counts.
    """

    base: Observation
    lines: Lines
    heard: Mapping[Place, int]
    word: Callable[[str], int]
    goodbyes: Set[str]
    ready_unix_ms: int
    settings: Callable[[str], RuleSettings]
    classes: tuple[str, ...]


@dataclass(slots=True)
class _Standing:
    """A job that stands still. Attributes: places: its cards."""

    since_unix_ms: int
    places: frozenset[Place]


class Counts:
    """Counts of one cluster, tick by tick."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._cards: dict[str, set[Place]] = {}
        self._standing: dict[str, _Standing] = {}
        self._resting: set[str] = set()
        self._tick_unix_ms = 0

    def of(self, sight: Sight) -> list[Observation]:
        """Return an observation for each rule that counts rows."""
        lines = sight.lines
        silent, observed = self._silent(sight)
        cards = len(_keys(lines, np.ones(len(lines.key), np.bool_)))
        held, tells = _throttled(lines)
        made = [
            observed,
            self._counted(
                "card_failed",
                sight,
                lines.bucket == Bucket.FAILED,
                cards,
                without={*silent, *sight.goodbyes},
            ),
            self._counted("rogue", sight, lines.rogue & (lines.ints["card_ms"] > 0), cards),
            self._counted("throttled", sight, held, len(_keys(lines, tells)), tells=tells),
            self._stalled(sight),
        ]
        self._tick_unix_ms = sight.base.tick_unix_ms
        return made

    def _counted(
        self,
        rule: str,
        sight: Sight,
        mask: Bools,
        whole: int,
        *,
        without: Set[str] = frozenset(),
        tells: Bools | None = None,
    ) -> Observation:
        """Cards that a mask of lines finds.

        Args:
            whole: that could be found; 0: nothing is known.
            without: nodes whose cards are another rule's.
            tells: lines that say whether it is so; None: all but those that are unseen.
        """
        lines = sight.lines
        places = {lines.names[k] for k in _keys(lines, mask)}
        found = {place for place in places if place[0] not in without}
        before = self._cards.get(rule, set()) - found
        mute = lines.bucket == Bucket.UNSEEN
        if tells is not None:
            mute = ~tells & ~np.isin(lines.bucket, (Bucket.MISSING, Bucket.FAILED))
            before -= _among(lines, before, tells)
        unseen = _among(lines, before, mute)
        self._cards[rule] = found | unseen
        causes = ("card", {f"{node}/{slot}": 1.0 for node, slot in found})
        if rule == "throttled":
            causes = ("node", _cards_by_node(found))
        count = len(found) if whole else None
        return observation(
            sight.base, rule, count, whole, causes=causes, subjects_unseen=len(unseen)
        )

    def _stalled(self, sight: Sight) -> Observation:
        lines, tick = sight.lines, sight.base.tick_unix_ms
        jobs, job, counts = _jobs(lines, sight.classes)
        card_ms, active_ms = lines.ints["card_ms"], lines.sums["sm_active_ms"]
        known = counts & ~np.isnan(active_ms) & (card_ms > 0)
        idle = known & (np.nan_to_num(active_ms) < IDLE_SM_RATIO * card_ms)
        measured, idling = (np.bincount(job[mask], minlength=len(jobs)) for mask in (known, idle))
        before, self._standing = self._standing, {}
        cards: dict[str, float] = {}
        small = _small(lines, job, counts, len(jobs))
        for number in np.flatnonzero((measured > 0) & (idling == measured) & ~small):
            name, here = jobs[number], counts & (job == number)
            since = before[name].since_unix_ms if name in before else tick - INTERVAL_MS
            places = frozenset(lines.names[k] for k in lines.key[here])
            self._standing[name] = _Standing(since, places)
            cards[name] = float(card_ms[here].sum()) / INTERVAL_MS
        since_unix_ms = {name: self._standing[name].since_unix_ms for name in cards}
        running = {jobs[n] for n in np.flatnonzero(np.bincount(job[counts], minlength=len(jobs)))}
        seen = {jobs[number] for number in np.flatnonzero(measured > 0)}
        mute = lines.bucket == Bucket.UNSEEN
        unseen = {
            name: stood
            for name, stood in before.items()
            if name not in seen and (name in running or _among(lines, stood.places, mute))
        }
        for name, stood in unseen.items():
            # What nobody saw is no time of standing still.
            stood.since_unix_ms += tick - self._tick_unix_ms
            self._standing[name] = stood
        window_s = sight.settings("job_stalled").window_s
        long = {n for n, since in since_unix_ms.items() if tick - since >= 1000 * window_s}
        stood_long = [stood.since_unix_ms for stood in unseen.values()]
        return observation(
            sight.base,
            "job_stalled",
            len(long),
            len(running | unseen.keys()),
            causes=("job", {name: cards[name] for name in long}),
            subjects_unseen=sum(tick - since >= 1000 * window_s for since in stood_long),
            since_unix_ms=since_unix_ms,
        )

    def _silent(self, sight: Sight) -> tuple[dict[str, int], Observation]:
        """Nodes without a word → its moment, with what the rule is told."""
        base, lines, tick = sight.base, sight.lines, sight.base.tick_unix_ms
        speaks = np.zeros(len(lines.names), np.bool_)
        speaks[lines.key[lines.ints["row_ms"] > 0]] = True
        quiet = ~speaks[lines.key]
        nodes = _nodes(lines, quiet) - sight.goodbyes
        last: dict[str, int] = {}
        for (node, _), end in sight.heard.items() if nodes else ():
            if node in nodes:
                last[node] = max(last.get(node, NEVER), end)
        words = {n: max(last.get(n, NEVER), sight.word(n), sight.ready_unix_ms) for n in nodes}
        silent = {node: word for node, word in words.items() if tick - word >= SILENT_MS_MIN}
        # A node in maintenance stays there while nothing is heard of it: its scheduler may be away.
        missed = np.isin(lines.bucket, (Bucket.MAINT, Bucket.UNSEEN, Bucket.MISSING))
        resting = self._resting | _nodes(lines, quiet & (lines.bucket == Bucket.MAINT))
        self._resting = (resting & silent.keys()) - _nodes(lines, quiet & ~missed)
        counted = {node: word for node, word in silent.items() if node not in self._resting}
        window_s = sight.settings("node_silent").window_s
        long = {n for n, word in counted.items() if tick - word >= 1000 * window_s}
        cards = _cards_by_node(lines.names[k] for k in _keys(lines, quiet))
        return silent, observation(
            base,
            "node_silent",
            len(long),
            base.in_service_nodes or 0,
            causes=("node", {node: cards[node] for node in long}),
            silent_nodes=counted,
        )


def observation(
    base: Observation,
    rule: str,
    count: int | None,
    whole: int,
    *,
    causes: tuple[str, Mapping[str, float]] = ("", {}),
    **more: Any,
) -> Observation:
    """Return what a rule that counts is told.

    Args:
        base: of the cluster at the tick.
        count: None: not known.
        causes: kind, and cards by name.
        more: fields as they are.
    """
    value = None if count is None else 1.0 - count / whole if whole else 1.0
    kind, cards = causes
    largest = sorted(cards.items(), key=lambda found: (-found[1], found[0]))[:CAUSES_MAX]
    whole_cards = base.in_service_cards
    return replace(
        base,
        rule=rule,
        lo=value,
        hi=value,
        value=value,
        coverage=None,
        lost_points={},
        free_without_demand_points=0.0,
        witnessed_missing_points=0.0,
        causes=tuple(
            Cause(kind=kind, name=n, cards=c, points=100 * c / whole_cards if whole_cards else 0.0)
            for n, c in largest
        ),
        subjects=count,
        subjects_in_all=whole,
        **{"silent_nodes": {}, **more},
    )


def _throttled(lines: Lines) -> tuple[Bools, Bools]:
    """Return the lines of cards that are held back, and those that tell whether they are."""
    sums, card_ms = lines.sums, lines.ints["card_ms"]
    tells = np.any([~np.isnan(sums[name]) for name in _TELLS], axis=0) & (card_ms > 0)
    heat = np.max([np.nan_to_num(sums[name]) for name in _HEAT], axis=0)
    share = _share_of_card(lines, heat, tells)
    starved = _share_of_card(lines, np.nan_to_num(sums["clock_power_step_ms"]), tells)
    held: Bools = tells & ((share >= HEATED_SHARE) | (starved >= STARVED_SHARE))
    return held, tells


def _share_of_card(lines: Lines, spent_ms: Floats, mask: Bools) -> Floats:
    """Return, per line, which share of its card's time was spent so."""
    count = len(lines.names)
    spent = np.bincount(lines.key[mask], spent_ms[mask], minlength=count)
    whole = np.bincount(lines.key[mask], lines.ints["card_ms"][mask], minlength=count)
    share: Floats = (spent / np.maximum(whole, 1))[lines.key]
    return share


def _jobs(lines: Lines, classes: tuple[str, ...]) -> tuple[list[str], Ints, Bools]:
    """Return the jobs, the job of each line as a number, and which lines count as work of a job."""
    wanted = {*classes, "unknown", UNLABELLED}
    numbers: dict[str, int] = {}
    of_group = np.array([numbers.setdefault(g[JOB], len(numbers)) for g in lines.groups], np.int64)
    counted = np.array(
        [bool(g[JOB]) and g[CLASS] in wanted and g[_PHASE] in STEADY_PHASES for g in lines.groups],
        np.bool_,
    )
    if not len(lines.group):
        return list(numbers), lines.group, np.zeros(0, np.bool_)
    return (
        list(numbers),
        of_group[lines.group],
        counted[lines.group] & np.isin(lines.bucket, _RUNS),
    )


def _small(lines: Lines, job: Ints, counts: Bools, jobs: int) -> Bools:
    """Return which jobs are too small to be told from a notebook, and not labelled."""
    labelled = np.array([g[CLASS] not in ("unknown", UNLABELLED) for g in lines.groups], np.bool_)
    known = np.bincount(job[counts], labelled[lines.group][counts], minlength=jobs)
    cards = np.bincount(job[counts], lines.ints["card_ms"][counts], minlength=jobs) / INTERVAL_MS
    small: Bools = (known == 0) & (cards < UNLABELLED_CARDS_MIN)
    return small


def _keys(lines: Lines, mask: Bools) -> Ints:
    """Return the keys of a mask of lines, each once."""
    there = np.zeros(len(lines.names), np.bool_)
    there[lines.key[mask]] = True
    return np.flatnonzero(there)


def _nodes(lines: Lines, mask: Bools) -> set[str]:
    return {lines.names[k][0] for k in _keys(lines, mask)}


def _among(lines: Lines, places: Set[Place], mask: Bools) -> set[Place]:
    """Return which places are among those of a mask of lines."""
    if not places:
        return set()
    return {lines.names[k] for k in _keys(lines, mask)} & places


def _cards_by_node(places: Iterable[Place]) -> dict[str, float]:
    cards: dict[str, float] = {}
    for node, _ in places:
        cards[node] = cards.get(node, 0.0) + 1.0
    return cards

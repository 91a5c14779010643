"""Who keeps a job waiting: a culprit named among victims, from counters of all its cards. Pure.

Every rank of a synchronous step waits for the last. So all are equally slow, and victims differ from the
culprit only in how they spend the time: they spin (SM busy, tensor pipe and link quiet) while it works.
What tells the kinds apart:

    slow_clock   its SM clock is below its peers'
    slow_card    same clock; its computation ends later than its peers', who spin: busier, and warmer
    late_rank    its computation begins later, and no kernel runs meanwhile: less busy, and cooler
    data_stall   all cards of one node are idle while those of others spin
    slow_link    computes in time; its link is busy longer, at a lower rate

A card is compared with its node's other cards, a node with the other nodes, by robust statistics
(`crowd.outlier`): a candidate must stand out from the spread of all the others, and from the next one. So a
healthy crowd, in which somebody is always last, has no culprit. Where readings are far apart (rows of 10 s)
lags cannot be seen, and what remains is said with less confidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flopwatch_collector.jobs.alignment import aligned
from flopwatch_collector.jobs.crowd import (
    LINKS,
    THROTTLES,
    Counters,
    Crowd,
    Outlier,
    crowd_of,
    known_mean,
    median,
    outlier,
)
from flopwatch_collector.jobs.lag import Curve, Fit, Floats, fit

CULPRITS_MAX: Final = 5
CLOCK_MIN: Final = 0.02
NODE_SM_MIN: Final = 0.003
NODE_CARDS_MIN: Final = 0.75
"""Of a node whose data stalls, so many cards are idler than the median node."""
COARSE_CONFIDENCE_MAX: Final = 0.7
ENERGY_MIN: Final = 0.003
"""Differences of so little are what counters are good to: in logarithms they would look far apart."""
LATE_ERRORS_MIN: Final = 3.0
LINK_CONTRAST_MIN: Final = 0.05
"""A link whose curve varies less carries nothing of the job's rhythm."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How far a value must stand out: in spreads of the others, and as a multiple of the next one."""

    spreads: float
    next_ratio: float


CLOCK: Final = Bar(5.0, 1.35)
CARD: Final = Bar(6.0, 1.5)
CARD_SM: Final = Bar(7.0, 1.5)
NODE: Final = Bar(4.5, 2.2)
LINK: Final = Bar(6.0, 1.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """One candidate.

    Attributes:
        slot: None: the whole node.
        confidence: 0.5 … 0.99, by how far it stands out.
        evidence: sentences with the numbers they rest on.
    """

    kind: str
    node: str
    slot: str | None
    confidence: float
    evidence: tuple[str, ...]

    def shown(self) -> dict[str, Any]:
        """Return it in the shape of the API."""
        return {
            "kind": self.kind,
            "node": self.node,
            "slot": self.slot,
            "confidence": round(self.confidence, 2),
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stragglers:
    """What was found.

    Attributes:
        culprits: the clearest first; empty: nobody stands out, or nobody can be told, as ``reason`` says.
        judged: False: there was too little to judge by.
        idle_cards: cards of the job that do nothing; they are no part of the comparison.
        step_s: length of a step by the counters' period; None: not seen.
        every_s: time between two readings.
    """

    culprits: tuple[Straggler, ...]
    judged: bool
    cards: int
    idle_cards: int
    step_s: float | None
    every_s: float | None
    reason: str

    def shown(self) -> dict[str, Any]:
        """Return it in the shape of the API."""
        return {
            "judged": self.judged,
            "culprits": [culprit.shown() for culprit in self.culprits],
            "reason": self.reason or None,
            "cards": self.cards,
            "idle_cards": self.idle_cards,
            "step_s": self.step_s,
            "every_s": self.every_s,
        }


def find(counters: Counters) -> Stragglers:
    """Return the culprits of a job."""
    crowd = crowd_of(aligned(counters))
    if isinstance(crowd, str):
        return Stragglers(
            culprits=(), judged=False, cards=len(counters.nodes), idle_cards=0,
            step_s=None, every_s=None, reason=crowd,
        )  # fmt: skip
    named: list[Straggler] = []
    for straggler in sorted(_candidates(crowd), key=lambda s: -s.confidence):
        if all((s.node, s.slot) != (straggler.node, straggler.slot) for s in named):
            named.append(straggler)
    return Stragglers(
        culprits=tuple(named[:CULPRITS_MAX]),
        judged=True,
        cards=len(crowd.node),
        idle_cards=len(counters.nodes) - len(crowd.node),
        step_s=crowd.step_s,
        every_s=crowd.every_s,
        reason="" if named else "nobody stands out from its peers",
    )


def _candidates(crowd: Crowd) -> Iterator[Straggler]:
    clocks = list(_slow_clocks(crowd))
    late = list(_coarse_cards(crowd) if crowd.curve is None else _late_cards(crowd, crowd.curve))
    links: list[Straggler] = []
    if crowd.curve is not None and not late:  # whoever computes late also sends late
        links = [s for name in LINKS if name in crowd.fields for s in _slow_links(crowd, name)]
    yield from (*clocks, *late, *links)
    # A late card keeps its node's other cards waiting: the card is the closer word.
    named = {straggler.node for straggler in (*clocks, *late)}
    yield from (s for s in _stalled_nodes(crowd) if s.node not in named)


def _stands_out(found: Outlier | None, bar: Bar) -> bool:
    return found is not None and found.spreads >= bar.spreads and found.next_ratio >= bar.next_ratio


def _straggler(
    crowd: Crowd, kind: str, found: Outlier, bar: Bar, *evidence: str, node: bool = False
) -> Straggler:
    confidence = min(0.99, 1 - 0.5 * (bar.spreads / found.spreads) ** 2)
    if crowd.curve is None and kind != "slow_clock":  # a clock needs no lags
        confidence = min(confidence, COARSE_CONFIDENCE_MAX)
    at = found.index if node else int(crowd.node[found.index])
    return Straggler(
        kind=kind,
        node=crowd.names[at],
        slot=None if node else crowd.slots[found.index],
        confidence=confidence,
        evidence=(*evidence, f"{found.spreads:.0f} spreads of its peers away from them"),
    )


# ---- clocks


def _slow_clocks(crowd: Crowd) -> Iterator[Straggler]:
    clock = crowd.mean("sm_clock_mhz")
    with np.errstate(invalid="ignore", divide="ignore"):
        below = -crowd.levelled(np.where(clock > 0, np.log(clock), np.nan))
    by_node = np.array([median(below[crowd.node == n]) for n in range(len(crowd.names))])
    whole = outlier(by_node, np.arange(len(by_node)), 0.002)
    if whole is not None and _stands_out(whole, NODE) and whole.deviation >= CLOCK_MIN:
        mates = crowd.node == whole.index
        text = _clock_text(clock, mates, whole.deviation) + ", on all its cards"
        yield _straggler(
            crowd, "slow_clock", whole, NODE, text, *_throttles(crowd, mates), node=True
        )
        return
    found = outlier(below, crowd.node, 0.003)
    if found is not None and _stands_out(found, CLOCK) and found.deviation >= CLOCK_MIN:
        here = np.arange(len(clock)) == found.index
        text = _clock_text(clock, here, found.deviation)
        yield _straggler(crowd, "slow_clock", found, CLOCK, text, *_throttles(crowd, here))


def _clock_text(clock: Floats, here: np.ndarray[Any, Any], below: float) -> str:
    return (
        f"SM clock {median(clock[here]):.0f} MHz beside {median(clock):.0f} MHz of its peers, "
        f"{100 * (1 - np.exp(-below)):.0f} % lower"
    )


def _throttles(crowd: Crowd, here: np.ndarray[Any, Any]) -> Iterator[str]:
    """Say which throttle counters rose on the culprit and not on its peers."""
    for reason in THROTTLES:
        values = crowd.fields.get(f"throttled_{reason}_seconds_total")
        if values is None:
            continue
        rose = np.array([_rise(row) for row in values])
        own, peers = median(rose[here]), median(np.nan_to_num(rose[~here]))
        if own > 1.0 and own > 2 * peers:
            yield f"slowed by {reason.replace('_', ' ')} for {own:.0f} s, its peers {peers:.0f} s"


def _rise(row: Floats) -> float:
    known = row[~np.isnan(row)]
    return float(np.clip(np.diff(known), 0, None).sum()) if len(known) > 1 else np.nan


# ---- nodes


def _stalled_nodes(crowd: Crowd) -> Iterator[Straggler]:
    active = crowd.mean("sm_active_ratio")
    nodes = np.arange(len(crowd.names))
    by_node = np.array([median(active[crowd.node == n]) for n in nodes])
    tests = [outlier(-by_node, nodes, 0.002)]
    if crowd.curve is not None:
        curve = crowd.curve
        beside = fit(curve.own - curve.others, curve.others, curve.slope)
        tests.append(outlier(np.log(beside.energy + ENERGY_MIN), nodes, 0.1))
        tests.append(outlier(beside.sure_lag_s, nodes, median(beside.error_s)))
    for found in tests:
        if found is None or not _stands_out(found, NODE):
            continue
        here = crowd.node == found.index
        below = median(by_node) - by_node[found.index]
        if below < NODE_SM_MIN or (active[here] < median(by_node)).mean() < NODE_CARDS_MIN:
            continue  # not idle, or not all of it: that is no stall
        text = (
            f"SM active {100 * by_node[found.index]:.1f} % on all its cards beside "
            f"{100 * median(by_node):.1f} % elsewhere: idle while others wait"
        )
        yield _straggler(crowd, "data_stall", found, NODE, text, node=True)


# ---- cards


def _late_cards(crowd: Crowd, curve: Curve) -> Iterator[Straggler]:
    beside = crowd.beside_mates("tensor_active_ratio", curve)
    lag = outlier(crowd.levelled(beside.sure_lag_s), crowd.node, median(beside.error_s))
    energy = outlier(crowd.levelled(np.log(beside.energy + ENERGY_MIN)), crowd.node, 0.08)
    clear = [f for f in (lag, energy) if f is not None and _stands_out(f, CARD)]
    if not clear:
        return
    found = max(clear, key=lambda f: f.spreads)
    busier = _busier(crowd, found.index)
    when = _late_text(beside, found.index)
    if busier > 0:
        kind, text = "slow_card", f"computes longer than the other cards of its node{when}"
    else:
        kind, text = "late_rank", f"begins to compute later than the other cards of its node{when}"
    yield _straggler(crowd, kind, found, CARD, text, _busy_text(crowd, found.index))


def _late_text(beside: Fit, card: int) -> str:
    """Say how late; nothing where that is not certain: of a long lag the first order says little."""
    late_s, error_s = float(beside.lag_s[card]), float(beside.error_s[card])
    return f", {late_s:.2g} s on average" if late_s > LATE_ERRORS_MIN * error_s else ""


def _busier(crowd: Crowd, card: int) -> float:
    """Return, in spreads of all cards, how much busier and warmer a card is than its node's others.

    What computes longer is busy and warm while its mates spin; what begins late is neither.
    """
    total = 0.0
    for name in ("sm_active_ratio", "power_watts"):
        beside = _beside(crowd, name)
        known = beside[~np.isnan(beside)]
        if len(known) and not np.isnan(beside[card]):
            total += float(beside[card]) / max(1.4826 * float(np.median(np.abs(known))), 1e-4)
    return total


def _beside(crowd: Crowd, name: str) -> Floats:
    """Return each card's mean as a part of its node's median, less 1."""
    mean = crowd.mean(name)
    mates = np.array([median(mean[crowd.node == n]) for n in range(len(crowd.names))])
    with np.errstate(invalid="ignore", divide="ignore"):
        return crowd.levelled(mean / mates[crowd.node] - 1)


def _busy_text(crowd: Crowd, card: int) -> str:
    own, mates = crowd.mean("sm_active_ratio"), crowd.node == crowd.node[card]
    text = f"SM active {100 * own[card]:.1f} % beside {100 * median(own[mates]):.1f} %"
    watts = crowd.mean("power_watts")
    if not np.isnan(watts[card]):
        text += f", {watts[card]:.0f} W beside {median(watts[mates]):.0f} W"
    return text


def _coarse_cards(crowd: Crowd) -> Iterator[Straggler]:
    """Name a card by its means alone: readings are too far apart for lags."""
    beside = _beside(crowd, "sm_active_ratio")
    for sign, kind, text in (
        (1.0, "slow_card", "waits less than the other cards of its node"),
        (-1.0, "late_rank", "is idle for longer than the other cards of its node"),
    ):
        found = outlier(sign * beside, crowd.node, 0.002)
        if found is not None and _stands_out(found, CARD_SM):
            wide = f"{text}; capture it at 1 Hz to see when in a step"
            yield _straggler(crowd, kind, found, CARD_SM, wide, _busy_text(crowd, found.index))


# ---- links


def _slow_links(crowd: Crowd, name: str) -> Iterator[Straggler]:
    curve = crowd.curve_of(name)
    level = float(known_mean(curve.whole[None, :])[0])
    if level <= 0 or float(np.std(curve.whole)) < LINK_CONTRAST_MIN * level:
        return
    difference = (crowd.fields[name] - curve.own[crowd.node]) / level
    beside = fit(difference, curve.others[crowd.node] / level, curve.slope[crowd.node] / level)
    found = outlier(crowd.levelled(np.log(beside.energy + ENERGY_MIN)), crowd.node, 0.08)
    if found is None or not _stands_out(found, LINK):
        return
    text = (
        f"{LINKS[name]} moves the same bytes later and more slowly than the other cards of its node"
        + _late_text(beside, found.index)
    )
    fields = crowd.fields[name]
    top = [float(np.nanquantile(row, 0.95)) for row in fields]
    mates = np.array(top)[crowd.node == crowd.node[found.index]]
    peak = f"highest rate {top[found.index] / 1e9:.1f} GB/s beside {median(mates) / 1e9:.1f} GB/s"
    yield _straggler(crowd, "slow_link", found, LINK, f"{text}; {peak}")

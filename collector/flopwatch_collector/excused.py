"""Cards that a rule does not expect: spares by policy, nodes in maintenance, named reservations. Pure.

Accounts and pages of the dashboard know nothing of it: a spare card is a card that was paid for. Only what
pages is judged without. Card-time that is in use is never excused, so an excuse can hide no loss of cards
that somebody uses, and a spare that runs a job counts like any card.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

import numpy as np

from flopwatch_collector.excused_settings import ExcusedConfig, SparesConfig
from flopwatch_collector.ledger.draft import CLASS, Lines
from flopwatch_collector.ledger.evidence import Bools, Ints
from flopwatch_collector.roster.said import reservations_of
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

# Of a rack with more lost cards than spares, those go first that are meant to stand by.
_SPARED_FIRST: Final = (
    Bucket.HELD,
    Bucket.MAINT,
    Bucket.FAILED,
    Bucket.FREE,
    Bucket.STRANDED,
    Bucket.MISSING,
    Bucket.UNSEEN,
)
_RANK: Final = np.array(
    [
        _SPARED_FIRST.index(bucket) if bucket in _SPARED_FIRST else len(_SPARED_FIRST)
        for bucket in range(max(Bucket) + 1)
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Excuses:
    """What holds for one cluster now. Attributes: nodes: shell patterns of nodes in maintenance."""

    nodes: tuple[str, ...] = ()
    spares: tuple[SparesConfig, ...] = ()
    reservations: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything may be excused."""
        return bool(self.nodes or self.spares or self.reservations)


NONE: Final = Excuses()


def excuses_of(config: ExcusedConfig, cluster: str, nodes: Sequence[str] = ()) -> Excuses:
    """Return what holds for a cluster. Args: nodes: shell patterns of nodes in maintenance."""
    return Excuses(
        nodes=tuple(nodes),
        spares=tuple(spares for spares in config.spares if spares.cluster == cluster),
        reservations=tuple(r.name for r in config.reservation if r.cluster == cluster),
    )


def without(lines: Lines, excuses: Excuses, window_ms: int) -> tuple[Lines, float]:
    """Return the lines without what is excused, and how many cards that is."""
    card_ms = lines.ints["card_ms"]
    left = np.where(_whole(lines, excuses), 0, card_ms)
    for spares in excuses.spares:
        left -= _spared(lines, left, spares, window_ms)
    excused_cards = float((card_ms - left).sum()) / window_ms
    if not excused_cards:
        return lines, 0.0
    share = left / np.maximum(card_ms, 1)
    kept = left > 0
    return replace(
        lines,
        key=lines.key[kept],
        bucket=lines.bucket[kept],
        rogue=lines.rogue[kept],
        group=lines.group[kept],
        ints={n: np.rint(v * share).astype(np.int64)[kept] for n, v in lines.ints.items()},
        sums={n: (v * share)[kept] for n, v in lines.sums.items()},
        maxima={n: v[kept] for n, v in lines.maxima.items()},
    ), excused_cards


def _whole(lines: Lines, excuses: Excuses) -> Bools:
    """Return which lines are excused as they are: of nodes in maintenance, and of reservations."""
    lost = ~np.isin(lines.bucket, ALLOCATED_BUCKETS)
    nodes = {node for node, _ in lines.names}
    resting = {n for n in nodes if any(fnmatchcase(n, pattern) for pattern in excuses.nodes)}
    slots = np.array([node in resting for node, _ in lines.names], np.bool_)
    groups = np.array([_reserved(group, excuses) for group in lines.groups], np.bool_)
    reserved = groups[lines.group] & (lines.bucket == Bucket.HELD)
    whole: Bools = lost & (slots[lines.key] | reserved)
    return whole


def _reserved(group: tuple[str, ...], excuses: Excuses) -> bool:
    names = reservations_of(group[CLASS])
    return any(fnmatchcase(name, pattern) for name in names for pattern in excuses.reservations)


def _spared(lines: Lines, left_ms: Ints, spares: SparesConfig, window_ms: int) -> Ints:
    """Return the card-time of each line that its rack may do without."""
    rack, racks = _racks(lines, spares)
    here = rack >= 0
    beyond_ms = -np.full(racks, spares.cards_needed * window_ms)
    np.add.at(beyond_ms, rack[here], left_ms[here])
    lost = np.flatnonzero(here & ~np.isin(lines.bucket, ALLOCATED_BUCKETS) & (left_ms > 0))
    order = lost[np.lexsort((_RANK[lines.bucket[lost]], rack[lost]))]
    spent = np.zeros_like(left_ms)
    if not len(order):
        return spent
    after = np.cumsum(left_ms[order])
    first = np.searchsorted(rack[order], rack[order], side="left")
    before = after - left_ms[order] - (after[first] - left_ms[order][first])
    spent[order] = np.clip(beyond_ms[rack[order]] - before, 0, left_ms[order])
    return spent


def _racks(lines: Lines, spares: SparesConfig) -> tuple[Ints, int]:
    """Return the rack of each line, -1 where it is in none, and how many racks there are."""
    pattern = re.compile(spares.rack)
    known: dict[str, int] = {}
    of_node: dict[str, int] = {}
    for node, _ in lines.names:
        if node not in of_node:
            match = pattern.fullmatch(node)
            of_node[node] = -1 if match is None else known.setdefault(match[1], len(known))
    of_slot = np.array([of_node[node] for node, _ in lines.names], np.int64)
    return of_slot[lines.key], len(known)

"""Which entry of a roster speaks for which part of a row. Pure.

A roster may list a slot more than once: jobs that share the card, or a free card of which a share is
stranded. Then a part of a row goes

1. to the entries of the row's own job;
2. else to those whose job no row of the slot carries;
3. else to all of them,

and is divided among several by their weights, in whole milliseconds that add up to the part's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flopwatch_collector.ledger.draft import JOB
from flopwatch_collector.ledger.evidence import Floats, Ints, Rosters, Rows
from flopwatch_collector.ledger.pieces import Parts, Pieces


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of parts. part: index; entry: of the roster, -1: none speaks; ratio: of the part's row-time."""

    part: Ints
    entry: Ints
    ratio: Floats
    card_ms: Ints


def shares_of(rows: Rows, parts: Parts, pieces: Pieces, rosters: Rosters) -> Shares:
    """Return the parts, each once, or once per entry that speaks for a share of it."""
    every = np.arange(len(parts.row))
    if not len(rosters.key) or not len(parts.row):
        return Shares(every, np.full(len(every), -1), np.ones(len(every)), parts.card_ms)
    keys = int(max(rosters.key.max(), rows.key.max())) + 1
    place = rosters.hold * keys + rosters.key
    wanted = pieces.hold[parts.piece] * keys + rows.key[parts.row]
    first = np.searchsorted(place, wanted, side="left")
    after = np.searchsorted(place, wanted, side="right")
    spoken = (pieces.hold[parts.piece] >= 0) & (after > first)
    entry = np.where(spoken, first, -1)
    crowded = np.flatnonzero(spoken & (after - first > 1))
    if not len(crowded):
        return Shares(every, entry, np.ones(len(every)), parts.card_ms)
    jobs = {int(p): rows.groups[rows.group[parts.row[p]]][JOB] for p in crowded}
    carried: dict[int, set[str]] = {}
    for p, job in jobs.items():
        carried.setdefault(int(wanted[p]), set()).add(job)
    chosen = {
        p: _entries_of(job, carried[int(wanted[p])], range(first[p], after[p]), rosters)
        for p, job in jobs.items()
    }
    return _divided(parts, entry, chosen, rosters)


def _entries_of(
    job: str, carried: set[str], entries: Iterable[int], rosters: Rosters
) -> tuple[int, ...]:
    said = {e: rosters.words[rosters.word[e]][0] for e in entries}
    own = tuple(e for e, of in said.items() if of == job)
    return own or tuple(e for e, of in said.items() if of not in carried) or tuple(said)


def _divided(
    parts: Parts, entry: Ints, chosen: dict[int, tuple[int, ...]], rosters: Rosters
) -> Shares:
    count = np.ones(len(entry), np.int64)
    for p, entries in chosen.items():
        count[p] = len(entries)
    at = np.cumsum(count) - count
    part = np.repeat(np.arange(len(entry)), count)
    entry, card_ms, ratio = entry[part], parts.card_ms[part], np.ones(len(part))
    for p, entries in chosen.items():
        here = slice(at[p], at[p] + len(entries))
        weights = rosters.weight[list(entries)]
        entry[here] = entries
        ratio[here] = weights / weights.sum()
        marks = np.rint(np.cumsum(ratio[here]) * parts.card_ms[p]).astype(np.int64)
        card_ms[here] = np.diff(marks, prepend=0)
    return Shares(part, entry, ratio, card_ms)

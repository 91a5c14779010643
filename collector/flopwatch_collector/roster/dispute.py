"""The meter dispute: a scheduler and the node itself disagree about who has a card. Pure.

The roster's word stands in the account (`ledger.account`); a dispute only tells that somebody is wrong. It
is told once, when a disagreement lasted more than ``INTERVALS`` intervals *and* a roster taken after its
beginning still holds to it: a job that has just ended, or a roster that is about to be renewed, is no news.
It ends when both agree; silence of either neither confirms nor ends it.

Who can disagree:

- the roster says nobody has the card, the row has it allocated: ROGUE where there is a process, also on a
  node that the scheduler holds for dead;
- the roster says allocated, the row FREE by the word of a node's own scheduler evidence (cgroup, kubelet,
  file). That a card has no process is no word about its allocation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.draft import IS_ALLOCATED, SOURCE
from flopwatch_collector.ledger.evidence import Rosters, Rows, Seats
from flopwatch_collector.ledger.lines import LINE_TEXTS
from flopwatch_proto.rows import INTERVAL_MS, Bucket

KIND: Final = "meter_dispute"
INTERVALS: Final = 2
EVENTS_PER_MINUTE: Final = 20
FORGET_MS: Final = 15 * 60_000
ROGUE_CODE: Final = 1
"""``code`` of the event where the card has a process that no allocation covers; else 0."""
_MINUTE_MS: Final = 60_000
_USER: Final = LINE_TEXTS.index("user")
_BLIND_SOURCES: Final = ("", "processes")
_NO_WORD: Final = (Bucket.FAILED, Bucket.MISSING, Bucket.UNSEEN)

Place = tuple[str, str, str]
"""(cluster, node, slot)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What both say of a slot in one interval.

    Attributes:
        roster, row: the buckets they name.
        taken_unix_ms: when the roster was taken.
        source, user: the row's; empty: not known.
        disputed, rogue: whether they disagree, and whether a process runs that nobody allocated.
    """

    roster: Bucket
    row: Bucket
    taken_unix_ms: int
    source: str
    user: str
    disputed: bool
    rogue: bool


def words_of(
    seats: Seats, rows: Rows, rosters: Rosters, at_unix_ms: int
) -> dict[tuple[str, str], Words]:
    """Return (node, slot) → words, of slots of which the roster that holds at a moment and a row speak."""
    hold = int(np.searchsorted(rosters.start, at_unix_ms, side="right")) - 1
    if hold < 0 or at_unix_ms >= rosters.end[hold]:
        return {}
    said: dict[int, Bucket] = {}
    for entry in np.flatnonzero(rosters.hold == hold):
        key, bucket = int(rosters.key[entry]), Bucket(int(rosters.bucket[entry]))
        if key not in said or IS_ALLOCATED[bucket]:
            said[key] = bucket
    seen: dict[int, int] = {}
    for row in np.flatnonzero(rows.end > at_unix_ms - INTERVAL_MS):
        key = int(rows.key[row])
        if key in said and (key not in seen or IS_ALLOCATED[rows.bucket[row]]):
            seen[key] = int(row)
    taken = int(rosters.start[hold])
    return {seats.names[key]: _words(said[key], rows, row, taken) for key, row in seen.items()}


def _words(said: Bucket, rows: Rows, row: int, taken_unix_ms: int) -> Words:
    own = Bucket(int(rows.bucket[row]))
    texts = rows.groups[rows.group[row]]
    source, resident = texts[SOURCE], rows.times["resident_ms"][row] > 0
    speaks = resident or source not in _BLIND_SOURCES
    known = own not in _NO_WORD and (resident or said not in _NO_WORD)
    disputed = bool(known and speaks and IS_ALLOCATED[said] != IS_ALLOCATED[own])
    return Words(
        roster=said,
        row=own,
        taken_unix_ms=taken_unix_ms,
        source=source,
        user=texts[_USER],
        disputed=disputed,
        rogue=disputed and bool(resident) and not IS_ALLOCATED[said],
    )


@dataclass(slots=True)
class _Open:
    """A disagreement. Attributes: since, seen: ticks at which it began and was seen last."""

    since: int
    seen: int
    told: bool = False


@dataclass(slots=True)
class Disputes:
    """What is in dispute now; which of it is news. Attributes: unsaid: events beyond the bound, ever."""

    unsaid: int = 0
    _open: dict[Place, _Open] = field(default_factory=dict)
    _minute: int = 0
    _told: int = 0
    _left_out: dict[tuple[str, bool], int] = field(default_factory=dict)

    def see(
        self,
        cluster: str,
        simulated: bool,
        words: Mapping[tuple[str, str], Words],
        tick_unix_ms: int,
    ) -> list[dict[str, Any]]:
        """Return events, as records of table ``event``, for what was in dispute for too long at a tick."""
        told = self._turn(tick_unix_ms)
        for (node, slot), said in sorted(words.items()):
            place = cluster, node, slot
            if not said.disputed:
                self._open.pop(place, None)
                continue
            began = self._open.setdefault(place, _Open(tick_unix_ms, tick_unix_ms))
            began.seen = tick_unix_ms
            lasts = tick_unix_ms - began.since > INTERVALS * INTERVAL_MS
            if began.told or not lasts or said.taken_unix_ms < began.since:
                continue
            began.told = True
            if self._told < EVENTS_PER_MINUTE:
                self._told += 1
                told.append(_event(place, simulated, said, tick_unix_ms))
            else:
                self.unsaid += 1
                left_out = self._left_out.get((cluster, simulated), 0)
                self._left_out[cluster, simulated] = left_out + 1
        return told

    def _turn(self, tick_unix_ms: int) -> list[dict[str, Any]]:
        """Forget what went silent; at a new minute return the counts of what the last one left out."""
        old = tick_unix_ms - FORGET_MS
        for place in [p for p, o in self._open.items() if o.seen < old]:
            del self._open[place]
        minute = tick_unix_ms // _MINUTE_MS
        if minute == self._minute:
            return []
        left_out, self._left_out = self._left_out, {}
        self._minute, self._told = minute, 0
        return [
            _record((cluster, "", ""), simulated, tick_unix_ms, 0, f"{count} more cards in dispute")
            for (cluster, simulated), count in sorted(left_out.items())
        ]


def _event(place: Place, simulated: bool, said: Words, tick_unix_ms: int) -> dict[str, Any]:
    by = f" by {said.source}" if said.source else ""
    text = f"the roster says {said.roster.name}, the node says {said.row.name}{by}"
    if said.rogue:
        text += f"; ROGUE: a process of {said.user or 'an unknown user'} runs without an allocation"
    code = ROGUE_CODE if said.rogue else 0
    return _record(place, simulated, tick_unix_ms, code, text)


def _record(
    place: Place, simulated: bool, tick_unix_ms: int, code: int, text: str
) -> dict[str, Any]:
    cluster, node, slot = place
    return {
        "cluster": cluster,
        "node": node,
        "slot": slot,
        "time_unix_ms": tick_unix_ms,
        "kind": KIND,
        "code": code,
        "severity": "warning",
        "text": text,
        "action": "compare flopwatch check allocation with the processes on the node",
        "simulated": simulated,
    }


def columns_of(records: Iterable[Mapping[str, Any]], stored_unix_ms: int) -> dict[str, list[Any]]:
    """Return records as columns of table ``event``; no column where there is no record."""
    columns: dict[str, list[Any]] = {}
    for record in records:
        for name, value in {**record, "stored_unix_ms": stored_unix_ms}.items():
            columns.setdefault(name, []).append(value)
    return columns

"""Time without a row: what a roster says of it, and what silence means. Pure.

A gap is judged whole, also outside the window but never outside the slot's service.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from flopwatch_collector.ledger.demand import Spans, free_parts
from flopwatch_collector.ledger.draft import ROSTER, Draft, groups_without_rows, rowless
from flopwatch_collector.ledger.evidence import Heard, Ints, Rosters, Rows, Seats, Window
from flopwatch_collector.ledger.pieces import Parts, Pieces, explode, row_parts
from flopwatch_proto.rows import Bucket

MISSING_AFTER_MS: Final = 15 * 60_000


@dataclass(frozen=True, slots=True)
class Rest:
    """Per (seat, piece) with something left: its span in service and the card-time without a row."""

    seat: Ints
    piece: Ints
    start: Ints
    end: Ints
    left_ms: Ints


def uncovered(parts: Parts, pieces: Pieces, seats: Seats) -> Rest:
    seat, piece, start, end = explode(seats.start, seats.end, pieces.edges)
    place = seat * pieces.count + piece
    taken = np.bincount(
        parts.seat * pieces.count + parts.piece,
        parts.card_ms,
        minlength=len(seats.key) * pieces.count,
    )
    left = (end - start) - np.rint(taken[place]).astype(np.int64)
    kept = left > 0
    return Rest(seat[kept], piece[kept], start[kept], end[kept], left[kept])


def has_silence(window: Window, seats: Seats, rows: Rows, rosters: Rosters) -> bool:
    """Return whether there is time in the window of which neither a row nor a roster speaks."""
    return len(silent_keys(window, seats, rows, rosters)) > 0


def silent_keys(window: Window, seats: Seats, rows: Rows, rosters: Rosters) -> Ints:
    """Return the slots with time in the window of which neither a row nor a roster speaks."""
    pieces = Pieces.of(window, rosters)
    rest = uncovered(row_parts(rows, pieces, seats), pieces, seats)
    silent = np.ones(len(rest.seat), np.bool_)
    silent[_spoken(rest, pieces, rosters, seats)[0]] = False
    return np.unique(seats.key[rest.seat[silent]])


def by_roster(rest: Rest, pieces: Pieces, rosters: Rosters, seats: Seats) -> Draft:
    """Return what rosters say of time without a row: allocated time is not known to be active.

    Of several entries each gets its weight's share, counted from the roster's own beginning: where a window
    or a minute cuts the time changes no sum.
    """
    entry: list[int] = []
    index: list[int] = []
    card_ms: list[int] = []
    weight: list[float] = []
    begun = rosters.start[pieces.hold[rest.piece]] if len(rosters.start) else rest.start
    for i, first, after in zip(*_spoken(rest, pieces, rosters, seats), strict=True):
        share = rest.left_ms[i] / (rest.end[i] - rest.start[i])
        weights = rosters.weight[first:after] / rosters.weight[first:after].sum() * share
        upto = np.cumsum(weights)
        marks = np.rint(upto * (rest.end[i] - begun[i])) - np.rint(
            upto * (rest.start[i] - begun[i])
        )
        marks[-1] = rest.left_ms[i]
        marks = np.minimum(np.maximum.accumulate(marks), rest.left_ms[i]).astype(np.int64)
        entry.extend(range(first, after))
        index.extend([i] * (after - first))
        card_ms.extend(np.diff(marks, prepend=0).tolist())
        weight.extend(weights.tolist())
    said, of, spent = (np.array(v, np.int64) for v in (entry, index, card_ms))
    key = seats.key[rest.seat[of]]
    bucket = rosters.bucket[said]
    unspecific = (bucket == Bucket.ACTIVE) | (bucket == Bucket.IDLE_ALLOC)
    bucket = np.where(unspecific, Bucket.ALLOCATED, bucket)
    words = [rosters.words[w] for w in rosters.word[said]]
    groups, group = groups_without_rows(seats, key, words, ROSTER)
    spans = Spans(rest.start[of], rest.end[of], rest.piece[of], np.array(weight), spent)
    free = free_parts(bucket, spans, pieces, rosters)
    return rowless(seats, key, bucket, group, groups, spent, free)


def _spoken(rest: Rest, pieces: Pieces, rosters: Rosters, seats: Seats) -> tuple[Ints, Ints, Ints]:
    """Return (index of the rest, first entry, entry after the last) where a roster speaks."""
    if not len(rosters.key):
        none = np.zeros(0, np.int64)
        return none, none, none
    keys = int(max(rosters.key.max(), len(seats.names))) + 1
    place = rosters.hold * keys + rosters.key
    hold = pieces.hold[rest.piece]
    wanted = hold * keys + seats.key[rest.seat]
    first = np.searchsorted(place, wanted, side="left")
    after = np.searchsorted(place, wanted, side="right")
    index = np.flatnonzero((hold >= 0) & (after > first))
    return index, first[index], after[index]


def absences(
    rest: Rest,
    rows: Rows,
    pieces: Pieces,
    rosters: Rosters,
    seats: Seats,
    heard: Heard,
    now_unix_ms: int,
) -> Draft:
    """Return UNSEEN and MISSING time: where neither a row nor a roster speaks."""
    spoken = np.zeros(len(rest.seat), np.bool_)
    spoken[_spoken(rest, pieces, rosters, seats)[0]] = True
    key, bucket, card_ms, open_ms = [], [], [], []
    by_key = np.argsort(rows.key, kind="stable")
    firsts = np.searchsorted(rows.key[by_key], np.arange(len(seats.names) + 1))
    window = int(pieces.edges[0]), int(pieces.edges[-1])
    unspoken = np.flatnonzero(~spoken)
    unspoken = unspoken[np.argsort(rest.seat[unspoken], kind="stable")]
    places, begins = np.unique(rest.seat[unspoken], return_index=True)
    for seat, silent in zip(places, np.split(unspoken, begins[1:]), strict=False):
        k = int(seats.key[seat])
        mine = by_key[firsts[k] : firsts[k + 1]]
        spans = [(int(rest.start[i]), int(rest.end[i])) for i in silent]
        words = [(int(rows.start[i]), int(rows.end[i])) for i in mine]
        gaps = _subtract(spans, words)
        for start, end in gaps:
            whole_start = start
            if start == window[0]:
                whole_start = max(int(seats.start[seat]), min(start, int(heard.before[k])))
            whole_end, is_open = end, False
            if end == window[1] and end < seats.end[seat]:
                after = min(int(heard.after[k]), int(seats.end[seat]))
                is_open = after > now_unix_ms
                whole_end = max(end, min(after, now_unix_ms))
            long = whole_end - whole_start >= MISSING_AFTER_MS
            key.append(k)
            bucket.append(Bucket.MISSING if long else Bucket.UNSEEN)
            card_ms.append(end - start)
            open_ms.append(end - start if is_open and not long else 0)
        # A slot that spoke for less than its whole weight (a share without a row): not seen.
        part = int(rest.left_ms[silent].sum()) - sum(e - s for s, e in gaps)
        if part > 0:
            key.append(k)
            bucket.append(Bucket.UNSEEN)
            card_ms.append(part)
            open_ms.append(0)
    keys = np.array(key, np.int64)
    groups, group = groups_without_rows(seats, keys, [("", "", "")] * len(key), "")
    return rowless(
        seats,
        keys,
        np.array(bucket, np.int64),
        group,
        groups,
        np.array(card_ms, np.int64),
        {"provisional_ms": np.array(open_ms, np.int64)},
    )


def _subtract(spans: list[tuple[int, int]], words: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans without words, adjacent pieces joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    left = []
    words = sorted(words)
    for start, end in joined:
        at = start
        for said_start, said_end in words:
            if said_end <= at or said_start >= end:
                continue
            if said_start > at:
                left.append((at, said_start))
            at = max(at, said_end)
        if at < end:
            left.append((at, end))
    return left

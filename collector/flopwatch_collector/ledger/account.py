"""The rules of account: at every instant, each slot in service is in exactly one bucket. Pure.

A window is cut into *pieces* at the edges of rosters, so that within a piece the word of the scheduler is
constant. Then, per slot and piece:

1. Where a roster speaks, its bucket, job and team stand, row or no row. The row says whether the card is
   active or idle, supplies the counters and the ROGUE flag. A row that says FAILED stands before any
   allocation; a roster that says MISSING of a card that speaks makes it FAILED.
2. Else the row's own bucket stands.
3. Else nothing speaks: an *absence*. Judged over the whole gap, also outside the window but never outside
   the slot's service: 15 minutes or more is MISSING from its first second, less is UNSEEN, and provisional
   while it is still open.

Absences are derived from who spoke, every time, and never stored: a late row changes them by being there.
"""

from __future__ import annotations

import numpy as np

from flopwatch_collector.ledger.absence import absences, by_roster, uncovered
from flopwatch_collector.ledger.demand import Spans, free_parts
from flopwatch_collector.ledger.draft import (
    CLASS,
    IS_ALLOCATED,
    JOB,
    SKU,
    TEAM,
    Draft,
    Lines,
    grouped,
    joined,
)
from flopwatch_collector.ledger.entries import shares_of
from flopwatch_collector.ledger.evidence import (
    Bools,
    Floats,
    Heard,
    Ints,
    Rosters,
    Rows,
    Seats,
    Window,
)
from flopwatch_collector.ledger.links import link_bytes_per_second
from flopwatch_collector.ledger.pieces import Parts, Pieces, row_parts
from flopwatch_collector.ledger.steps import RowSums, derive
from flopwatch_proto.rows import Bucket


def account(
    window: Window,
    *,
    now_unix_ms: int,
    seats: Seats,
    rows: Rows,
    rosters: Rosters,
    heard: Heard,
) -> Lines:
    """Return the lines of the window: every millisecond of every slot in service, once.

    Args:
        now_unix_ms: what is open ends here; the window's end is not after it.
        heard: words outside the window, at least 15 minutes to both sides.
    """
    pieces = Pieces.of(window, rosters)
    parts = row_parts(rows, pieces, seats)
    with_rows = _judge_rows(rows, parts, pieces, rosters)
    rest = uncovered(parts, pieces, seats)
    spoken = by_roster(rest, pieces, rosters, seats)
    silent = absences(rest, rows, pieces, rosters, seats, heard, now_unix_ms)
    return grouped(joined(seats, [with_rows, spoken, silent]))


def _judge_rows(rows: Rows, parts: Parts, pieces: Pieces, rosters: Rosters) -> Draft:
    shares = shares_of(rows, parts, pieces, rosters)
    row, card_ms, entry = parts.row[shares.part], shares.card_ms, shares.entry
    start, end = parts.start[shares.part], parts.end[shares.part]
    bucket, rogue, group = rows.bucket[row], rows.rogue[row], rows.group[row]
    groups = list(rows.groups)
    heard = entry >= 0
    if heard.any():
        resident = rows.times["resident_ms"][row] > 0
        bucket, rogue = _under_roster(
            bucket, rogue, resident, np.where(heard, rosters.bucket[entry], 0)
        )
        group, groups = _under_word(
            group, groups, np.where(heard, rosters.word[entry], -1), rosters
        )
    share = (end - start) / (rows.end[row] - rows.start[row]) * shares.ratio
    times = {n: np.rint(rows.times[n][row] * share).astype(np.int64) for n in rows.times}
    times |= {"card_ms": card_ms, "row_ms": card_ms, "provisional_ms": np.zeros_like(card_ms)}
    spans = Spans(start, end, parts.piece[shares.part], card_ms / (end - start), card_ms)
    times |= free_parts(bucket, spans, pieces, rosters)
    sums = {name: values[row] * share for name, values in rows.sums.items()}
    allocated = IS_ALLOCATED[bucket]
    # By the row's own group, which the roster's word does not change: it is the card's SKU that counts.
    nvlink, pcie = _link_rates(rows)
    derived = derive(
        RowSums(
            allocated=allocated,
            working=(bucket != Bucket.SUSPENDED) & (bucket != Bucket.GANG_WAIT),
            card_ms=np.maximum(card_ms, 1e-9).astype(np.float64),
            covered_ms=np.minimum(times["covered_ms"], card_ms).astype(np.float64),
            counted_ms=times["counted_ms"].astype(np.float64),
            resident_ms=times["resident_ms"].astype(np.float64),
            nvlink_per_ms=nvlink[rows.group[row]],
            pcie_per_ms=pcie[rows.group[row]],
            sums=sums,
        )
    )
    return Draft(
        key=rows.key[row],
        bucket=bucket,
        rogue=rogue,
        group=group,
        groups=groups,
        ints=times,
        sums={**sums, **derived},
        maxima={name: values[row] for name, values in rows.maxima.items()},
    )


def _link_rates(rows: Rows) -> tuple[Floats, Floats]:
    """Return bytes per ms of NVLink and of PCIe per group; NaN where not known."""
    rates = [link_bytes_per_second(texts[SKU]) for texts in rows.groups]
    pairs = np.array(rates, np.float64).reshape(-1, 2) / 1000
    return pairs[:, 0], pairs[:, 1]


def _under_roster(bucket: Ints, rogue: Bools, resident: Bools, said: Ints) -> tuple[Ints, Bools]:
    """Return the bucket and ROGUE flag of rows whose roster said ``said`` (0: nothing)."""
    works = np.where(resident, Bucket.ACTIVE, Bucket.IDLE_ALLOC)
    own = (bucket == Bucket.ACTIVE) | (bucket == Bucket.IDLE_ALLOC)
    specific = (said == Bucket.SUSPENDED) | (said == Bucket.GANG_WAIT)
    allocated = np.where(specific, said, np.where(own, bucket, works))
    judged = np.where(IS_ALLOCATED[said], allocated, said)
    judged = np.where(said == Bucket.MISSING, Bucket.FAILED, judged)
    judged = np.where(bucket == Bucket.FAILED, Bucket.FAILED, judged)
    spoken = said > 0
    stranger = spoken & ~IS_ALLOCATED[said] & IS_ALLOCATED[bucket] & resident
    return np.where(spoken, judged, bucket), rogue | stranger


def _under_word(
    group: Ints, groups: list[tuple[str, ...]], word: Ints, rosters: Rosters
) -> tuple[Ints, list[tuple[str, ...]]]:
    """Return groups in which the roster's job, team and class stand where it spoke."""
    pair = group * (len(rosters.words) + 1) + word + 1
    pairs, inverse = np.unique(pair, return_inverse=True)
    made: dict[tuple[str, ...], int] = {}
    index = []
    for value in pairs:
        old, said = divmod(int(value), len(rosters.words) + 1)
        texts = list(groups[old])
        if said:
            job, team, workload_class = rosters.words[said - 1]
            texts[JOB] = job
            texts[TEAM] = team or texts[TEAM]
            texts[CLASS] = workload_class or texts[CLASS]
        index.append(made.setdefault(tuple(texts), len(made)))
    return np.array(index, np.int64)[inverse], list(made)

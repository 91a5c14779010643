"""Lines in the making: card-time judged but not yet summed, and the sums. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from flopwatch_collector.ledger.evidence import Bools, Floats, Ints, Seats
from flopwatch_collector.ledger.lines import LINE_INTS, LINE_MAXIMA, LINE_SUMS, LINE_TEXTS
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

JOB, TEAM, CLASS = (LINE_TEXTS.index(n) for n in ("job", "team", "workload_class"))
SOURCE: Final = LINE_TEXTS.index("allocation_source")
ROSTER: Final = "roster"
"""Allocation source of time that a roster vouches for and no row does."""
SKU, _KIND, _DTYPE = (LINE_TEXTS.index(n) for n in ("sku", "device_kind", "dtype"))
IS_ALLOCATED: Final = np.isin(np.arange(max(Bucket) + 1), ALLOCATED_BUCKETS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Lines of one cluster and window: arrays of equal length; texts through ``groups``."""

    names: list[tuple[str, str]]
    groups: list[tuple[str, ...]]
    key: Ints
    bucket: Ints
    rogue: Bools
    group: Ints
    ints: dict[str, Ints]
    sums: dict[str, Floats]
    maxima: dict[str, Floats]

    def without_slots(self) -> Lines:
        """Return the lines summed over slots: the coarse grain of fleet and cluster views."""
        return grouped(replace(self, names=[("", "")], key=np.zeros_like(self.key)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    key: Ints
    bucket: Ints
    rogue: Bools
    group: Ints
    groups: list[tuple[str, ...]]
    ints: dict[str, Ints]
    sums: dict[str, Floats]
    maxima: dict[str, Floats]


def rowless(
    seats: Seats,
    key: Ints,
    bucket: Ints,
    group: Ints,
    groups: list[tuple[str, ...]],
    card_ms: Ints,
    more: dict[str, Ints],
) -> Draft:
    """Return card-time without a row: it has capacity and, where allocated, is unattributed.

    Args:
        more: parts of the card-time, by their names in LINE_INTS; those left out are 0.
    """
    zero = np.zeros_like(card_ms)
    allocated = IS_ALLOCATED[bucket] if len(bucket) else np.zeros(0, np.bool_)
    idle = (bucket == Bucket.SUSPENDED) | (bucket == Bucket.GANG_WAIT)
    return Draft(
        key=key,
        bucket=bucket,
        rogue=np.zeros(len(key), np.bool_),
        group=group,
        groups=groups,
        ints={**dict.fromkeys(LINE_INTS, zero), "card_ms": card_ms, **more},
        sums={
            "capacity_flops": seats.peak_flops[key] * card_ms / 1000,
            "unattributed_step_ms": np.where(allocated & ~idle, card_ms, np.nan),
            "no_process_step_ms": np.where(allocated & idle, card_ms, np.nan),
        },
        maxima={},
    )


def joined(seats: Seats, drafts: list[Draft]) -> Lines:
    groups: list[tuple[str, ...]] = []
    group = []
    for draft in drafts:
        group.append(draft.group + len(groups))
        groups += draft.groups

    def column(values: list[Floats | None]) -> Floats:
        return np.concatenate(
            [
                np.full(len(d.key), np.nan) if v is None else v
                for d, v in zip(drafts, values, strict=True)
            ]
        )

    return Lines(
        names=seats.names,
        groups=groups,
        key=np.concatenate([d.key for d in drafts]),
        bucket=np.concatenate([d.bucket for d in drafts]).astype(np.int64),
        rogue=np.concatenate([d.rogue for d in drafts]),
        group=np.concatenate(group).astype(np.int64),
        ints={n: np.concatenate([d.ints[n] for d in drafts]) for n in LINE_INTS},
        sums={n: column([d.sums.get(n) for d in drafts]) for n in LINE_SUMS},
        maxima={n: column([d.maxima.get(n) for d in drafts]) for n in LINE_MAXIMA},
    )


def grouped(lines: Lines) -> Lines:
    """Return one line per (key, bucket, rogue, identity); sums of nothing stay null."""
    made: dict[tuple[str, ...], int] = {}
    unique = np.array([made.setdefault(g, len(made)) for g in lines.groups], np.int64)
    group = unique[lines.group] if len(lines.group) else lines.group
    place = ((lines.key * (max(Bucket) + 1) + lines.bucket) * 2 + lines.rogue) * max(len(made), 1)
    _, first, line = np.unique(place + group, return_index=True, return_inverse=True)
    count = len(first)
    if count == len(line):  # nothing to add up: most of a window's lines have no second one
        return replace(
            lines,
            groups=list(made),
            key=lines.key[first],
            bucket=lines.bucket[first],
            rogue=lines.rogue[first],
            group=group[first],
            ints={n: v[first] for n, v in lines.ints.items()},
            sums={n: v[first] for n, v in lines.sums.items()},
            maxima={n: v[first] for n, v in lines.maxima.items()},
        )

    def total(values: Floats) -> Floats:
        known = ~np.isnan(values)
        if not known.any():
            return np.full(count, np.nan)
        sums = np.bincount(line, np.where(known, values, 0.0), minlength=count)
        return np.where(np.bincount(line, known, minlength=count) > 0, sums, np.nan)

    def highest(values: Floats) -> Floats:
        out = np.full(count, -np.inf)
        np.maximum.at(out, line, np.where(np.isnan(values), -np.inf, values))
        return np.where(np.isinf(out), np.nan, out)

    return Lines(
        names=lines.names,
        groups=list(made),
        key=lines.key[first],
        bucket=lines.bucket[first],
        rogue=lines.rogue[first],
        group=group[first],
        ints={
            n: np.rint(np.bincount(line, v, minlength=count)).astype(np.int64)
            for n, v in lines.ints.items()
        },
        sums={n: total(v) for n, v in lines.sums.items()},
        maxima={n: highest(v) for n, v in lines.maxima.items()},
    )


def groups_without_rows(
    seats: Seats, key: Ints, words: list[tuple[str, ...]], source: str
) -> tuple[list[tuple[str, ...]], Ints]:
    """Return groups and each one's index: the slot's own identity, and (job, team, class) by a source."""
    made: dict[tuple[str, ...], int] = {}
    group = []
    for k, (job, team, workload_class) in zip(key, words, strict=True):
        texts = [""] * len(LINE_TEXTS)
        texts[SKU], texts[_KIND], texts[_DTYPE] = seats.texts[k]
        texts[JOB], texts[TEAM], texts[CLASS] = job, team, workload_class
        texts[SOURCE] = source
        group.append(made.setdefault(tuple(texts), len(made)))
    return list(made), np.array(group, np.int64)

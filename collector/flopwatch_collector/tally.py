"""A tally: which nodes, racks, jobs and teams lose how many cards, at one tick of one cluster. Pure.

Rules judge sums; whoever is woken by one wants names. A tally is made beside each observation, and one every
two minutes is kept for `KEPT_MS`, so that a page can say what is new. It holds the nodes that lost cards, by
bucket, and each job's cards with what became no FLOPs, by step of the waterfall.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from flopwatch_collector.ledger.draft import JOB, Lines
from flopwatch_collector.ledger.evidence import Bools, Ints
from flopwatch_collector.ledger.lines import CLOCK_REASONS
from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

KEPT_MS: Final = 40 * 60_000
"""MFU is paged after 15 minutes, and what an hour ago was different is not what was changed just now."""
STEP_MS: Final = 120_000
NODES_MAX: Final = 2_000
"""Nodes kept by bucket, those with the most lost cards; of more a page names none anyway."""
JOBS_MAX: Final = 500
RACK_NODES_MAX: Final = 128
STEPS: Final = ("no_process", "sm_idle", "clock", "tensor_gap", "unattributed", "recompute")
PARTS: Final = tuple(f"clock_{reason}" for reason in CLOCK_REASONS)
_RACK: Final = re.compile(r"(.*\d)[-_.a-zA-Z]+\d+(?:\.[a-zA-Z].*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a job held and lost. Attributes: steps: step or part of the clock → cards that it took."""

    team: str
    cards: float
    steps: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which nodes a cluster has. Attributes: cards: by node; racks: node → rack; rack_cards: by rack."""

    cards: Mapping[str, int] = field(default_factory=dict)
    racks: Mapping[str, str] = field(default_factory=dict)
    rack_cards: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Who loses what at a tick.

    Attributes:
        lost: bucket → node → cards, of every bucket that is not allocated.
        jobs: those of the MFU rule, with what they lost in its window.
        mfu_cards: what the MFU rule counts, with time that no job has a name for.
        held: job → cards that it holds at the tick.
        wanted_cards, unwanted_cards: FREE cards that jobs wait for, and that nobody waits for.
    """

    unix_ms: int
    layout: Layout
    lost: Mapping[str, Mapping[str, float]]
    jobs: Mapping[str, Job]
    mfu_cards: float = 0.0
    held: Mapping[str, float] = field(default_factory=dict)
    wanted_cards: float = 0.0
    unwanted_cards: float = 0.0


class Tallies:
    """The tallies of the last while of one cluster."""

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: dict[int, Tally] = {}
        self._layout = Layout()
        self._names: list[tuple[str, str]] = []
        self._keys: Ints = np.zeros(0, np.int64)

    def add(self, unix_ms: int, lines: Lines, window_ms: int, of_jobs: Sheet, jobs_ms: int) -> None:
        """Take a tick: lines per slot, and the sheet that the MFU rule counted with its length."""
        keys = np.unique(lines.key)  # what is in service, and not excused
        if self._names is not lines.names or not np.array_equal(keys, self._keys):
            self._names, self._keys = lines.names, keys
            self._layout = layout_of([lines.names[key] for key in keys])
        made = tally_of(unix_ms, self._layout, lines, window_ms, of_jobs, jobs_ms)
        oldest = unix_ms - KEPT_MS
        # Of what is past, one every two minutes; the newest is there whatever its second.
        self._kept = {t: d for t, d in self._kept.items() if t >= oldest and t % STEP_MS == 0}
        self._kept[unix_ms] = made

    def newest(self) -> Tally | None:
        """Return the tally of the last tick."""
        return self._kept[max(self._kept)] if self._kept else None

    def before(self, unix_ms: int) -> Tally | None:
        """Return the newest tally of before a moment."""
        known = [t for t in self._kept if t <= unix_ms]
        return self._kept[max(known)] if known else None


def rack_of(node: str) -> str | None:
    """Return a node's rack, as far as its name tells: ``r17-n03`` is in ``r17``, ``atlas-0012`` in none.

    It is what stands before the last number of the name, where that has a number itself.
    """
    match = _RACK.fullmatch(node)
    return None if match is None else match[1]


def layout_of(names: list[tuple[str, str]]) -> Layout:
    """Return the layout of (node, slot) pairs. What looks like a rack and is too large is none."""
    cards: dict[str, int] = {}
    for node, _ in names:
        cards[node] = cards.get(node, 0) + 1
    by_rack: dict[str, list[str]] = {}
    for node in cards:
        if (rack := rack_of(node)) is not None:
            by_rack.setdefault(rack, []).append(node)
    racks = {r: n for r, n in by_rack.items() if 2 <= len(n) <= min(RACK_NODES_MAX, len(cards) / 2)}
    return Layout(
        cards=cards,
        racks={node: rack for rack, nodes in racks.items() for node in nodes},
        rack_cards={rack: sum(cards[n] for n in nodes) for rack, nodes in racks.items()},
    )


def tally_of(
    unix_ms: int, layout: Layout, lines: Lines, window_ms: int, of_jobs: Sheet, jobs_ms: int
) -> Tally:
    """Return the tally of a tick."""
    lost: dict[str, dict[str, float]] = {}
    held = np.isin(lines.bucket, ALLOCATED_BUCKETS)
    keys, buckets = lines.key[~held], lines.bucket[~held]
    for key, bucket, card_ms in zip(keys, buckets, lines.ints["card_ms"][~held], strict=True):
        of_bucket = lost.setdefault(Bucket(int(bucket)).name, {})
        node = lines.names[key][0]
        of_bucket[node] = of_bucket.get(node, 0.0) + float(card_ms) / window_ms
    wanted, unwanted = (
        float(lines.ints[f"free_{n}_ms"].sum()) / window_ms for n in ("demand", "no_demand")
    )
    return Tally(
        unix_ms=unix_ms,
        layout=layout,
        lost={bucket: _largest(nodes, NODES_MAX) for bucket, nodes in lost.items()},
        jobs=_jobs(of_jobs, jobs_ms),
        mfu_cards=of_jobs.time() / jobs_ms,
        held=_held(lines, held, window_ms),
        wanted_cards=wanted,
        unwanted_cards=unwanted,
    )


def _held(lines: Lines, held: Bools, window_ms: int) -> dict[str, float]:
    of_groups = np.bincount(lines.group[held], lines.ints["card_ms"][held], len(lines.groups))
    cards: dict[str, float] = {}
    for group, card_ms in zip(lines.groups, of_groups, strict=True):
        if group[JOB] and card_ms:
            cards[group[JOB]] = cards.get(group[JOB], 0.0) + float(card_ms) / window_ms
    return _largest(cards, JOBS_MAX)


def _jobs(sheet: Sheet, window_ms: int) -> dict[str, Job]:
    names, place = np.unique(sheet.texts["job"], return_inverse=True)
    if not len(names):
        return {}
    count = len(names)
    cards = np.bincount(place, sheet.ints["card_ms"], minlength=count) / window_ms
    steps = {
        step: np.bincount(place, np.nan_to_num(sheet.sums[f"{step}_step_ms"]), minlength=count)
        / window_ms
        for step in (*STEPS, *PARTS)
    }
    first = np.zeros(count, np.int64)
    first[place] = np.arange(len(place))
    largest = np.argsort(-cards, kind="stable")[:JOBS_MAX]
    return {
        str(names[i]): Job(
            team=str(sheet.texts["team"][first[i]]),
            cards=float(cards[i]),
            steps={step: float(taken[i]) for step, taken in steps.items()},
        )
        for i in largest
        if names[i]
    }


def _largest(of: Mapping[str, float], kept_max: int) -> dict[str, float]:
    if len(of) <= kept_max:
        return dict(of)
    return dict(sorted(of.items(), key=lambda found: (-found[1], found[0]))[:kept_max])

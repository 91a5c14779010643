"""Dirty marks: a row that is stored while its minute is recomputed is never forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flopwatch_collector.telemetry.dirty import SKEW_MS, DirtyMarks

MINUTE = ("atlas", 60_000)


class Marks:
    """An appender that keeps what stands: the newest version of each minute."""

    exclusive = True

    def __init__(self) -> None:
        self.standing: dict[tuple[str, int], tuple[int, bool]] = {}

    def append(self, table: str, columns: Mapping[str, Sequence[Any]]) -> int:
        names = ("cluster", "minute_unix_ms", "version", "cleared")
        for cluster, minute, version, cleared in zip(*(columns[n] for n in names), strict=True):
            if version >= self.standing.get((cluster, minute), (-1, False))[0]:
                self.standing[cluster, minute] = version, cleared
        return len(columns["cluster"])

    def is_dirty(self) -> bool:
        return not self.standing[MINUTE][1]


def test_a_commit_that_lands_during_a_recompute_keeps_its_minute_dirty() -> None:
    store = Marks()
    marks = DirtyMarks(store)
    marks.mark([MINUTE], 100)  # the commit's time is when it began …
    began = marks.begin(110)  # … then a recompute reads rows, and misses those in flight …
    marks.settle([MINUTE], 100)  # … which land now, still under their own time.
    assert marks.clear("atlas", [60_000], began) == []
    assert store.is_dirty()


def test_a_minute_that_nobody_touched_since_is_cleared() -> None:
    store = Marks()
    marks = DirtyMarks(store)
    marks.mark([MINUTE], 100)
    marks.settle([MINUTE], 100)
    assert marks.clear("atlas", [60_000], marks.begin(110)) == [60_000]
    assert not store.is_dirty()
    marks.mark([MINUTE], 111)
    assert store.is_dirty()


def test_a_minute_whose_rows_are_on_their_way_is_not_cleared() -> None:
    store = Marks()
    marks = DirtyMarks(store)
    marks.mark([MINUTE], 100)
    assert marks.clear("atlas", [60_000], marks.begin(200)) == []
    assert store.is_dirty()


class Landing:
    """The marks of a collector that is one of several. Attributes: now_ms: of the clock that measures."""

    def __init__(self, store: Marks) -> None:
        self.now_ms = 0
        self.marks = DirtyMarks(store, clock_ns=lambda: self.now_ms * 1_000_000)


def test_a_commit_that_takes_long_stays_marked_though_another_collector_recomputed_meanwhile() -> (
    None
):
    store = Marks()
    store.exclusive = False
    slow, other = Landing(store), DirtyMarks(store)
    slow.marks.mark([MINUTE], 100_000)
    began = other.begin(
        100_000 + 2 * SKEW_MS
    )  # it reads rows: those of the slow one are not there yet
    slow.now_ms += 3 * SKEW_MS
    slow.marks.settle([MINUTE], 100_000)  # the time of a commit is when it began
    other.clear("atlas", [60_000], began)
    assert store.is_dirty()


def test_what_others_marked_before_a_recompute_is_cleared_by_it() -> None:
    store = Marks()
    store.exclusive = False
    slow, other = Landing(store), DirtyMarks(store)
    slow.marks.mark([MINUTE], 100_000)
    slow.marks.settle([MINUTE], 100_000)
    other.clear("atlas", [60_000], other.begin(100_000 + 2 * SKEW_MS))
    assert not store.is_dirty()

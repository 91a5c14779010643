"""FREE by demand, and entries that share a slot by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence_tables import MINUTE, roster, roster_table, row, row_table, slot, slot_table
from flopwatch_collector.ledger.account import account
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import Heard, Window, rosters_of, rows_of, seats_of
from flopwatch_collector.ledger.figures import figures
from flopwatch_collector.ledger.sheet import Sheet, sheet_of_lines
from flopwatch_proto.rows import Bucket

Records = Sequence[dict[str, Any]]
SLOTS = [slot(name=f"s{i}") for i in range(4)]


def judged(rows: Records, rosters: Records, end: int = MINUTE, slots: Records = SLOTS) -> Lines:
    seats = seats_of(slot_table(slots))
    return account(
        Window(start=0, end=end),
        now_unix_ms=end,
        seats=seats,
        rows=rows_of(row_table(rows), seats),
        rosters=rosters_of(roster_table(rosters), seats),
        heard=Heard.nothing(seats),
    )


def sheet(rows: Records, rosters: Records, **more: Any) -> Sheet:
    return sheet_of_lines(judged(rows, rosters, **more))


def free_entries(count: int = 4) -> list[dict[str, Any]]:
    return [{"slot": f"s{i}", "bucket": Bucket.FREE} for i in range(count)]


def free_rows(count: int = 4) -> list[dict[str, Any]]:
    starts = range(0, MINUTE, 10_000)
    return [row(t, Bucket.FREE, name=f"s{i}") for i in range(count) for t in starts]


def cards(made: Sheet, window_ms: int = MINUTE) -> tuple[float, float | None, float | None]:
    shown = figures(made, window_ms)["cards"]
    return shown["free"], shown["free_demand"], shown["free_no_demand"]


def test_a_short_queue_waits_for_some_of_the_free_cards() -> None:
    said = roster(0, free_entries(), pending=1, free=4)
    assert cards(sheet([], said)) == (4.0, 1.0, 3.0)
    assert cards(sheet(free_rows(), said)) == (4.0, 1.0, 3.0)


def test_a_long_queue_waits_for_all_and_an_empty_one_for_none() -> None:
    assert cards(sheet([], roster(0, free_entries(), pending=9, free=4))) == (4.0, 4.0, 0.0)
    assert cards(sheet([], roster(0, free_entries(), pending=0, free=4))) == (4.0, 0.0, 4.0)


def test_without_a_roster_that_knows_its_queue_nobody_knows_the_demand() -> None:
    assert cards(sheet(free_rows(), [])) == (4.0, None, None)
    assert cards(sheet([], roster(0, free_entries(), pending=3))) == (4.0, None, None)


def test_time_after_the_last_roster_is_in_neither_part() -> None:
    said = roster(0, free_entries(), pending=1, free=4, valid_ms=30_000)
    assert cards(sheet(free_rows(), said)) == (4.0, 0.5, 1.5)


def test_nothing_free_is_known_to_be_nothing() -> None:
    allocated = [{"slot": f"s{i}", "bucket": Bucket.ACTIVE, "job": "j"} for i in range(4)]
    assert cards(sheet([], roster(0, allocated))) == (0.0, 0.0, 0.0)


def test_a_roster_that_lists_no_slot_tells_the_demand_for_what_rows_call_free() -> None:
    said = roster(0, [], pending=3, free=4)
    assert cards(sheet(free_rows(), said)) == (4.0, 3.0, 1.0)


def test_a_card_that_is_partly_stranded_stands_in_both_buckets() -> None:
    both = [
        {"slot": "s0", "bucket": Bucket.STRANDED, "weight": 0.25},
        {"slot": "s0", "bucket": Bucket.FREE, "weight": 0.75},
    ]
    for rows in ([], free_rows(1)):
        made = sheet(rows, roster(0, both, pending=1, free=0.75), slots=SLOTS[:1])
        assert made.time(Bucket.STRANDED) == MINUTE // 4
        assert made.time(Bucket.FREE) == MINUTE * 3 // 4
        assert cards(made) == (0.75, 0.75, 0.0)


def test_a_row_that_knows_no_job_is_shared_by_the_jobs_that_no_other_row_carries() -> None:
    said = roster(
        0,
        [
            {"slot": "s0", "bucket": Bucket.ACTIVE, "job": "a", "weight": 0.5},
            {"slot": "s0", "bucket": Bucket.ACTIVE, "job": "b", "weight": 0.25},
            {"slot": "s0", "bucket": Bucket.ACTIVE, "job": "c", "weight": 0.25},
        ],
    )
    starts = range(0, MINUTE, 10_000)
    blind = [row(t, name="s0") for t in starts]
    made = sheet(blind, said, slots=SLOTS[:1])
    assert {j: made.where(made.texts["job"] == j).time() for j in "abc"} == {
        "a": 30_000,
        "b": 15_000,
        "c": 15_000,
    }
    half = [row(t, name="s0", weight=0.5, job=job) for t in starts for job in ("a", "")]
    made = sheet(half, said, slots=SLOTS[:1])
    assert {j: made.where(made.texts["job"] == j).time() for j in "abc"} == {
        "a": 30_000,
        "b": 15_000,
        "c": 15_000,
    }


@settings(max_examples=60, deadline=None)
@given(
    pending=st.integers(0, 9),
    stranded=st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0]), min_size=4, max_size=4),
    edges=st.lists(st.integers(1, MINUTE - 1), max_size=4, unique=True),
    watched=st.integers(0, 4),
)
def test_the_parts_add_up_to_the_whole_millisecond_however_time_is_cut(
    pending: int, stranded: list[float], edges: list[int], watched: int
) -> None:
    entries = [
        {"slot": f"s{i}", "bucket": bucket, "weight": weight}
        for i, lost in enumerate(stranded)
        for bucket, weight in ((Bucket.STRANDED, lost), (Bucket.FREE, 1 - lost))
        if weight
    ]
    free = sum(1 - lost for lost in stranded)
    times = [0, *sorted(edges)]
    said = [r for t in times for r in roster(t, entries, pending=pending, free=free)]
    made = sheet(free_rows(watched), said)
    demand, none = (made.time(column=f"free_{n}_ms") for n in ("demand", "no_demand"))
    assert made.time() == 4 * MINUTE
    assert made.time(Bucket.FREE) + made.time(Bucket.STRANDED) == 4 * MINUTE
    assert demand + none == made.time(Bucket.FREE)
    # Every card in every piece is within a millisecond of its share.
    slack = 4 * len(times) * (6 if watched else 1) * 2
    assert abs(demand - min(pending, free) * MINUTE) <= slack


def test_a_windows_demand_is_that_of_its_parts() -> None:
    said = roster(0, free_entries(3), pending=1, free=3)
    rows = free_rows(3)
    seats = seats_of(slot_table(SLOTS[:3]))
    whole = judged(rows, said, slots=SLOTS[:3])
    parts = [
        account(
            Window(start=t, end=t + 10_000),
            now_unix_ms=MINUTE,
            seats=seats,
            rows=rows_of(row_table([r for r in rows if r["start_unix_ms"] == t]), seats),
            rosters=rosters_of(roster_table(said), seats),
            heard=Heard.nothing(seats),
        )
        for t in range(0, MINUTE, 10_000)
    ]
    for name in ("free_demand_ms", "free_no_demand_ms"):
        assert np.sum([p.ints[name].sum() for p in parts]) == whole.ints[name].sum()

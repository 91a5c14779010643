"""Rows finer than the account's grain: adding them up before they are judged changes no sum."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence_tables import MINUTE, roster_table, row, row_table, slot, slot_table
from flopwatch_collector.ledger import evidence
from flopwatch_collector.ledger.account import account
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import (
    ROW_SUMS,
    Heard,
    Window,
    compact,
    rosters_of,
    rows_of,
    seats_of,
)
from flopwatch_collector.ledger.lines import LINE_MAXIMA
from flopwatch_proto.rows import Bucket

SECOND = 1000
_seconds = st.lists(
    st.tuples(
        st.sampled_from((Bucket.ACTIVE, Bucket.ACTIVE, Bucket.IDLE_ALLOC)),
        st.sampled_from(("a", "a", "b")),  # job
        st.sampled_from((None, 0.25, 0.5)),  # sm active
        st.sampled_from((True, True, True, False)),  # whether the second has a row
    ),
    min_size=1,
    max_size=30,
)


def rows_by_second(seconds: list[tuple[Any, ...]], name: str) -> list[dict[str, Any]]:
    return [
        row(
            i * SECOND,
            bucket,
            name=name,
            duration=SECOND,
            job=job,
            sm=sm,
            tensor=sm and sm / 2,
            power_max_watts=None if sm is None else 400.0 + i,
        )
        for i, (bucket, job, sm, is_there) in enumerate(seconds)
        if is_there
    ]


def judged(rows: list[dict[str, Any]]) -> Lines:
    seats = seats_of(slot_table([slot(name="s0"), slot(name="s1")]))
    return account(
        Window(start=0, end=MINUTE),
        now_unix_ms=MINUTE,
        seats=seats,
        rows=rows_of(row_table(rows), seats),
        rosters=rosters_of(roster_table([]), seats),
        heard=Heard.nothing(seats),
    )


def by_identity(lines: Lines) -> dict[tuple[Any, ...], list[float | None]]:
    """Return every sum and maximum that rows have, per line."""
    values = [
        lines.ints["card_ms"],
        lines.ints["row_ms"],
        *(lines.sums[name] for name in ROW_SUMS),
        *(lines.maxima[name] for name in LINE_MAXIMA),
    ]
    return {
        (lines.names[k], int(lines.bucket[i]), lines.groups[lines.group[i]]): [
            None if np.isnan(v[i]) else float(v[i]) for v in values
        ]
        for i, k in enumerate(lines.key)
    }


@settings(max_examples=60, deadline=None)
@given(_seconds, _seconds)
def test_an_account_of_runs_is_the_account_of_their_rows(
    one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]
) -> None:
    rows = rows_by_second(one, "s0") + rows_by_second(other, "s1")
    if not rows:
        return
    of_runs = by_identity(judged(rows))
    with mock.patch.object(evidence, "compact", lambda table: table):
        of_rows = by_identity(judged(rows))
    assert of_runs.keys() == of_rows.keys()
    for identity, values in of_rows.items():
        assert of_runs[identity] == [v if v is None else pytest.approx(v) for v in values]


def test_ten_seconds_of_one_doing_are_one_row_and_an_interval_ends_a_run() -> None:
    seconds = [row(i * SECOND, duration=SECOND, job="a") for i in range(20)]
    made = compact(row_table([*reversed(seconds), row(20 * SECOND)]))
    spans = zip(made["start_unix_ms"].to_pylist(), made["duration_ms"].to_pylist(), strict=True)
    assert sorted(spans) == [(0, 10_000), (10_000, 10_000), (20_000, 10_000)]


def test_what_stops_and_comes_back_is_two_runs() -> None:
    rows = [row(i * SECOND, duration=SECOND, job="b" if i == 4 else "a") for i in range(10)]
    made = compact(row_table([r for r in rows if r["start_unix_ms"] != 7 * SECOND]))
    spans = zip(made["start_unix_ms"].to_pylist(), made["duration_ms"].to_pylist(), strict=True)
    assert sorted(spans) == [(0, 4000), (4000, 1000), (5000, 2000), (8000, 2000)]

"""Any window answered from the tiers says what its raw rows say, whatever came late."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from evidence_tables import MINUTE, roster, row, slot
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.gather import gather
from flopwatch_collector.ledger.intervals import Intervals, seconds_to_next
from flopwatch_collector.ledger.lines import LINE_INTS, LINE_SUMS
from flopwatch_collector.ledger.plan import plans
from flopwatch_collector.ledger.rollup import Rollup
from flopwatch_collector.ledger.sheet import Sheet, sheet_of_lines
from flopwatch_collector.ledger.window import sheet_of_window
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.rows import INTERVAL_MS, Bucket
from stored import put, roll_up

HOUR = 60 * MINUTE
DAY = 24 * HOUR
T0 = int(time.time()) // 86_400 * DAY - 2 * DAY + 4 * MINUTE
STEPS = 36
"""Intervals of a history: six minutes."""
MIDDLE = 20
ASKED_AFTER_MS = 21_000
_numbers = count()


def account(sheet: Sheet) -> dict[Any, dict[str, float | None]]:
    """Return identity → its sums, None where nothing is known; without what is still provisional."""
    made: dict[Any, dict[str, list[float]]] = {}
    texts = list(zip(*sheet.texts.values(), strict=True)) if sheet.texts else []
    for i in range(len(sheet.bucket)):
        sums = made.setdefault(
            (int(sheet.bucket[i]), bool(sheet.rogue[i]), *map(str, texts[i])), {}
        )
        for name in LINE_INTS:
            if name != "provisional_ms":
                sums.setdefault(name, []).append(float(sheet.ints[name][i]))
        for name in LINE_SUMS:
            sums.setdefault(name, []).append(float(sheet.sums[name][i]))
    return {
        of: {n: None if np.isnan(v).all() else float(np.nansum(v)) for n, v in sums.items()}
        for of, sums in made.items()
    }


def agrees(store: TelemetryStore, cluster: str, window: Window, now: int) -> Sheet:
    """Ask the tiers and the raw rows for a window; return what both say."""
    tiers = sheet_of_window(store, cluster, window, now)
    raw = sheet_of_lines(gather(store, cluster, window).judge(window, now).without_slots())
    told, meant = account(tiers), account(raw)
    assert told.keys() == meant.keys()
    for of, sums in meant.items():
        for name, value in sums.items():
            found = told[of][name]
            assert (found is None) is (value is None), (of, name)
            # A row that is cut has times and weights in whole milliseconds of each part.
            if found is not None and value is not None:
                assert found == pytest.approx(value, rel=1e-9, abs=2 * STEPS), (of, name)
    assert tiers.time() == raw.time()
    return tiers


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Any]:
    """Two slots with rows that come at once, late, very late or never; rosters; a window to ask for.

    Codes only: a failing history is printed whole.
    """
    steps = st.integers(0, STEPS - 1)
    return {
        "lengths": draw(st.tuples(*[st.sampled_from([1, 1, 6])] * 2)),
        "ends": draw(st.booleans()),
        "fates": draw(st.tuples(*[st.text("00012-", min_size=STEPS, max_size=STEPS)] * 2)),
        "kinds": draw(st.text("abcdef", min_size=STEPS, max_size=STEPS)),
        "rosters": draw(
            st.lists(st.tuples(steps, st.sampled_from([4, 11, 12]), st.booleans()), max_size=2)
        ),
        "window": sorted(draw(st.lists(steps, min_size=2, max_size=2, unique=True))),
    }


def rows_of(history: dict[str, Any], begin: int) -> list[tuple[str, dict[str, Any]]]:
    """Return (fate, row) of a history: 0, 1 or 2: when it comes."""
    made = []
    for name, length, fates in zip(("s0", "s1"), history["lengths"], history["fates"], strict=True):
        for i in range(0, STEPS, length):
            kind = "abcdef".index(history["kinds"][i])
            more: dict[str, Any] = {"sm": 0.9, "tensor": 0.5} if kind % 2 else {}
            more["job"] = ("", "a", "b")[kind % 3]
            bucket = Bucket.FREE if kind == 5 else Bucket.ACTIVE
            at, duration = begin + i * INTERVAL_MS, length * INTERVAL_MS
            made.append((fates[i], row(at, bucket, name=name, duration=duration, **more)))
    return [(fate, each) for fate, each in made if fate != "-"]


@given(histories())
@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # each takes a second: what fails is small enough
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_window_says_the_same_from_tiers_and_from_raw_rows(
    store: TelemetryStore, history: dict[str, Any]
) -> None:
    number = next(_numbers)
    cluster = f"c{number}"
    begin = T0 + number * HOUR  # marks know no time that runs backwards
    middle, end = begin + MIDDLE * INTERVAL_MS, begin + STEPS * INTERVAL_MS
    whole = Window(start=begin, end=end)
    low, high = history["window"]
    asked = Window(start=begin + low * INTERVAL_MS, end=begin + high * INTERVAL_MS)
    leaves = begin + STEPS // 2 * INTERVAL_MS if history["ends"] else begin + 10 * MINUTE
    slots = [slot(start=begin, end=begin + 10 * MINUTE), slot(name="s1", start=begin, end=leaves)]
    put(store, "slot", slots, begin, cluster=cluster, simulated=False)
    for at, bucket, late in history["rosters"]:
        taken = begin + at * INTERVAL_MS
        told = roster(taken, [{"bucket": bucket, "job": "r"}])
        stored = end + 25_000 if late else taken + 1
        put(store, "roster", told, stored, cluster=cluster, simulated=False)
    coming = rows_of(history, begin)

    def arrive(fates: str, since: int, until: int, stored: int) -> None:
        ends = [(f, r, r["start_unix_ms"] + r["duration_ms"]) for f, r in coming]
        rows = [r for f, r, ended in ends if f in fates and since < ended <= until]
        if rows:
            put(store, "interval", rows, stored, cluster=cluster, simulated=False)

    # The middle of the history: intervals are written; then rows come late, before any minute is.
    intervals = Intervals(store)
    now = middle + ASKED_AFTER_MS
    arrive("0", begin, middle, middle + 1)
    intervals.run(now)
    arrive("1", begin, middle, now)
    agrees(store, cluster, Window(start=begin, end=middle), now)
    # Its end: minutes are written, and then what is very late comes.
    now = end + ASKED_AFTER_MS
    arrive("01", middle, end, end + 1)
    intervals.run(now)
    agrees(store, cluster, asked, now)
    roll_up(store, now + 10)
    arrive("2", begin, end, now + 2_000)
    agrees(store, cluster, asked, now + 2_001)
    roll_up(store, now + 10_000)
    agrees(store, cluster, whole, now + 12_000)


def test_an_interval_is_written_once_and_again_when_a_row_of_it_came_late(
    store: TelemetryStore,
) -> None:
    put(store, "slot", [slot(start=T0), slot(name="s1", start=T0)], T0)
    end = T0 + 4 * INTERVAL_MS
    rows = [row(t, name=n) for t in range(T0, end, INTERVAL_MS) for n in ("s0", "s1")]
    put(store, "interval", rows[:-1], end + 1)
    intervals = Intervals(store)
    now = end + 11_000
    assert [intervals.run(now), intervals.run(now)] == [4, 0]
    window = Window(start=T0, end=end)
    assert plans(store, ["atlas"], window, with_slots=False)["atlas"].raw == []
    assert agrees(store, "atlas", window, now).time(Bucket.ACTIVE) == 7 * INTERVAL_MS
    put(store, "interval", rows[-1:], now + 1)
    (late,) = plans(store, ["atlas"], window, with_slots=False)["atlas"].raw
    assert late == Window(start=end - INTERVAL_MS, end=end)
    assert agrees(store, "atlas", window, now).time(Bucket.ACTIVE) == 8 * INTERVAL_MS
    assert intervals.run(now + 10_000) == 2, "the late one, and the next, in which nobody spoke"
    assert plans(store, ["atlas"], window, with_slots=False)["atlas"].raw == []
    assert agrees(store, "atlas", window, now).time(Bucket.ACTIVE) == 8 * INTERVAL_MS


def test_rows_on_their_way_into_the_store_are_late_where_they_are_not_seen(
    store: TelemetryStore,
) -> None:
    put(store, "slot", [slot(start=T0)], T0)
    end = T0 + INTERVAL_MS
    minute = [("atlas", T0 // MINUTE * MINUTE)]
    store.marks.mark(minute, end + 3_000)
    assert Intervals(store).run(end + 11_000) == 0, "a commit that began so early may hold its rows"
    store.marks.abandon(minute)
    assert Intervals(store).run(end + 11_000) == 1


def test_a_silence_that_grew_long_is_missing_in_intervals_too(store: TelemetryStore) -> None:
    put(store, "slot", [slot(start=T0)], T0)
    put(store, "interval", [row(T0)], T0 + INTERVAL_MS)
    roll_up(store, T0 + 10 * MINUTE)
    now = T0 + 40 * MINUTE
    roll_up(store, now)
    ragged = Window(start=T0 + 70_000, end=T0 + 30 * MINUTE + 20_000)
    assert plans(store, ["atlas"], ragged, with_slots=False)["atlas"].raw == []
    assert agrees(store, "atlas", ragged, now).time(Bucket.MISSING) == ragged.end - ragged.start


def test_a_day_stands_for_its_hours_until_a_row_comes_late(store: TelemetryStore) -> None:
    day = T0 // DAY * DAY
    put(store, "slot", [slot(start=day, end=day + DAY)], day)
    minutes = list(range(day, day + DAY, MINUTE))
    put(store, "interval", [row(t, duration=MINUTE) for t in minutes[:60]], day + HOUR)
    store.marks.clear("atlas", minutes, day + 2 * HOUR)
    cells = {"start_unix_ms": minutes, "card_ms": [MINUTE] * len(minutes)}
    cells["bucket"] = [int(Bucket.ACTIVE)] * 60 + [int(Bucket.MISSING)] * (len(minutes) - 60)
    store.append_lines(
        "fleet_minute",
        cells,
        cluster="atlas",
        starts_unix_ms=minutes,
        generation=day,
        stored_unix_ms=day,
    )
    now = day + 2 * DAY
    window = Window(start=day - DAY, end=day + 2 * DAY)
    roll_up(store, now)
    rollup = Rollup(store)
    for at in range(now + 200, now + 205):
        rollup.run(at)
    assert plans(store, ["atlas"], window, with_slots=False)["atlas"].days.tolist() == [day]
    assert sheet_of_window(store, "atlas", window, now).time(Bucket.ACTIVE) == HOUR
    late = row(day + 2 * HOUR, duration=MINUTE)
    put(store, "interval", [late], now + 1_000)
    for _ in range(2):  # marked, and then written again
        sheet = sheet_of_window(store, "atlas", window, now + 1_000)
        assert sheet.time(Bucket.ACTIVE) == HOUR + MINUTE
        assert sheet.time() == DAY
        rollup.run(now + 2_000)
    for at in range(now + 3_000, now + 3_005):
        rollup.run(at)
    assert plans(store, ["atlas"], window, with_slots=False)["atlas"].days.tolist() == [day]
    assert sheet_of_window(store, "atlas", window, now).time(Bucket.ACTIVE) == HOUR + MINUTE


def test_the_next_interval_is_waited_for() -> None:
    assert seconds_to_next(T0 + 11_000) == 10.0
    assert seconds_to_next(T0 + 20_999) == pytest.approx(0.001)


def test_slots_that_are_declared_within_a_minute_are_in_it(store: TelemetryStore) -> None:
    cluster = f"joining{next(_numbers)}"
    since = {"n1": 20_000, "n0": 40_000}
    for node, at in since.items():
        put(store, "slot", [slot(node, start=T0 + at)], T0 + at, cluster)
    rows = [row(T0 + t, node=n) for n, at in since.items() for t in range(at, MINUTE, 10_000)]
    put(store, "interval", rows, T0 + MINUTE, cluster)
    now = T0 + MINUTE + 76_000
    roll_up(store, now)
    sheet = agrees(store, cluster, Window(start=T0, end=T0 + MINUTE), now)
    assert sheet.time(Bucket.ACTIVE) == 20_000 + 40_000

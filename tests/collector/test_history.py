"""From stored rows to answers: rollups, any window, late data. On the real engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from evidence_tables import MINUTE, roster, row, slot
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import fleet
from flopwatch_collector.ledger.lines import CLOCK_REASONS
from flopwatch_collector.ledger.rollup import Rollup
from flopwatch_collector.ledger.window import asked_window, sheet_of_window
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.rows import Bucket

# Near the present: the store lets raw rows go 35 days after they arrived.
T0 = int(time.time()) // 3600 * 3_600_000 - 24 * 3_600_000 + 4 * MINUTE
NOW = T0 + 40 * MINUTE
HOUR = 60 * MINUTE


def put(
    store: TelemetryStore, table: str, records: Sequence[Mapping[str, Any]], stored: int = NOW
) -> None:
    known = TABLES[table].columns
    names = {n for r in records for n in r if n in known}
    columns = {n: [r.get(n) for r in records] for n in names}
    columns |= {"cluster": ["atlas"] * len(records), "stored_unix_ms": [stored] * len(records)}
    if table == "interval":
        minutes = {("atlas", r["start_unix_ms"] // MINUTE * MINUTE) for r in records}
        store.marks.mark(minutes, stored)
        store.append(table, columns)
        store.marks.settle(minutes, stored)
    else:
        store.append(table, columns)


def rows(first: int, count: int, **more: Any) -> list[dict[str, Any]]:
    return [row(T0 + first + i * 10_000, sm=0.9, tensor=0.5, **more) for i in range(count)]


def settle(rollup: Rollup, now: int) -> None:
    while rollup.run(now):
        now += 1


def buckets(store: TelemetryStore, window: Window, now: int = NOW) -> dict[str, int]:
    sheet = sheet_of_window(store, "atlas", window, now)
    return {b.name: sheet.time(b) for b in Bucket if sheet.time(b)}


def test_rolled_up_and_raw_answers_are_the_same(store: TelemetryStore) -> None:
    put(
        store,
        "slot",
        [slot(start=T0, end=T0 + 30 * MINUTE), slot(name="s1", start=T0, end=T0 + 30 * MINUTE)],
    )
    put(store, "interval", [*rows(0, 90), *rows(20 * MINUTE, 60), *rows(0, 180, name="s1")])
    window = Window(start=T0 + 70_000, end=T0 + 29 * MINUTE + 30_000)
    raw = fleet(store, window, NOW, {})
    settle(Rollup(store), NOW)
    rolled = fleet(store, window, NOW, {})
    assert rolled["fleet"]["cards"] == pytest.approx(raw["fleet"]["cards"])
    assert rolled["fleet"]["allocation"] == pytest.approx(raw["fleet"]["allocation"])
    for a, b in zip(raw["fleet"]["waterfall"], rolled["fleet"]["waterfall"], strict=True):
        assert a["step"] == b["step"]
        for figure in ("share", "flops", "card_seconds"):
            if a[figure] is None or b[figure] is None:
                assert a[figure] is b[figure]
            else:
                assert a[figure] == pytest.approx(b[figure], rel=1e-9, abs=1e-12)
    assert buckets(store, Window(start=T0, end=T0 + 30 * MINUTE)) == {
        "ACTIVE": (150 + 180) * 10_000,
        "UNSEEN": 5 * MINUTE,
    }


def test_parts_of_steps_are_the_same_from_raw_rows_minutes_and_hours(store: TelemetryStore) -> None:
    held = dict.fromkeys((f"throttled_{r}_ms" for r in CLOCK_REASONS), 100.0)
    told: dict[str, Any] = {**held, "dram_active_ms": 5_600.0, "nvlink_tx_bytes": 2.5e12}
    begin, hours = T0 // HOUR * HOUR - 4 * HOUR, 3
    put(store, "slot", [slot(start=begin, end=begin + hours * HOUR)])
    many = [
        row(
            t,
            sm=0.9,
            tensor=0.5,
            clock=0.9,
            phase="eval" if t // MINUTE % 7 == 0 else "steady",
            **told,
        )
        for t in range(begin, begin + hours * HOUR, 10_000)
    ]
    put(store, "interval", many)
    window = Window(start=begin, end=begin + hours * HOUR)
    raw = fleet(store, window, NOW, {})["fleet"]["waterfall"]
    settle(Rollup(store), NOW)
    assert store.query("SELECT count() AS n FROM fleet_hour", {})["n"][0].as_py() > 0
    rolled = fleet(store, window, NOW, {})["fleet"]["waterfall"]
    whole = {s["step"]: s["card_seconds"] for s in raw}
    shares = {s["step"]: {p["name"]: p["card_seconds"] for p in s["parts"]} for s in raw}
    assert shares["clock"]["power"] == pytest.approx(whole["clock"] / 100)
    assert 0 < shares["tensor_gap"]["memory"] < whole["tensor_gap"]
    assert shares["eval_checkpoint"]["eval"] == pytest.approx(whole["eval_checkpoint"])
    for a, b in zip(raw, rolled, strict=True):
        assert [p["name"] for p in a["parts"]] == [p["name"] for p in b["parts"]]
        for part, same in zip(a["parts"], b["parts"], strict=True):
            for figure in ("card_seconds", "lo", "hi"):
                assert (same[figure] is None) is (part[figure] is None)
                assert (same[figure] or 0) == pytest.approx(part[figure] or 0, rel=1e-9, abs=1e-6)


def test_lost_steps_and_a_reference_dtype_show_in_the_fleet_and_add_up(
    store: TelemetryStore,
) -> None:
    put(store, "slot", [slot(start=T0, end=T0 + 10 * MINUTE)])
    put(store, "interval", rows(0, 60, job="a", steps_count=5.0, phase="steady"))
    told = {"node": "n0", "kind": "job_restart", "job": "a", "code": 60}
    lost = "started again at step 60: 30 steps lost"
    put(store, "event", [told | {"time_unix_ms": T0 + 5 * MINUTE, "text": lost}])
    window = Window(start=T0, end=T0 + 10 * MINUTE)
    for references, in_bf16 in (({}, 1.0), ({"atlas": "fp8", "nobody": "fp4"}, 0.5)):
        made = fleet(store, window, NOW, {}, references)
        for found in (made["fleet"]["waterfall"], made["clusters"][0]["waterfall"]):
            steps = {s["step"]: s["card_seconds"] for s in found}
            assert steps["rework"] == pytest.approx(600 * 0.5 * in_bf16 * 30 / 300, rel=1e-3)
            assert steps["hardware_flops"] == pytest.approx(9 * steps["rework"])
            assert sum(v or 0 for v in steps.values()) == pytest.approx(600, rel=1e-9)
            if references:
                assert steps["dtype"] == pytest.approx(600 * 0.5 / 2, rel=1e-3)
            else:
                assert steps["dtype"] is None


def test_a_late_row_that_cuts_a_silence_in_two_changes_the_verdict_of_its_neighbours(
    store: TelemetryStore,
) -> None:
    put(store, "slot", [slot(start=T0, end=T0 + 30 * MINUTE)])
    put(store, "interval", [*rows(0, 30), *rows(25 * MINUTE, 30)])
    rollup = Rollup(store)
    settle(rollup, NOW)
    window = Window(start=T0, end=T0 + 30 * MINUTE)
    assert buckets(store, window) == {"ACTIVE": 600_000, "MISSING": 20 * MINUTE}
    put(store, "interval", rows(14 * MINUTE, 6), stored=NOW + 1_000)
    settle(rollup, NOW + 2_000)
    after = {"ACTIVE": 660_000, "UNSEEN": 19 * MINUTE}
    assert buckets(store, window) == after


def test_a_silent_cluster_is_written_and_judged_without_a_single_row(store: TelemetryStore) -> None:
    put(store, "slot", [slot(start=T0, end=0)])
    rollup = Rollup(store)
    early = T0 + 10 * MINUTE
    settle(rollup, early)
    window = Window(start=T0, end=T0 + 9 * MINUTE)
    assert buckets(store, window, early) == {"UNSEEN": 9 * MINUTE}
    assert (
        sheet_of_window(store, "atlas", window, early).time(column="provisional_ms") == 9 * MINUTE
    )
    settle(rollup, T0 + 30 * MINUTE)
    assert buckets(store, window, T0 + 30 * MINUTE) == {"MISSING": 9 * MINUTE}


def test_the_same_rows_twice_change_nothing(store: TelemetryStore) -> None:
    put(store, "slot", [slot(start=T0, end=T0 + 10 * MINUTE)])
    put(store, "interval", rows(0, 60))
    window = Window(start=T0, end=T0 + 10 * MINUTE)
    rollup = Rollup(store)
    settle(rollup, NOW)
    before = fleet(store, window, NOW, {})
    put(store, "interval", rows(0, 60, spool_id="b"), stored=NOW + 5_000)
    assert fleet(store, window, NOW, {}) == before
    settle(rollup, NOW + 6_000)
    assert fleet(store, window, NOW, {}) == before


def test_a_roster_before_the_window_still_speaks_in_it(store: TelemetryStore) -> None:
    put(store, "slot", [slot(start=T0, end=0)])
    put(store, "roster", roster(T0, [{"bucket": Bucket.ACTIVE, "job": "j", "team": "t"}]))
    window = Window(start=T0 + 3 * MINUTE, end=T0 + 6 * MINUTE)
    assert buckets(store, window) == {"ALLOCATED": 2 * MINUTE, "MISSING": MINUTE}


def test_an_hour_stands_for_its_minutes(store: TelemetryStore) -> None:
    hour = T0 // 3_600_000 * 3_600_000 + 3_600_000
    end = hour + 3_600_000
    put(store, "slot", [slot(start=hour, end=end)])
    put(store, "interval", [row(t, sm=0.9, tensor=0.5) for t in range(hour, end, 60_000)])
    window, now = Window(start=hour, end=end), end + 3 * 3_600_000  # minutes not made of intervals
    raw = buckets(store, window, now)
    settle(Rollup(store), now)
    assert (
        store.query("SELECT uniqExact(start_unix_ms) AS n FROM written WHERE grain = 'fleet_hour'")[
            "n"
        ][0].as_py()
        == 1
    )
    assert buckets(store, window, now) == raw


def test_windows_are_moved_back_to_their_grain() -> None:
    assert asked_window(T0 + 19_345, 900_000) == Window(start=T0 - 900_000, end=T0)
    assert asked_window(T0 + 19_345, 2 * 3_600_000).end == T0
    long = asked_window(T0, 72 * 3_600_000)
    assert long.end % 3_600_000 == 0
    assert long.end - long.start == 72 * 3_600_000


def test_demand_and_stranded_shares_are_the_same_raw_rolled_up_and_by_node(
    store: TelemetryStore,
) -> None:
    nodes = ("n0", "n1", "n2")
    put(store, "slot", [slot(n, start=T0, end=T0 + 12 * MINUTE) for n in nodes])
    free = [{"node": n, "bucket": Bucket.FREE} for n in nodes[1:]]
    free += [
        {"node": "n0", "bucket": Bucket.STRANDED, "weight": 1 / 3},
        {"node": "n0", "bucket": Bucket.FREE, "weight": 2 / 3},
    ]
    for at in range(0, 12 * MINUTE, 50_000):
        put(store, "roster", roster(T0 + at, free, pending=1, free=8 / 3))
    put(store, "interval", rows(0, 72, node="n2", bucket=Bucket.FREE))
    window = Window(start=T0 + 70_000, end=T0 + 11 * MINUTE + 30_000)

    def parts(node: str | None = None) -> list[int]:
        made = sheet_of_window(store, "atlas", window, NOW, node)
        columns = ("card_ms", "free_demand_ms", "free_no_demand_ms")
        return [*(made.time(column=c) for c in columns), made.time(Bucket.STRANDED)]

    raw = parts()
    by_node = [parts(n) for n in nodes]
    settle(Rollup(store), NOW)
    assert parts() == raw
    assert [parts(n) for n in nodes] == by_node
    assert [sum(column) for column in zip(*by_node, strict=True)] == raw
    length = window.end - window.start
    assert (raw[0], raw[0]) == (3 * length, sum(raw[1:]))
    assert raw[1] == pytest.approx(length, abs=50)

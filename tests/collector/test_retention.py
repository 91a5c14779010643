"""What is dropped when, and what is never dropped while a minute still needs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from flopwatch_collector import config as configuration
from flopwatch_collector.ledger.rollup import Rollup
from flopwatch_collector.telemetry.dirty import dirty_minutes
from flopwatch_collector.telemetry.retention import (
    DROPS_MAX,
    EVERY_MS,
    Retention,
    RetentionConfig,
)
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.telemetry.times import late_ms_max, minutes_said
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Bucket
from flopwatch_proto.settings import Duration
from stored import put

DAY_MS = 86_400_000
NOW_MS = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS + DAY_MS // 2
HOUR_MS = 3_600_000


def row(start_unix_ms: int) -> dict[str, Any]:
    return {
        "node": "n1",
        "slot": "0",
        "start_unix_ms": start_unix_ms,
        "duration_ms": 10_000,
        "weight": 1.0,
        "bucket": int(Bucket.FREE),
        "covered_ms": 10_000,
    }


def declare(store: TelemetryStore, from_unix_ms: int) -> None:
    slot = {"node": "n1", "slot": "0", "from_unix_ms": from_unix_ms, "state": 3, "sku": "H100"}
    put(store, "slot", [slot], from_unix_ms)


def clear_marks(store: TelemetryStore, now_unix_ms: int) -> None:
    for cluster, minute in dirty_minutes(store):
        store.marks.clear(cluster, [minute], now_unix_ms)


def starts(store: TelemetryStore, table: str = "interval") -> list[int]:
    found = store.query(f"SELECT start_unix_ms AS s FROM {table} ORDER BY s")
    return [int(s) for s in found["s"].to_pylist()]


def test_raw_rows_go_36_days_after_they_came_not_after_they_began(store: TelemetryStore) -> None:
    old, late = NOW_MS - 40 * DAY_MS, NOW_MS - 38 * DAY_MS
    put(store, "interval", [row(old)], old)
    put(store, "interval", [row(late)], NOW_MS - 10 * DAY_MS)  # came 28 days late
    clear_marks(store, NOW_MS)
    assert Retention(store, RetentionConfig()).run(NOW_MS) == 1
    assert starts(store) == [late]


def test_a_day_stays_while_a_minute_in_or_beside_it_waits_for_its_recompute(
    store: TelemetryStore,
) -> None:
    midnight = (NOW_MS - 60 * DAY_MS) // DAY_MS * DAY_MS
    declare(store, midnight - HOUR_MS)
    put(store, "interval", [row(midnight - 60_000), row(midnight)], midnight)
    store.marks.clear("atlas", [midnight - 60_000], NOW_MS)  # that of the other day waits
    retention = Retention(store, RetentionConfig())
    assert retention.run(NOW_MS) == 0
    # A collector that was away for two months writes them first, then lets their rows go.
    rollup, at = Rollup(store), NOW_MS
    while dirty_minutes(store):
        at += 1
        assert rollup.run(at), "a dirty minute is never due"
    assert retention.run(at + EVERY_MS) == 2
    assert starts(store) == []
    assert midnight in starts(store, "fleet_minute")


def test_what_was_written_stands_where_its_rows_may_be_gone(store: TelemetryStore) -> None:
    policy = RetentionConfig(raw=Duration.parse("3d"))
    old = (NOW_MS - 5 * DAY_MS) // 60_000 * 60_000
    ended = {"to_unix_ms": old + 300_000, "state": 3, "sku": "H100"}
    declared = {"node": "n1", "from_unix_ms": old, **ended}
    put(store, "slot", [declared | {"slot": "0"}], old)
    put(store, "interval", [row(old + at) for at in range(0, 300_000, 10_000)], old)
    rollup = Rollup(store)
    while rollup.run(NOW_MS):
        pass
    written = store.query("SELECT count() AS n, sum(card_ms) AS ms FROM fleet_minute").to_pylist()
    assert Retention(store, policy).run(NOW_MS) == 1
    assert starts(store) == []

    store.late_ms = late_ms_max(policy.raw.milliseconds)
    assert store.late_ms == 2 * DAY_MS
    # A slot that turns out to have been in service then would make its minutes due again.
    put(store, "slot", [declared | {"slot": "1"}], NOW_MS)
    said = {"slot": {"from_unix_ms": [old, NOW_MS], "to_unix_ms": [old + 300_000, 0]}}
    assert minutes_said(said, store.oldest_unix_ms(NOW_MS)) == {NOW_MS // 60_000 * 60_000}
    while rollup.run(NOW_MS):
        pass
    after = store.query("SELECT count() AS n, sum(card_ms) AS ms FROM fleet_minute").to_pylist()
    assert after == written


@pytest.mark.parametrize(("raw", "late_days"), [("36d", 35), ("400d", 35), ("35d", 34), ("2d", 1)])
def test_rows_may_be_late_by_a_day_less_than_raw_rows_are_kept(raw: str, late_days: int) -> None:
    assert late_ms_max(Duration.parse(raw).milliseconds) == late_days * DAY_MS


def test_a_run_is_bounded_and_the_next_one_goes_on(store: TelemetryStore) -> None:
    days = [NOW_MS - (40 + i) * DAY_MS for i in range(DROPS_MAX + 2)]
    for day in days:
        put(store, "interval", [row(day)], day)
    clear_marks(store, NOW_MS)
    retention = Retention(store, RetentionConfig())
    assert [retention.run(NOW_MS + i) for i in range(3)] == [DROPS_MAX, 2, 0]
    assert starts(store) == []


def test_lines_go_by_whole_months_and_hours_stay(store: TelemetryStore) -> None:
    for table, age in (("fleet_minute", 500), ("fleet_minute", 10), ("fleet_hour", 500)):
        start = (NOW_MS - age * DAY_MS) // HOUR_MS * HOUR_MS
        store.append_lines(
            table,
            {"start_unix_ms": [start], "bucket": [4], "card_ms": [1]},
            cluster="atlas",
            starts_unix_ms=[start],
            generation=1,
            stored_unix_ms=NOW_MS,
        )
    Retention(store, RetentionConfig()).run(NOW_MS)
    assert len(starts(store, "fleet_minute")) == len(starts(store, "fleet_hour")) == 1
    hours = RetentionConfig(hours=Duration.parse("450d"))
    Retention(store, hours).run(NOW_MS)
    assert starts(store, "fleet_hour") == []


def test_intervals_go_by_days_once_all_of_a_day_is_over(store: TelemetryStore) -> None:
    today = NOW_MS // DAY_MS * DAY_MS
    for start in (today - 2 * DAY_MS, today - DAY_MS, today):
        cells = {
            "start_unix_ms": start,
            "cluster": "atlas",
            "generation": 1,
            "stored_unix_ms": start,
        }
        store.append("fleet_interval", {name: [value] for name, value in cells.items()})
    retention = Retention(store, RetentionConfig())
    retention.run(today + 5 * HOUR_MS)
    assert starts(store, "fleet_interval") == [today - DAY_MS, today]
    retention.run(today + 7 * HOUR_MS)
    assert starts(store, "fleet_interval") == [today]


def test_superseded_lines_of_a_closed_month_go_once(store: TelemetryStore) -> None:
    start = (NOW_MS - 100 * DAY_MS) // HOUR_MS * HOUR_MS
    for generation in (1, 2):
        store.append_lines(
            "line_hour",
            {"start_unix_ms": [start], "node": ["n1"], "slot": ["0"], "card_ms": [generation]},
            cluster="atlas",
            starts_unix_ms=[start],
            generation=generation,
            stored_unix_ms=NOW_MS,
        )
    Retention(store, RetentionConfig()).run(NOW_MS)
    found = store.query("SELECT card_ms FROM line_hour").to_pylist()
    assert found == [{"card_ms": 2}]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("raw = '1d'", "retention.raw is 1d"),
        ("raw = '500d'", "retention.minutes is 400d"),
        ("hours = '90d'", "retention.hours is 90d"),
        ("days = '90d'", "retention.days is 90d"),
        ("intervals = '1h'", "retention.intervals is 1h"),
        ("raw = '35'", "retention.raw"),
        ("raws = '35d'", "retention.raws"),
    ],
)
def test_a_policy_that_cannot_be_names_its_field(text: str, names: str, tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text(f"[retention]\n{text}\n")
    with pytest.raises(UsageError, match=names):
        configuration.load(file, {}, {})
    file.write_text("[retention]\nraw = '60d'\nminutes = '200d'\nhours = '3650d'\n")
    assert configuration.load(file, {}, {}).retention.raw == Duration.parse("60d")

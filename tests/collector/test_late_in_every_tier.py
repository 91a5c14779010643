"""Rows that come two days late show in a view of 15 minutes, of a day and of 30 days, by the same amount."""

from __future__ import annotations

import time

from evidence_tables import MINUTE, row, slot
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import fleet
from flopwatch_collector.ledger.window import sheet_of_window
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.rows import Bucket
from stored import put, roll_up

HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = int(time.time()) // 3600 * HOUR
THEN = NOW - 2 * DAY
LATE = range(THEN + 60 * MINUTE, THEN + 70 * MINUTE, 10_000)
VIEWS = {
    "15 minutes": Window(start=THEN + 58 * MINUTE, end=THEN + 73 * MINUTE),
    "1 day": Window(start=THEN - 12 * HOUR, end=THEN + 12 * HOUR),
    "30 days": Window(start=NOW - 30 * DAY, end=NOW),
}


def active_ms(store: TelemetryStore) -> dict[str, int]:
    return {
        name: sheet_of_window(store, "atlas", window, NOW).time(Bucket.ACTIVE)
        for name, window in VIEWS.items()
    }


def test_rows_two_days_late_show_in_every_view_before_and_after_the_rollup(
    store: TelemetryStore,
) -> None:
    put(store, "slot", [slot(start=THEN, end=THEN + 2 * HOUR)], THEN)
    heard = [t for t in range(THEN, THEN + 2 * HOUR, 10_000) if t not in LATE]
    put(store, "interval", [row(t, sm=0.9, tensor=0.5) for t in heard], THEN + 2 * HOUR)
    roll_up(store, NOW)
    assert store.query("SELECT count() AS n FROM fleet_hour").to_pylist()[0]["n"] > 0
    before = active_ms(store)
    put(store, "interval", [row(t, sm=0.9, tensor=0.5) for t in LATE], NOW)
    dirty = active_ms(store)
    assert {name: dirty[name] - before[name] for name in VIEWS} == dict.fromkeys(VIEWS, 600_000)
    roll_up(store, NOW + 1_000)
    assert active_ms(store) == dirty
    assert dirty["1 day"] == dirty["30 days"] == 2 * HOUR
    newest = fleet(store, VIEWS["30 days"], NOW, {})["clusters"][0]["as_of"]
    assert newest == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((THEN + 2 * HOUR) / 1000))

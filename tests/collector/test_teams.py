"""Teams: who held the cards, from every tier, with what came late in it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from evidence_tables import MINUTE, row, slot
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import cluster
from flopwatch_collector.teams import team, teams
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.rows import Bucket
from stored import put, roll_up

HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = int(time.time()) // 3600 * HOUR
THEN = NOW - 40 * DAY
STEP = 30_000
LATE = range(THEN + 60 * MINUTE, THEN + 70 * MINUTE, STEP)
VIEWS = {
    "15 minutes": Window(start=THEN + 58 * MINUTE, end=THEN + 73 * MINUTE),
    "1 day": Window(start=THEN - 12 * HOUR, end=THEN + 12 * HOUR),
    "90 days": Window(start=NOW - 90 * DAY, end=NOW),
}


def fill(store: TelemetryStore) -> None:
    """Two hours: alpha on three cards of four, one of them failed half of the time; beta on one."""
    names = ["s0", "s1", "s2", "s3"]
    put(store, "slot", [slot(name=n, start=THEN, end=THEN + 2 * HOUR) for n in names], THEN)
    heard = [t for t in range(THEN, THEN + 2 * HOUR, STEP) if t not in LATE]
    put(store, "interval", [r for t in heard for r in of_moment(t)], THEN + 2 * HOUR)


def of_moment(t: int) -> list[dict[str, object]]:
    failing = Bucket.FAILED if t >= THEN + HOUR else Bucket.IDLE_ALLOC
    return [
        row(t, duration=STEP, sm=0.9, tensor=0.5, name="s0", job="a1", team="alpha"),
        row(t, duration=STEP, sm=0.9, tensor=0.3, name="s1", job="a2", team="alpha"),
        row(t, failing, duration=STEP, name="s2", job="a2", team="alpha"),
        row(t, duration=STEP, sm=0.9, tensor=0.4, name="s3", job="b", team="beta"),
    ]


def test_a_team_is_the_same_from_every_tier_and_shows_what_came_late(store: TelemetryStore) -> None:
    fill(store)
    roll_up(store, NOW)
    assert store.query("SELECT count() AS n FROM fleet_hour").to_pylist()[0]["n"] > 0

    def held() -> dict[str, float]:
        found = {name: team(store, "alpha", window, NOW) for name, window in VIEWS.items()}
        return {name: of["buckets"]["ACTIVE"] for name, of in found.items() if of is not None}

    before = held()
    put(store, "interval", [r for t in LATE for r in of_moment(t)], NOW)
    dirty = held()
    late_s = 2 * len(LATE) * STEP / 1000
    assert {name: dirty[name] - before[name] for name in VIEWS} == dict.fromkeys(VIEWS, late_s)
    roll_up(store, NOW + 1_000)
    assert held() == dirty
    assert dirty["1 day"] == dirty["90 days"] == 2 * 7_200


def test_buckets_add_up_and_ratios_are_of_the_time_that_was_held(store: TelemetryStore) -> None:
    fill(store)
    put(store, "interval", [r for t in LATE for r in of_moment(t)], NOW)
    window = VIEWS["90 days"]
    alpha, beta = teams(store, window, NOW)
    assert (alpha["name"], beta["name"]) == ("alpha", "beta")
    assert alpha["buckets"] == {"FAILED": 3_600.0, "ACTIVE": 14_400.0, "IDLE_ALLOC": 3_600.0}
    assert (alpha["card_seconds"], alpha["share"]) == (21_600.0, 0.75)
    assert beta["hfu"]["value"] == pytest.approx(0.4)
    # Idle time is counted by nobody: HFU is of what has counters, and says how much that is.
    assert alpha["hfu"]["value"] == pytest.approx(0.4)
    assert alpha["hfu"]["coverage"] == pytest.approx(0.8)
    whole = cluster(store, "atlas", window, NOW, {})
    assert whole is not None
    parts = alpha["cards"]["allocated"] + beta["cards"]["allocated"]
    assert parts == pytest.approx(whole["cards"]["allocated"])
    one = team(store, "alpha", window, NOW)
    assert one is not None
    assert {name: one[name] for name in ("buckets", "hfu", "mfu")} == {
        name: alpha[name] for name in ("buckets", "hfu", "mfu")
    }
    assert sum(step["card_seconds"] or 0.0 for step in one["waterfall"]) == pytest.approx(21_600.0)
    assert [part["name"] for part in one["clusters"]] == ["atlas"]


def test_real_and_simulated_time_is_never_in_one_sum(store: TelemetryStore) -> None:
    start = NOW - 20 * MINUTE
    window = Window(start=start, end=start + 15 * MINUTE)
    for name, simulated in (("atlas", False), ("demo", True)):
        of: dict[str, Any] = {"cluster": name, "simulated": simulated}
        put(store, "slot", [slot(start=start)], start, **of)
        rows = [row(t, team="alpha", job="a") for t in range(start, window.end, 10_000)]
        put(store, "interval", rows, window.end, **of)
    listed = [(of["name"], of["simulated"], of["card_seconds"]) for of in teams(store, window, NOW)]
    assert listed == [("alpha", False, 900.0), ("alpha", True, 900.0)]
    one = team(store, "alpha", window, NOW)
    assert one is not None
    assert (one["simulated"], one["card_seconds"]) == (False, 900.0)
    demo = team(store, "alpha", window, NOW, "demo")
    assert demo is not None
    assert demo["simulated"] is True
    assert team(store, "nobody", window, NOW) is None

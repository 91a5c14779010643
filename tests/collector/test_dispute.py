"""The meter dispute: told once, late enough to be one, and never in a flood."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from evidence_tables import roster, roster_table, row, row_table, slot, slot_table
from flopwatch_collector.ledger.evidence import rosters_of, rows_of, seats_of
from flopwatch_collector.live import Live
from flopwatch_collector.roster.dispute import (
    EVENTS_PER_MINUTE,
    Disputes,
    Words,
    columns_of,
    words_of,
)
from flopwatch_collector.roster.meter import Meter
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import TelemetryStore, arrow_block
from flopwatch_proto.rows import Bucket

T0 = int(time.time()) // 60 * 60_000 - 3_600_000
TICKS = range(10_000, 120_000, 10_000)
PLACE = ("n0", "s0")


def words(said: Bucket, own: Bucket, *, taken: int = 0, at: int = 9_999, **more: Any) -> Words:
    seats = seats_of(slot_table([slot()]))
    rows = rows_of(row_table([row(at // 10_000 * 10_000, own, **more)]), seats)
    rosters = rosters_of(roster_table(roster(taken, [{"bucket": said, "job": "j"}])), seats)
    return words_of(seats, rows, rosters, at)[PLACE]


def told(disputes: Disputes, said: Words, ticks: range = TICKS) -> list[dict[str, Any]]:
    return [e for t in ticks for e in disputes.see("atlas", False, {PLACE: said}, t)]


def test_a_process_on_a_card_that_nobody_has_is_rogue() -> None:
    said = words(Bucket.FREE, Bucket.ACTIVE, user="mallory", allocation_source="processes")
    assert (said.disputed, said.rogue, said.user) == (True, True, "mallory")
    assert words(Bucket.MAINT, Bucket.ACTIVE).rogue
    assert not words(Bucket.ACTIVE, Bucket.ACTIVE).disputed


def test_a_card_without_a_process_disputes_no_allocation_but_the_nodes_scheduler_does() -> None:
    assert not words(Bucket.ACTIVE, Bucket.FREE, allocation_source="processes").disputed
    said = words(Bucket.ACTIVE, Bucket.FREE, allocation_source="slurm")
    assert (said.disputed, said.rogue) == (True, False)


def test_failed_and_missing_are_no_word_about_allocation() -> None:
    assert not words(Bucket.ACTIVE, Bucket.FAILED, allocation_source="slurm").disputed
    assert not words(Bucket.MISSING, Bucket.IDLE_ALLOC, resident_ms=0).disputed


def test_a_process_on_a_node_that_the_scheduler_holds_for_dead_is_rogue() -> None:
    said = words(Bucket.MISSING, Bucket.ACTIVE, user="mallory", allocation_source="slurm")
    assert (said.disputed, said.rogue, said.user) == (True, True, "mallory")


def test_nobody_disagrees_with_a_roster_that_holds_no_more() -> None:
    seats = seats_of(slot_table([slot()]))
    rows = rows_of(row_table([row(400_000)]), seats)
    rosters = rosters_of(roster_table(roster(0, [{"bucket": Bucket.FREE}])), seats)
    assert words_of(seats, rows, rosters, 409_999) == {}
    assert words_of(seats, rows, rosters, -1) == {}


def test_a_dispute_is_told_once_after_two_intervals_under_a_newer_roster() -> None:
    disputes = Disputes()
    old = words(Bucket.FREE, Bucket.ACTIVE, user="mallory")
    assert told(disputes, old) == []
    new = words(Bucket.FREE, Bucket.ACTIVE, taken=120_000, at=129_999, user="mallory")
    (event,) = told(disputes, new, range(130_000, 180_000, 10_000))
    assert (event["kind"], event["code"], event["time_unix_ms"]) == ("meter_dispute", 1, 130_000)
    assert (event["cluster"], event["node"], event["slot"]) == ("atlas", *PLACE)
    assert event["text"].startswith("the roster says FREE, the node says ACTIVE; ROGUE:")
    assert "mallory" in event["text"]


def test_a_short_disagreement_is_no_dispute_and_agreement_ends_one() -> None:
    disputes = Disputes()
    new = words(Bucket.FREE, Bucket.ACTIVE, taken=200_000, at=209_999)
    agreed = words(Bucket.ACTIVE, Bucket.ACTIVE)
    assert told(disputes, new, range(210_000, 240_000, 10_000)) == []
    assert told(disputes, agreed, range(240_000, 250_000, 10_000)) == []
    assert told(disputes, new, range(250_000, 280_000, 10_000)) == []


def test_silence_neither_confirms_nor_ends_a_dispute() -> None:
    disputes = Disputes()
    new = words(Bucket.FREE, Bucket.ACTIVE, taken=10_000, at=19_999)
    assert told(disputes, new, range(10_000, 20_000, 10_000)) == []
    assert disputes.see("atlas", False, {}, 20_000) == []
    assert len(told(disputes, new, range(40_000, 50_000, 10_000))) == 1


def test_more_disputes_than_a_minute_may_tell_become_a_count() -> None:
    disputes = Disputes()
    said = words(Bucket.FREE, Bucket.ACTIVE, taken=60_000, at=69_999)
    many = {(f"n{i:02}", "s0"): said for i in range(EVENTS_PER_MINUTE + 5)}
    events = [e for t in range(60_000, 180_000, 10_000) for e in disputes.see("c", True, many, t)]
    assert len(events) == EVENTS_PER_MINUTE + 1
    assert (events[-1]["node"], events[-1]["text"]) == ("", "5 more cards in dispute")
    assert events[-1]["time_unix_ms"] == 120_000
    assert disputes.unsaid == 5
    block = arrow_block(TABLES["event"], columns_of(events, 1))
    assert block.num_rows == len(events)
    assert columns_of([], 1) == {}


def test_the_meter_reads_live_state_and_stores_what_it_finds(store: TelemetryStore) -> None:
    live = Live(T0, lambda cluster: rule_named("mfu").defaults)
    live.slots("atlas", False, _columns([slot(start=T0)]))
    now = T0
    meter = Meter(live, store, lambda: now)
    made = []
    for at in range(T0, T0 + 60_000, 10_000):
        live.add("atlas", "n0", False, _columns([row(at, user="mallory")]), at + 11_000)
        free = roster(at, [{"bucket": Bucket.FREE}])
        live.roster("atlas", False, _columns(free))
        now = at + 10_000 + 11_000
        made.append(meter.tick())
        assert meter.tick() == 0
    assert made == [0, 0, 0, 1, 0, 0]
    (event,) = store.query("SELECT * FROM event FINAL").to_pylist()
    assert (event["cluster"], event["node"], event["slot"]) == ("atlas", *PLACE)
    assert (event["kind"], event["code"], event["time_unix_ms"]) == (
        "meter_dispute",
        1,
        T0 + 40_000,
    )


def test_a_deficit_that_no_demand_explains_is_told_to_the_rules() -> None:
    live = Live(T0, lambda cluster: rule_named("mfu").defaults)
    live.slots("atlas", False, _columns([slot(name=f"s{i}", start=T0) for i in range(4)]))
    said = [{"slot": f"s{i}", "bucket": Bucket.FREE} for i in range(4)]
    live.roster("atlas", False, _columns(roster(T0, said, pending=1, free=4)))
    seen = next(o for o in live.observe("atlas", T0 + 10_000) if o.rule == "allocation")
    assert seen.lost_points == {"FREE": 100.0}
    assert seen.free_without_demand_points == 75.0


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = {name for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}

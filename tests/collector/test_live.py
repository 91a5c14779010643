"""The present in memory: the same rules of account as history, on what was just stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from evidence_tables import GPM_SPREAD, MINUTE, roster, row, slot
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.live import Live
from flopwatch_collector.live_rows import RecentRows
from flopwatch_collector.live_tables import COLUMNS, table_of
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.rows import Bucket

T0 = int(time.time()) // 60 * MINUTE - 3_600_000
MFU = rule_named("mfu").defaults
CARDS = 20


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = {name for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}


def slots() -> list[dict[str, Any]]:
    return [slot(node=f"n{i // 4}", name=f"s{i % 4}", start=T0) for i in range(CARDS)]


def live(ready: int = T0) -> Live:
    made = Live(ready, lambda cluster: MFU)
    made.slots("atlas", False, columns(slots()))
    return made


def speak(to: Live, start: int, cards: Sequence[int] = range(CARDS), **more: Any) -> None:
    for node in {i // 4 for i in cards}:
        rows = [
            row(start, node=f"n{node}", name=f"s{i % 4}", sm=0.9, tensor=0.5, **more)
            for i in cards
            if i // 4 == node
        ]
        to.add("atlas", f"n{node}", False, columns(rows), start + 12_000)


def observe(of: Live, tick: int) -> dict[str, Observation]:
    return {o.rule: o for o in of.observe("atlas", tick)}


def test_the_newest_interval_is_judged_like_history() -> None:
    now = live()
    speak(now, T0, range(18))
    speak(now, T0, [18], bucket=Bucket.FREE)
    speak(now, T0, [19], bucket=Bucket.FAILED)
    seen = observe(now, T0 + 10_000)["allocation"]
    assert (seen.lo, seen.hi) == (0.9, 0.9)
    assert seen.lost_points == {"FREE": 5.0, "FAILED": 5.0}
    assert seen.coverage == 1.0
    assert (seen.causes[0].kind, seen.causes[0].name) == ("node", "n4")
    assert seen.causes[0].cards == 2.0
    assert seen.in_service_nodes == 5


def test_a_batch_that_came_twice_counts_once() -> None:
    now = live()
    speak(now, T0)
    speak(now, T0, range(4))
    seen = observe(now, T0 + 10_000)
    assert seen["allocation"].in_service_cards == CARDS
    assert seen["mfu"].hi == pytest.approx(0.5 * (1 + GPM_SPREAD))


def test_silence_opens_the_bounds_and_names_the_nodes() -> None:
    now = live()
    speak(now, T0)
    speak(now, T0 + 10_000, range(16))
    seen = observe(now, T0 + 20_000)["allocation"]
    assert (seen.lo, seen.hi) == (0.8, 1.0)
    assert seen.silent_nodes == {"n4": T0 + 10_000}
    now.goodbye("atlas", "n4", 30_000, T0 + 15_000)
    gone = observe(now, T0 + 20_000)["allocation"]
    assert gone.silent_nodes == {}
    assert gone.goodbye_cards == 4.0


def test_a_node_that_comes_back_inside_an_interval_is_judged_with_its_leave() -> None:
    now = live()
    speak(now, T0)
    now.goodbye("atlas", "n4", 30_000, T0 + 10_000)
    speak(now, T0 + 10_000, range(16))
    speak(now, T0 + 14_000, range(16, 20), duration=6_000)
    back = observe(now, T0 + 20_000)["allocation"]
    assert back.lo == pytest.approx(0.92)
    assert back.goodbye_cards == pytest.approx(1.6)
    speak(now, T0 + 20_000, range(16))
    gone_again = observe(now, T0 + 30_000)["allocation"]
    assert gone_again.goodbye_cards == 0.0


def test_silence_counts_from_the_moment_the_collector_was_ready() -> None:
    late = live(ready=T0 + 20 * MINUTE)
    early = live(ready=T0)
    for now in (early, late):
        speak(now, T0)
    tick = T0 + 20 * MINUTE + 30_000
    assert observe(early, tick)["allocation"].hi == 0.0
    assert observe(late, tick)["allocation"].hi == 1.0


def test_a_rosters_word_holds_without_rows_and_is_a_witness() -> None:
    now = live()
    entries = [
        {"node": s["node"], "slot": s["slot"], "bucket": Bucket.ACTIVE, "job": "j"} for s in slots()
    ]
    entries[0]["bucket"] = Bucket.MISSING
    now.roster("atlas", False, columns(roster(T0, entries)))
    seen = observe(now, T0 + 10_000)["allocation"]
    assert (seen.lo, seen.hi, seen.coverage) == (0.95, 0.95, 0.0)
    assert seen.witnessed_missing_points == 5.0


def test_mfu_is_of_the_trailing_two_minutes_and_of_its_classes() -> None:
    now = live()
    for i in range(12):
        speak(now, T0 + i * 10_000, workload_class="training" if i < 6 else "inference")
    seen = observe(now, T0 + 2 * MINUTE)["mfu"]
    assert seen.hi == pytest.approx(0.5 * (1 + GPM_SPREAD))
    assert seen.lo == pytest.approx(0.36 * (1 - GPM_SPREAD))
    for i in range(12):
        speak(now, T0 + 2 * MINUTE + i * 10_000, workload_class="inference")
    assert observe(now, T0 + 4 * MINUTE)["mfu"].hi is None


def test_what_the_store_holds_is_there_after_a_restart(store: TelemetryStore) -> None:
    before = live()
    known: list[dict[str, Any]] = []
    for i in range(12):
        speak(before, T0 + i * 10_000, range(18))
        known += [
            row(T0 + i * 10_000, node=f"n{c // 4}", name=f"s{c % 4}", sm=0.9, tensor=0.5)
            for c in range(18)
        ]
    whole = [{"cluster": "atlas", **r} for r in known]
    store.append("interval", columns([r | {"stored_unix_ms": T0 + 3 * MINUTE} for r in whole]))
    declared = [{"cluster": "atlas", "stored_unix_ms": T0, **s} for s in slots()]
    store.append("slot", columns(declared))
    after = Live(T0, lambda cluster: MFU)
    after.load(store, T0 + 2 * MINUTE + 5_000)
    tick = T0 + 2 * MINUTE
    for rule in ("allocation", "mfu"):
        a, b = observe(before, tick)[rule], observe(after, tick)[rule]
        assert (a.lo, a.hi, a.lost_points, a.silent_nodes) == (
            b.lo,
            b.hi,
            b.lost_points,
            b.silent_nodes,
        )
    for interval in (tick - 10_000, tick):  # beside what was loaded, and after it
        speak(before, interval, [18])
        speak(after, interval, [18])
    at = tick + 10_000
    assert (
        observe(after, at)["allocation"].lost_points
        == observe(before, at)["allocation"].lost_points
    )


def test_memory_holds_two_minutes() -> None:
    now = live()
    for i in range(120):
        speak(now, T0 + i * 10_000)
        observe(now, T0 + (i + 1) * 10_000)
    kept = now._clusters["atlas"]
    sizes = kept.rows.sizes()
    newest = max(sizes)
    assert min(sizes) == newest - 120_000
    assert len(kept.sheets) == 13
    assert len(set(sizes.values())) == 1  # of so few rows none are packed


def test_settled_rows_are_packed_and_come_back_as_they_were_each_once() -> None:
    def rows(slots: range) -> pa.Table:
        return table_of(
            [row(T0, name=f"s{i}", sm=0.1 + 0.01 * (i % 7)) for i in slots], "interval", COLUMNS
        )

    recent, window = RecentRows(), Window(start=T0, end=T0 + 10_000)
    recent.add(T0, rows(range(400)))
    whole, size = recent.within(window), recent.sizes()[T0]
    recent.pack(T0)
    assert recent.sizes()[T0] == size
    recent.pack(T0 + 1)
    assert recent.sizes()[T0] * 3 < size
    assert recent.within(window).equals(whole)
    recent.add(T0, rows(range(300, 500)))
    assert recent.within(window).sort_by("slot").equals(rows(range(500)).sort_by("slot"))
    assert recent.within(Window(start=T0 - 20_000, end=T0 - 10_000)).num_rows == 0
    recent.forget(T0 + 1)
    assert recent.within(window).num_rows == 0


def test_what_comes_late_for_a_settled_interval_is_judged_with_what_was_there() -> None:
    late, whole = live(), live()
    for i in range(12):
        speak(late, T0 + i * 10_000, range(CARDS) if i > 3 else range(10))
        speak(whole, T0 + i * 10_000)
        observe(late, T0 + (i + 1) * 10_000)
        observe(whole, T0 + (i + 1) * 10_000)
    tick = T0 + 120_000
    assert observe(late, tick)["mfu"].unseen_cards > 0
    for i in range(4):
        speak(late, T0 + i * 10_000, range(10, CARDS))
    assert observe(late, tick)["mfu"] == observe(whole, tick)["mfu"]

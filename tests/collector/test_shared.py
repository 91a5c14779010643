"""Two collectors on one store: each hears its own agents, the one that watches knows what both heard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from evidence_tables import MINUTE, roster, row, slot
from flopwatch_collector import shared
from flopwatch_collector.ledger.intervals import FENCE_SHIFT
from flopwatch_collector.ledger.rollup import Rollup
from flopwatch_collector.live import Live
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.shared import CatchUp, Overheard
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_collector.telemetry.dirty import dirty_minutes
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import RetryableError
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

T0 = 1_800_000_000_000 // MINUTE * MINUTE
NODES = ("n0", "n1")
MFU = rule_named("mfu").defaults


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = {name for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}


class Pair:
    """Two collectors. Attributes: heard: of the one that agents speak to; watching: of the other."""

    def __init__(self, store: TelemetryStore) -> None:
        self.store = store
        self.now_ms = T0 + 12_000
        self.heard_watches = False
        self.registry = CollectorRegistry()
        self.heard, self.watching = (Live(T0 - MINUTE, lambda _: MFU) for _ in range(2))
        metrics = SharedMetrics(self.registry)
        self.overheard = Overheard(
            self.heard, store, metrics, lambda: self.now_ms, lambda: self.heard_watches
        )
        self.catch_up = CatchUp(store, self.watching)
        self.put("slot", [slot(node=node, start=T0 - MINUTE) for node in NODES])
        for node in NODES:
            hello = pb.Hello(cluster="atlas", node_id=node, spool_id=f"spool of {node}")
            self.overheard.hello(hello, self.now_ms)

    def put(self, table: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Store rows, as the collector that has the agents does."""
        by = {"cluster": "atlas", "stored_unix_ms": self.now_ms, "simulated": False}
        self.store.append(table, columns([{**record, **by} for record in records]))

    def seen(self, tick: int) -> Observation:
        """What the other one sees."""
        self.catch_up(self.now_ms)
        found = {o.rule: o for o in self.watching.observe("atlas", tick)}
        return found["allocation"]


@pytest.fixture
def pair(store: TelemetryStore) -> Iterator[Pair]:
    made = Pair(store)
    yield made
    made.catch_up.close()


def test_what_either_stored_is_seen_at_once_and_at_every_tick_after(pair: Pair) -> None:
    pair.put("interval", [row(T0, node=node) for node in NODES])
    assert (pair.seen(T0 + 10_000).lo, pair.seen(T0 + 10_000).hi) == (1.0, 1.0)
    pair.now_ms += 10_000
    pair.put("interval", [row(T0 + 10_000), row(T0 + 10_000, Bucket.FREE, node="n1")])
    seen = pair.seen(T0 + 20_000)
    assert (seen.lo, seen.hi, seen.lost_points) == (0.5, 0.5, {"FREE": 50.0})


def test_a_commit_that_is_seen_late_counts_all_the_same(pair: Pair) -> None:
    pair.put("interval", [row(T0)])
    assert pair.seen(T0 + 10_000).lo == 0.5
    pair.put("interval", [row(T0, node="n1")])  # stored under an earlier time than the last look
    pair.now_ms += 10_000
    assert pair.seen(T0 + 10_000).lo == 1.0


def test_a_roster_is_followed(pair: Pair) -> None:
    pair.seen(T0 + 10_000)
    said = [{"node": node, "slot": "s0", "bucket": Bucket.ACTIVE, "job": "j"} for node in NODES]
    pair.put("roster", roster(T0, said))
    assert pair.seen(T0 + 10_000).lo == 1.0


def test_a_leave_is_known_to_the_one_that_watches(pair: Pair) -> None:
    pair.put("interval", [row(T0, node=node) for node in NODES])
    pair.overheard.goodbye("atlas", "n1", 30_000, T0 + 12_000)
    pair.overheard.store()
    pair.now_ms += 10_000
    pair.put("interval", [row(T0 + 10_000)])
    seen = pair.seen(T0 + 20_000)
    assert (seen.silent_nodes, seen.goodbye_cards) == ({}, 1.0)


def test_newest_rows_beside_a_backlog_are_known_and_fall_together_with_their_batch(
    pair: Pair,
) -> None:
    newest = columns([row(T0, node="n1")])
    newest = {name: newest[name] for name in newest if name not in ("node", "stored_unix_ms")}
    pair.put("interval", [row(T0)])
    pair.overheard.status("atlas", "n1", False, pb.Status(), newest, T0 + 12_000)
    pair.overheard.store()
    assert pair.seen(T0 + 10_000).lo == 1.0
    assert dirty_minutes(pair.store) == [("atlas", T0)]
    pair.now_ms += 60_000
    pair.put("interval", [row(T0, node="n1", spool_id="spool of n1")])
    found = pair.store.query("SELECT node, spool_id FROM interval FINAL ORDER BY node").to_pylist()
    assert found[1:] == [{"node": "n1", "spool_id": "spool of n1"}]


def test_only_the_one_that_watches_keeps_rows_in_memory(pair: Pair) -> None:
    declared = columns([slot(start=T0 - MINUTE)])
    said = columns(roster(T0, [{"bucket": Bucket.ACTIVE, "job": "j"}]))
    for pair.heard_watches in (False, True):
        pair.overheard.slots("atlas", False, declared)
        pair.overheard.roster("atlas", False, said)
        assert pair.heard.clusters() == (("atlas",) if pair.heard_watches else ())
    (seen, *_) = pair.heard.observe("atlas", T0 + 10_000)
    assert seen.lo == 1.0


def test_what_does_not_fit_the_tables_holds_nobody_up(pair: Pair) -> None:
    broken: dict[str, list[Any]] = {"start_unix_ms": [T0], "slot": ["s0"], "duration_ms": ["long"]}
    pair.overheard.status("atlas", "n0", False, pb.Status(), broken, T0 + 12_000)
    pair.overheard.goodbye("atlas", "n1", 30_000, T0 + 12_000)
    pair.overheard.store()
    assert pair.store.query("SELECT node FROM event").to_pylist() == [{"node": "n1"}]
    assert "flopwatch_overheard_dropped_total 1.0" in generate_latest(pair.registry).decode()


def test_what_the_store_does_not_take_is_bounded_and_counted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "OVERHEARD_MAX", 1)
    for _ in range(3):
        pair.overheard.goodbye("atlas", "n1", 30_000, T0)
    assert "flopwatch_overheard_dropped_total 2.0" in generate_latest(pair.registry).decode()


def test_a_rollup_that_lost_its_lease_forgets_no_row_and_its_lines_do_not_stand(
    store: TelemetryStore,
) -> None:
    cluster = {"cluster": "atlas", "stored_unix_ms": T0}
    store.append("slot", columns([slot(start=T0) | cluster]))
    store.append("interval", columns([row(T0, duration=MINUTE) | cluster]))
    now_ms = T0 + 2 * MINUTE
    mine = Rollup(store, fence=2)
    assert mine.run(now_ms) == 1
    store.marks.mark([("atlas", T0)], now_ms + 1_000)
    store.marks.settle([("atlas", T0)], now_ms + 1_000)
    with pytest.raises(RetryableError, match="lease"):
        Rollup(store, fence=1, held=lambda: False).run(now_ms + 2_000)
    assert dirty_minutes(store) == [("atlas", T0)]
    written = "SELECT max(generation) AS g, count() AS n FROM written WHERE grain = 'fleet_minute'"
    (found,) = store.query(written + " AND start_unix_ms = {t:Int64}", {"t": T0}).to_pylist()
    assert found == {"g": (2 << FENCE_SHIFT) + now_ms, "n": 2}
    assert mine.run(now_ms + 3_000) == 1
    assert dirty_minutes(store) == []


def test_whoever_asks_a_store_that_is_closed_does_not_wait(store: TelemetryStore) -> None:
    store.close()
    for _ in range(2):
        with pytest.raises(RetryableError, match="closed"):
            store.query("SELECT 1")

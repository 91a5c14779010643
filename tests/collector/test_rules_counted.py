"""What rules that count are told, from rows of now, and what they say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from evidence_tables import roster, row, slot
from flopwatch_collector.live import Live
from flopwatch_collector.live_tables import COLUMNS, typed
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import RULES, Rule, rule_named
from flopwatch_collector.rules.verdict import Condition
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

T0: Final = 1_800_000_000_000
STEP: Final = 10_000
NODES: Final = 4
COUNTING: Final = [rule for rule in RULES if rule.says is not None]
LASTING: Final = {"node_silent": "silent_nodes", "job_stalled": "since_unix_ms"}


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = {name for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}


class Cluster:
    """Four nodes of two cards, seen tick by tick. Attributes: rows: what a card's rows say, by place."""

    def __init__(self) -> None:
        self.live = Live(T0, lambda cluster: rule_named("mfu").defaults)
        self.tick = T0
        self.rows: dict[tuple[str, str], dict[str, Any] | None] = {
            (f"n{node}", f"s{card}"): {"job": f"j{node}"}
            for node in range(NODES)
            for card in (0, 1)
        }
        slots = [slot(node=node, name=card, start=T0) for node, card in self.rows]
        self.live.slots("atlas", False, columns(slots))

    def go(self, seconds: int = 10) -> dict[str, Observation]:
        """Let time pass; return what the rules are told at its end, by the rows of its last interval."""
        self.tick += 1000 * seconds
        said = [
            row(self.tick - STEP, node=node, name=card, **{"sm": 0.9, "tensor": 0.5} | more)
            for (node, card), more in self.rows.items()
            if more is not None
        ]
        table = typed(columns(said), "interval", COLUMNS)
        self.live.add_many("atlas", False, table, self.tick)
        return {seen.rule: seen for seen in self.live.observe("atlas", self.tick)}

    def silence(self, *nodes: str) -> None:
        self.rows |= {place: None for place in self.rows if place[0] in nodes}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def observed(rule: str, count: int | None, whole: int, unseen: int = 0) -> Observation:
    """What a counting rule is told, from numbers."""
    blank = Observation(
        cluster="atlas", rule=rule, simulated=False, device_kind="gpu", tick_unix_ms=T0,
        lo=None, hi=None, value=None, coverage=None, in_service_cards=1000, unseen_cards=0,
        subjects=count, subjects_in_all=whole, subjects_unseen=unseen,
    )  # fmt: skip
    if rule in LASTING:
        long_ago = {f"x{i}": T0 - 600_000 for i in range(count or 0)} | {"fresh": T0 - 599_999}
        blank = replace(blank, **{LASTING[rule]: long_ago})  # type: ignore[arg-type]
    return blank


@pytest.mark.parametrize("rule", COUNTING, ids=lambda rule: rule.name)
def test_a_rule_that_counts_breaches_from_its_line_on_and_is_unknown_where_nobody_counted(
    rule: Rule,
) -> None:
    least = max(rule.defaults.count_min, round(100 * (1 - rule.defaults.line)))

    def condition(count: int | None, whole: int = 100, unseen: int = 0) -> Condition:
        verdict = rule.judge(observed(rule.name, count, whole, unseen), rule.defaults)
        if verdict.condition is not Condition.OK:
            assert not verdict.clears
        return verdict.condition

    assert condition(least) is Condition.BREACH
    assert condition(least - 1) is Condition.OK
    assert condition(least - 1, unseen=1) is Condition.UNKNOWN
    assert condition(None) is Condition.UNKNOWN
    # No job that runs is no job that stands still.
    assert condition(0, whole=0) is Condition.OK


@pytest.mark.parametrize("rule", COUNTING, ids=lambda rule: rule.name)
def test_a_rule_that_counts_says_so_on_a_page_and_has_somebody_to_wake(rule: Rule) -> None:
    assert rule.says is not None
    words = rule.says(observed(rule.name, 12, 10_000))
    assert words.startswith("12 ")
    assert len(words) <= 32
    assert rule.owner in ("hardware", "workload", "facility")
    names = [other.name for other in RULES]
    for link in rule.said_by:
        assert names.index(link.rule) < names.index(rule.name)


def test_throttling_pages_from_a_tenth_of_the_fleet_and_clears_two_points_below() -> None:
    rule = rule_named("throttled")
    assert rule.says is not None
    assert rule.says(observed("throttled", 12, 80)) == "12 cards (15.0%)"
    few = replace(rule.defaults, count_min=1)
    verdicts = [rule.judge(observed("throttled", n, 100), few) for n in (10, 9, 8, 7)]
    assert [v.condition for v in verdicts] == [Condition.BREACH, *[Condition.OK] * 3]
    assert [v.clears for v in verdicts] == [False, False, False, True]


def test_a_healthy_cluster_has_nothing_to_count(cluster: Cluster) -> None:
    told = cluster.go()
    wholes = {"node_silent": 4, "card_failed": 8, "rogue": 8, "job_stalled": 4}
    for rule, whole in wholes.items():
        assert (told[rule].subjects, told[rule].subjects_in_all) == (0, whole)
    # No card tells its throttle reasons: that is not known, and not none.
    assert told["throttled"].subjects is None
    unknown = rule_named("throttled").judge(told["throttled"], rule_named("throttled").defaults)
    assert unknown.condition is Condition.UNKNOWN


def test_a_node_is_silent_after_ten_minutes_and_is_named_with_its_cards(cluster: Cluster) -> None:
    cluster.go()
    cluster.silence("n3")
    early = cluster.go(590)["node_silent"]
    assert (early.subjects, early.silent_nodes) == (0, {"n3": T0 + STEP})
    told = cluster.go()["node_silent"]
    assert (told.subjects, told.value) == (1, 0.75)
    assert [(c.kind, c.name, c.cards) for c in told.causes] == [("node", "n3", 2.0)]
    judge, settings = rule_named("node_silent").judge, rule_named("node_silent").defaults
    assert judge(told, settings).condition is Condition.BREACH
    assert judge(told, replace(settings, window_s=601)).condition is Condition.OK


def test_nodes_on_leave_in_maintenance_or_whose_agent_speaks_are_not_silent(
    cluster: Cluster,
) -> None:
    cluster.live.hello(pb.Hello(cluster="atlas", node_id="n1"), T0)
    cluster.go()
    cluster.silence("n1", "n2", "n3")
    cluster.live.goodbye("atlas", "n2", 3_600_000, cluster.tick)
    resting = [{"node": "n3", "slot": card, "bucket": Bucket.MAINT} for card in ("s0", "s1")]
    for minute in range(12):
        if minute < 3:  # then its scheduler is away, and nobody says so any more
            cluster.live.roster("atlas", False, columns(roster(cluster.tick, resting)))
        cluster.live.agents.heard("atlas", "n1", cluster.tick)
        told = cluster.go(60)["node_silent"]
    assert told.subjects == 0
    assert told.silent_nodes.keys() == {"n1"}  # for a minute, as it speaks once in one


def test_failed_cards_are_named_and_silence_ends_no_failure(cluster: Cluster) -> None:
    cluster.rows["n1", "s0"] = {"bucket": Bucket.FAILED, "sm": None}
    told = cluster.go()["card_failed"]
    assert (told.subjects, told.subjects_in_all, told.subjects_unseen) == (1, 8, 0)
    assert [(c.kind, c.name) for c in told.causes] == [("card", "n1/s0")]
    cluster.silence("n1")
    unseen = cluster.go(20)["card_failed"]
    assert (unseen.subjects, unseen.subjects_unseen) == (0, 1)
    rule = rule_named("card_failed")
    assert rule.judge(unseen, rule.defaults).condition is Condition.UNKNOWN
    cluster.rows["n1", "s0"] = {"job": "j1"}
    assert cluster.go()["card_failed"].subjects_unseen == 0


def test_rogue_cards_are_those_that_rows_or_a_roster_call_so(cluster: Cluster) -> None:
    cluster.rows["n0", "s1"] = {"rogue": True, "job": ""}
    assert [c.name for c in cluster.go()["rogue"].causes] == ["n0/s1"]
    nobodys = [{"node": "n2", "slot": "s0", "bucket": Bucket.FREE}]
    cluster.live.roster("atlas", False, columns(roster(cluster.tick, nobodys)))
    assert {c.name for c in cluster.go()["rogue"].causes} == {"n0/s1", "n2/s0"}


def test_cards_are_throttled_by_heat_for_half_the_time_or_by_power_that_costs_a_quarter(
    cluster: Cluster,
) -> None:
    cool = {"throttled_thermal_sw_ms": 0, "throttled_thermal_hw_ms": 0, "throttled_power_ms": 0}
    cool |= {"throttled_power_brake_ms": 0, "throttled_sync_boost_ms": 0}
    for place in cluster.rows:
        cluster.rows[place] = {"job": "j", **cool}
    cluster.rows["n0", "s0"] = {**cool, "throttled_thermal_hw_ms": 5_000}
    cluster.rows["n0", "s1"] = {**cool, "throttled_thermal_sw_ms": 4_999}
    # At the power limit all the time: 5 % of the clock is usual, 40 % is not.
    cluster.rows["n1", "s0"] = {**cool, "throttled_power_ms": 10_000, "clock": 0.95}
    cluster.rows["n1", "s1"] = {**cool, "throttled_power_ms": 10_000, "clock": 0.60}
    told = cluster.go()["throttled"]
    assert (told.subjects, told.subjects_in_all) == (2, 8)
    assert {(c.kind, c.name, c.cards) for c in told.causes} == {
        ("node", "n0", 1),
        ("node", "n1", 1),
    }


def test_a_job_stands_still_after_ten_minutes_without_an_active_sm_on_any_card(
    cluster: Cluster,
) -> None:
    still = {"sm": 0.0, "tensor": 0.0, "workload_class": "training"}
    cluster.go()
    cluster.rows["n0", "s0"] = {"job": "j0", **still}  # its other card works
    cluster.rows |= {place: {"job": "j1", **still} for place in cluster.rows if place[0] == "n1"}
    # An inference server may wait for requests.
    waits = {"job": "j2", **still, "workload_class": "inference"}
    cluster.rows |= {place: waits for place in cluster.rows if place[0] == "n2"}
    # So may a notebook, and nobody said what this one is.
    notebook = {"job": "j3", **still, "workload_class": ""}
    cluster.rows |= {place: notebook for place in cluster.rows if place[0] == "n3"}
    cluster.go()
    assert cluster.go(580)["job_stalled"].subjects == 0
    told = cluster.go()["job_stalled"]
    assert (told.subjects, told.subjects_in_all) == (1, 3)
    assert [(c.kind, c.name, c.cards) for c in told.causes] == [("job", "j1", 2.0)]


def test_counters_that_nobody_read_neither_stall_a_job_nor_set_it_going(cluster: Cluster) -> None:
    places = [place for place in cluster.rows if place[0] == "n1"]
    cluster.go()
    still = {"job": "j1", "sm": 0.0, "tensor": 0.0, "workload_class": "training"}
    cluster.rows |= dict.fromkeys(places, still)
    cluster.go()
    cluster.go(290)
    cluster.silence("n1")
    assert cluster.go(400)["job_stalled"].subjects_unseen == 0
    cluster.rows |= dict.fromkeys(places, still)
    assert cluster.go(290)["job_stalled"].subjects == 0
    assert cluster.go()["job_stalled"].subjects == 1
    cluster.silence("n1")
    unseen = cluster.go()["job_stalled"]
    assert (unseen.subjects, unseen.subjects_unseen) == (0, 1)
    # It speaks again, and its counters cannot be read: that is no answer either.
    cluster.rows |= {place: {"job": "j1", "sm": None} for place in places}
    unread = cluster.go()["job_stalled"]
    assert (unread.subjects, unread.subjects_unseen, unread.subjects_in_all) == (0, 1, 4)
    cluster.rows |= {place: {"job": "j1"} for place in places}
    again = cluster.go()["job_stalled"]
    assert (again.subjects, again.subjects_unseen) == (0, 0)

"""One cause pages once: which outages wait for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest

from evidence_tables import MINUTE, roster, row, slot
from flopwatch_collector import incident
from flopwatch_collector.incident_state import Act, IncidentState, State
from flopwatch_collector.inhibition import said_by
from flopwatch_collector.live import Live
from flopwatch_collector.live_tables import COLUMNS, typed
from flopwatch_collector.rules.registry import RULES, rule_named
from flopwatch_collector.rules.verdict import UNKNOWN
from flopwatch_proto.rows import Bucket

T0: Final = 1_800_000_000_000
STEP: Final = 10_000
RACK: Final = [f"r1-n{i}" for i in range(9)]


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = {name for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}


class Fleet:
    """Nodes of a card each, judged by every rule at every tick. Attributes: pages: (rule, minute)."""

    def __init__(self, others: int) -> None:
        self.nodes = [*RACK, *(f"r2-n{i}" for i in range(others))]
        self.live = Live(T0, lambda cluster: rule_named("mfu").defaults)
        self.live.slots("atlas", False, columns([slot(node=n, start=T0) for n in self.nodes]))
        self.states: dict[str, IncidentState] = {}
        self.pages: list[tuple[str, int]] = []
        self.tick = T0

    def go(self, minutes: int, speaking: Sequence[str], down: Sequence[str] = ()) -> None:
        for tick in range(minutes * 6):
            if down and tick % 6 == 0:
                said = [{"node": node, "bucket": Bucket.MISSING} for node in down]
                self.live.roster("atlas", False, columns(roster(self.tick, said)))
            rows = [row(self.tick, node=node, sm=0.9, tensor=0.8, job="j") for node in speaking]
            self.tick += STEP
            table = typed(columns(rows), "interval", COLUMNS)
            self.live.add_many("atlas", False, table, self.tick)
            self.judge()

    def judge(self) -> None:
        observed = {o.rule: o for o in self.live.observe("atlas", self.tick)}
        for rule in RULES:
            seen = observed.get(rule.reads)
            self.states[rule.name], actions = incident.advance(
                self.states.get(rule.name, IncidentState(rule=rule.name, cluster="atlas")),
                UNKNOWN if seen is None else rule.judge(seen, rule.defaults),
                seen,
                self.tick,
                rule.defaults,
                may_fire=not said_by(rule, self.states),
            )
            paged = [action for action in actions if action.act in (Act.TRIGGER, Act.ESCALATE)]
            self.pages += [(rule.name, (self.tick - T0) // MINUTE) for _ in paged]


def test_a_dead_rack_of_a_large_cluster_is_one_page_about_nine_nodes() -> None:
    fleet = Fleet(others=250)
    fleet.go(2, fleet.nodes)
    fleet.go(17, fleet.nodes[len(RACK) :])
    assert fleet.pages == [("node_silent", 13)]
    state = fleet.states["node_silent"]
    assert state.subjects == len(RACK)
    assert {cause.name for cause in state.causes} == set(RACK)


def test_a_dead_rack_that_costs_allocation_is_one_page_about_allocation() -> None:
    fleet = Fleet(others=60)
    fleet.go(2, fleet.nodes)
    fleet.go(13, fleet.nodes[len(RACK) :], down=RACK)
    assert fleet.pages == [("allocation", 7)]
    silent = fleet.states["node_silent"]
    assert silent.state is State.PENDING
    assert said_by(rule_named("node_silent"), fleet.states) == "allocation"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"state": State.INACTIVE}, False),
        ({"state": State.PENDING, "leading_cause": "FAILED"}, True),
        ({"state": State.FIRING, "leading_cause": "FREE", "paged_causes": ("FAILED",)}, True),
        ({"state": State.FIRING, "leading_cause": "FREE"}, False),
        ({"state": State.RESOLVED, "leading_cause": "FAILED"}, False),
        # What stands for a day says nothing of what began since.
        ({"state": State.STANDING, "standing_since_unix_ms": 200, "leading_cause": "FAILED"}, True),
        ({"state": State.STANDING, "standing_since_unix_ms": 50, "leading_cause": "FAILED"}, False),
    ],
)
def test_an_outage_waits_for_one_that_says_its_cause(other: dict[str, Any], says: bool) -> None:
    states = {
        "card_failed": IncidentState(rule="card_failed", cluster="a", began_unix_ms=100),
        "allocation": IncidentState(rule="allocation", cluster="a", **other),
    }
    assert said_by(rule_named("card_failed"), states) == ("allocation" if says else "")

"""What rules say now, as gauges for Prometheus: unknown has no sample, and nothing invents one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flopwatch_collector.control.observations import Judged
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleOverride, RulesConfig
from flopwatch_collector.web.exposition import CLUSTERS_MAX, exposition
from flopwatch_collector.web.rule_gauges import NEWEST_MS, judgements, newest

NOW_MS = 1_800_000_000_000
LOW = Observation(
    cluster="atlas",
    rule="allocation",
    simulated=False,
    device_kind="gpu",
    tick_unix_ms=NOW_MS,
    lo=0.93,
    hi=0.95,
    value=None,
    coverage=0.98,
    in_service_cards=100,
    unseen_cards=2,
)
ATLAS = 'cluster="atlas",rule="allocation",simulated="false"'


def shown(*observations: Observation, rules: RulesConfig | None = None) -> str:
    return exposition(None, None, None, judgements(observations, rules or RulesConfig()))


def test_a_breach_has_its_bounds_line_and_coverage() -> None:
    text = shown(LOW)
    for sample in ("lo_ratio", "hi_ratio", "line_ratio", "coverage_ratio", "breach", "clears"):
        assert f"flopwatch_rule_{sample}{{{ATLAS}}}" in text
    assert f"flopwatch_rule_hi_ratio{{{ATLAS}}} 0.95" in text
    assert f"flopwatch_rule_breach{{{ATLAS}}} 1.0" in text
    assert 'rule="mfu"' not in text


def test_the_line_is_that_of_the_settings_and_a_rule_that_is_off_says_nothing() -> None:
    lower = RulesConfig(allocation=RuleOverride(line=0.9))
    assert f"flopwatch_rule_line_ratio{{{ATLAS}}} 0.9\n" in shown(LOW, rules=lower)
    assert f"flopwatch_rule_breach{{{ATLAS}}} 0.0" in shown(LOW, rules=lower)
    off = RulesConfig(allocation=RuleOverride(enabled=False))
    assert ATLAS not in shown(LOW, rules=off)


def test_unknown_has_a_line_and_neither_figure_nor_breach() -> None:
    text = shown(replace(LOW, lo=None, hi=None))
    assert f"flopwatch_rule_line_ratio{{{ATLAS}}}" in text
    assert f"flopwatch_rule_hi_ratio{{{ATLAS}}}" not in text
    assert f"flopwatch_rule_breach{{{ATLAS}}}" not in text


def test_bounds_that_straddle_the_line_are_no_breach_and_no_all_clear() -> None:
    text = shown(replace(LOW, hi=0.98))
    assert f"flopwatch_rule_breach{{{ATLAS}}}" not in text
    assert f"flopwatch_rule_clears{{{ATLAS}}}" not in text


def test_a_cluster_that_is_not_on_board_is_not_judged() -> None:
    assert f"flopwatch_rule_breach{{{ATLAS}}}" not in shown(replace(LOW, onboarded_ratio=0.5))


def test_cards_that_nobody_waits_for_are_no_breach() -> None:
    assert f"flopwatch_rule_breach{{{ATLAS}}} 0.0" in shown(
        replace(LOW, lo=0.95, free_without_demand_points=5)
    )


def test_an_incident_has_one_state_of_four() -> None:
    incident = IncidentState(rule="mfu", cluster="atlas", state=State.STANDING)
    text = exposition(None, None, None, (), [incident])
    labels = 'cluster="atlas",rule="mfu",simulated="false"'
    for state, value in (("standing", 1), ("firing", 0), ("pending", 0), ("clearing", 0)):
        assert f'flopwatch_incident_state{{{labels},state="{state}"}} {value}.0' in text


def test_clusters_are_bounded_and_real_ones_stay() -> None:
    real = [replace(LOW, cluster=f"c{number:03}") for number in range(CLUSTERS_MAX)]
    text = shown(replace(LOW, cluster="aaa", simulated=True), *real)
    assert 'cluster="aaa"' not in text
    assert f'cluster="c{CLUSTERS_MAX - 1:03}"' in text


def test_only_the_newest_of_the_present_is_read(tmp_path: Path) -> None:
    store = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    old = replace(LOW, cluster="gone", tick_unix_ms=NOW_MS - NEWEST_MS - 10_000)
    before = replace(LOW, hi=0.99, tick_unix_ms=NOW_MS - 10_000)
    store.save(observations=[Judged(observation=o, condition="ok") for o in (old, before, LOW)])
    assert newest(store, NOW_MS) == [LOW]
    store.close()

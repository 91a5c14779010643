"""What the rules say of observations."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwatch_collector.rules import Observation, allocation, blind, coverage, data_missing, mfu
from flopwatch_collector.rules.registry import (
    RULE_NAMES,
    RULES,
    rule_named,
    settings_of,
    validate,
)
from flopwatch_collector.rules.settings import (
    ClusterRules,
    RuleOverride,
    RulesConfig,
    RuleSettings,
)
from flopwatch_collector.rules.verdict import Condition
from flopwatch_proto.errors import UsageError

ALLOCATION = rule_named("allocation").defaults
MFU = rule_named("mfu").defaults
BLIND = rule_named("blind").defaults


def observed(
    allocated: float = 960, unseen: float = 0, in_service: float = 1000, **changes: object
) -> Observation:
    """An observation of allocation, from cards."""
    observation = Observation(
        cluster="atlas",
        rule="allocation",
        simulated=False,
        device_kind="gpu",
        tick_unix_ms=1_800_000_000_000,
        lo=allocated / in_service,
        hi=(allocated + unseen) / in_service,
        value=allocated / (in_service - unseen) if unseen < in_service else None,
        coverage=1 - unseen / in_service,
        in_service_cards=in_service,
        unseen_cards=unseen,
    )
    return replace(observation, **changes)  # type: ignore[arg-type]


def utilised(lo: float | None, hi: float | None, value: float | None = None) -> Observation:
    """An observation of MFU."""
    return observed(rule="mfu", lo=lo, hi=hi, value=value, coverage=1.0)


def test_allocation_on_its_line_is_ok_and_one_card_below_is_a_breach() -> None:
    assert allocation.judge(observed(960), ALLOCATION).condition is Condition.OK
    assert allocation.judge(observed(959), ALLOCATION).condition is Condition.BREACH


def test_allocation_whose_unseen_cards_decide_is_unknown() -> None:
    verdict = allocation.judge(observed(950, unseen=10), ALLOCATION)
    assert verdict.condition is Condition.UNKNOWN
    assert verdict.figure == 0.96


def test_allocation_below_its_line_with_every_unseen_card_counted_is_a_breach() -> None:
    verdict = allocation.judge(observed(900, unseen=59), ALLOCATION)
    assert verdict.condition is Condition.BREACH


def test_allocation_without_figures_is_unknown() -> None:
    assert allocation.judge(observed(lo=None, hi=None), ALLOCATION).condition is Condition.UNKNOWN
    nothing = observed(in_service_cards=0)
    assert allocation.judge(nothing, ALLOCATION).condition is Condition.UNKNOWN


@pytest.mark.parametrize(
    ("allocated", "unseen", "clears"),
    [(970, 0, True), (969, 0, False), (965, 10, None), (960, 5, False), (990, 10, True)],
)
def test_allocation_clears_a_point_above_its_line_and_unseen_cards_leave_it_open(
    allocated: float, unseen: float, clears: bool | None
) -> None:
    assert allocation.judge(observed(allocated, unseen), ALLOCATION).clears is clears


def test_a_deep_deficit_is_deep_from_twenty_points_on() -> None:
    assert allocation.judge(observed(760), ALLOCATION).deep
    assert not allocation.judge(observed(761), ALLOCATION).deep


def test_silence_never_takes_the_deep_path() -> None:
    unseen = allocation.judge(observed(600, unseen=400), ALLOCATION)
    assert not unseen.deep
    missing = observed(600, lost_points={"MISSING": 40.0})
    verdict = allocation.judge(missing, ALLOCATION)
    assert verdict.condition is Condition.BREACH
    assert not verdict.deep
    witnessed = replace(missing, witnessed_missing_points=40.0)
    assert allocation.judge(witnessed, ALLOCATION).deep


def test_a_deep_deficit_that_a_lack_of_demand_explains_is_news_of_another_kind() -> None:
    idle = observed(600, lost_points={"FREE": 40.0}, free_without_demand_points=40.0)
    verdict = allocation.judge(idle, ALLOCATION)
    assert verdict.condition is Condition.BREACH
    assert (verdict.deep, verdict.no_demand) == (False, True)
    partly = replace(idle, free_without_demand_points=5.0)
    assert allocation.judge(partly, ALLOCATION).deep


def test_cards_of_nodes_that_said_goodbye_count_as_unseen_however_long_they_are_gone() -> None:
    gone = observed(900, lost_points={"MISSING": 10.0}, goodbye_cards=100)
    assert allocation.judge(gone, ALLOCATION).condition is Condition.UNKNOWN
    # Their cards are in hi already while they are merely unseen.
    unseen = observed(800, unseen=100, lost_points={"UNSEEN": 10.0}, goodbye_cards=100)
    assert allocation.judge(unseen, ALLOCATION).figure == 0.9


@given(
    allocated=st.integers(0, 1000),
    unseen=st.integers(0, 1000),
    line=st.floats(0.01, 1.0),
)
def test_allocation_is_never_judged_against_what_the_unseen_cards_could_prove(
    allocated: int, unseen: int, line: float
) -> None:
    unseen = min(unseen, 1000 - allocated)
    settings = replace(ALLOCATION, line=line)
    condition = allocation.judge(observed(allocated, unseen), settings).condition
    at_worst = allocation.judge(observed(allocated), settings).condition
    at_best = allocation.judge(observed(allocated + unseen), settings).condition
    if condition is not Condition.UNKNOWN:
        assert at_worst is condition
        assert at_best is condition
    else:
        assert at_worst is Condition.BREACH
        assert at_best is Condition.OK


def test_mfu_breaches_only_when_its_upper_bound_is_below_the_line() -> None:
    assert mfu.judge(utilised(0.43, 0.599), MFU).condition is Condition.BREACH
    assert mfu.judge(utilised(0.43, 0.60), MFU).condition is Condition.UNDECIDED
    assert mfu.judge(utilised(0.60, 0.70), MFU).condition is Condition.OK
    assert mfu.judge(utilised(0.50, 0.70, value=0.61), MFU).condition is Condition.OK


def test_mfu_is_unknown_only_when_data_is_missing() -> None:
    assert mfu.judge(utilised(None, None), MFU).condition is Condition.UNKNOWN
    thin = replace(utilised(0.7, 0.7), coverage=0.89)
    verdict = mfu.judge(thin, MFU)
    assert verdict.condition is Condition.UNKNOWN
    assert not verdict.clears
    assert mfu.judge(replace(thin, coverage=0.90), MFU).condition is Condition.OK


def test_a_firing_mfu_outage_clears_on_its_upper_bound_two_points_above_the_line() -> None:
    assert mfu.judge(utilised(0.45, 0.62), MFU).clears is True
    assert mfu.judge(utilised(0.45, 0.619), MFU).clears is False


def test_mfu_takes_the_deep_path_only_where_it_is_asked_for() -> None:
    assert not mfu.judge(utilised(0.1, 0.20), MFU).deep
    asked = replace(MFU, deep_points=20)
    assert mfu.judge(utilised(0.3, 0.40), asked).deep
    assert not mfu.judge(utilised(0.3, 0.41), asked).deep


def test_thin_coverage_is_its_own_alert_and_nothing_allocated_is_not() -> None:
    settings = rule_named("coverage").defaults
    assert coverage.judge(observed(coverage=0.89), settings).condition is Condition.BREACH
    assert coverage.judge(observed(coverage=0.90), settings).condition is Condition.OK
    assert coverage.judge(observed(coverage=None), settings).condition is Condition.OK


def test_data_is_missing_while_the_unseen_cards_decide() -> None:
    settings = rule_named("data_missing").defaults
    assert data_missing.judge(observed(950, unseen=10), settings).condition is Condition.BREACH
    assert data_missing.judge(observed(lo=None, hi=None), settings).condition is Condition.BREACH
    assert data_missing.judge(observed(900, unseen=10), settings).condition is Condition.OK
    assert data_missing.judge(observed(980, unseen=10), settings).condition is Condition.OK


def test_nodes_that_said_goodbye_are_not_missing_data() -> None:
    settings = rule_named("data_missing").defaults
    upgrade = observed(900, unseen=100, goodbye_cards=100)
    assert data_missing.judge(upgrade, settings).condition is Condition.OK
    more = observed(800, unseen=200, goodbye_cards=100)
    assert data_missing.judge(more, settings).condition is Condition.BREACH


def _silent(count: int, ago_ms: int, spread_ms: int = 0, nodes: int | None = None) -> Observation:
    base = observed()
    last_words = {
        f"n{i}": base.tick_unix_ms - ago_ms - i * spread_ms // max(1, count - 1)
        for i in range(count)
    }
    return observed(silent_nodes=last_words, in_service_nodes=nodes)


def test_ten_nodes_that_fall_silent_within_two_minutes_are_a_mass_silence() -> None:
    assert blind.judge(_silent(10, 61_000, 120_000), BLIND).condition is Condition.BREACH
    assert blind.judge(_silent(9, 61_000), BLIND).condition is Condition.OK
    assert blind.judge(_silent(10, 61_000, 200_000), BLIND).condition is Condition.OK


def test_a_large_cluster_needs_two_percent_of_its_nodes() -> None:
    assert blind.judge(_silent(40, 61_000, nodes=2500), BLIND).condition is Condition.OK
    enough = blind.judge(_silent(50, 61_000, nodes=2500), BLIND)
    assert enough.condition is Condition.BREACH
    assert enough.figure == 0.98


def test_a_silence_is_not_mass_silence_before_a_minute_and_judged_after_fifteen() -> None:
    assert blind.judge(_silent(20, 59_000), BLIND).condition is Condition.OK
    assert blind.judge(_silent(20, 15 * 60_000), BLIND).condition is Condition.OK


def test_settings_come_from_defaults_then_the_rule_then_the_cluster() -> None:
    config = RulesConfig(
        allocation=RuleOverride(line=0.95, for_s=60),
        clusters={"atlas": ClusterRules(allocation=RuleOverride(line=0.90))},
    )
    rule = rule_named("allocation")
    assert settings_of(rule, "other", config) == replace(ALLOCATION, line=0.95, for_s=60)
    assert settings_of(rule, "atlas", config) == replace(ALLOCATION, line=0.90, for_s=60)
    # Whether allocation can be judged is asked at allocation's line.
    assert settings_of(rule_named("data_missing"), "atlas", config).line == 0.90


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RulesConfig(allocation=RuleOverride(line=96)), "rules.allocation.line"),
        (RulesConfig(mfu=RuleOverride(for_s=-1)), "rules.mfu.for_s"),
        (RulesConfig(mfu=RuleOverride(basis="sparse")), "datasheet"),
        (RulesConfig(allocation=RuleOverride(escalate_points=0)), "escalate_points"),
        (RulesConfig(allocation=RuleOverride(line=0.995)), "hysteresis_points"),
        (RulesConfig(settle_s=-1), "settle_s"),
        (RulesConfig(onboarded_ratio_min=2), "onboarded_ratio_min"),
        (
            RulesConfig(clusters={"a": ClusterRules(mfu=RuleOverride(line=0))}),
            "rules.clusters.a.mfu.line",
        ),
    ],
)
def test_wrong_settings_are_refused_by_key(config: RulesConfig, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        validate(config)


def test_the_defaults_are_valid_and_are_the_lines_that_were_promised() -> None:
    validate(RulesConfig())
    assert RULE_NAMES[:5] == ("blind", "allocation", "data_missing", "mfu", "coverage")
    assert (ALLOCATION.line, ALLOCATION.for_s, ALLOCATION.clear_s) == (0.96, 300, 600)
    assert (MFU.line, MFU.for_s) == (0.60, 900)
    assert all(isinstance(rule.defaults, RuleSettings) for rule in RULES)


def test_an_unknown_rule_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match="allocation"):
        rule_named("alocation")

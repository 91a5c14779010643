"""The state machine of incidents, row by row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from flopwatch_collector import incident, incident_diagram
from flopwatch_collector.incident_state import (
    TRANSITIONS,
    Act,
    Event,
    State,
    acknowledged,
    outage,
)
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from incident_story import ALLOCATION, START_MS, STEP_MS, Story, firing

MFU = rule_named("mfu")


def test_a_breach_that_holds_five_minutes_triggers_once() -> None:
    story = Story()
    assert story.see(0.95) is State.PENDING
    assert story.see(0.95, 290) is State.PENDING
    assert story.see(0.95) is State.FIRING
    assert story.see(0.95, 3600) is State.FIRING
    assert story.acts() == ["trigger"]
    (fired_ms, trigger), *_ = story.sent
    assert fired_ms - START_MS == 310_000
    assert trigger.episode == "2027-01-15T08:00Z"


def test_a_breach_that_ends_before_its_hold_is_forgotten() -> None:
    story = Story()
    story.see(0.95, 290)
    assert story.see(0.96) is State.INACTIVE
    assert story.see(0.95, 290) is State.PENDING
    assert story.acts() == []


def test_an_outage_clears_a_point_above_its_line_and_resolves_after_ten_minutes() -> None:
    story = firing()
    assert story.see(0.965, 3600) is State.FIRING
    assert story.see(0.97) is State.CLEARING
    assert story.see(0.97, 590) is State.CLEARING
    assert story.see(0.97) is State.RESOLVED
    assert story.acts() == ["trigger", "resolve"]


def test_a_resolve_is_repeated_every_five_minutes_for_fifteen() -> None:
    story = firing()
    story.see(0.98, 610)
    resolved_ms = story.sent[-1][0]
    assert story.see(0.98, 890) is State.RESOLVED
    assert story.see(0.98, 10) is State.INACTIVE
    story.see(0.98, 3600)
    repeats = [(at - resolved_ms, a.repeat_no) for at, a in story.sent if a.act is Act.RESOLVE]
    assert repeats == [(0, 0), (300_000, 1), (600_000, 2), (900_000, 3)]
    assert len({action.episode for _, action in story.sent}) == 1


def test_a_breach_within_the_repeats_is_a_new_episode_and_the_repeats_go_on() -> None:
    story = firing()
    story.see(0.98, 610)
    story.sent.clear()
    assert story.see(0.95, 310) is State.FIRING
    story.see(0.95, 900)
    episodes = [(a.act, a.episode) for _, a in story.sent]
    assert [act for act, _ in episodes] == [Act.RESOLVE, Act.TRIGGER, Act.RESOLVE, Act.RESOLVE]
    resolved, triggered = episodes[0][1], episodes[1][1]
    assert triggered > resolved
    assert [episode for act, episode in episodes if act is Act.RESOLVE] == [resolved] * 3


def test_two_episodes_within_one_minute_have_two_names() -> None:
    story = Story(settings=replace(ALLOCATION.defaults, for_s=0, clear_s=0))
    for _ in range(3):
        assert story.see(0.95) is State.FIRING
        assert story.see(0.98) is State.RESOLVED
    triggers = [a.episode for _, a in story.sent if a.act is Act.TRIGGER]
    assert len(set(triggers)) == 3


def test_unknown_stops_the_hold_of_a_pending_outage() -> None:
    story = Story()
    story.see(0.95, 200)
    assert story.see(0.95, 3600, unseen=0.04) is State.PENDING
    assert story.see(0.95, 100) is State.PENDING
    assert story.see(0.95, 10) is State.FIRING
    assert story.sent[0][1].episode == "2027-01-15T08:00Z"


def test_unknown_never_resolves_and_stops_the_hold_of_a_clearing_one() -> None:
    story = firing()
    assert story.see(None, 86_400) is State.FIRING
    assert story.see(0.98, 300) is State.CLEARING
    assert story.see(None, 86_400) is State.CLEARING
    assert story.see(0.98, 300) is State.CLEARING
    assert story.acts() == ["trigger"]
    assert story.see(0.98, 10) is State.RESOLVED


def test_time_that_nobody_evaluated_counts_for_no_hold() -> None:
    story = Story()
    story.see(0.95, 200)
    story.now_ms += 3_600_000
    assert story.see(0.95, 100) is State.PENDING
    assert story.see(0.95, 10) is State.FIRING


def test_unseen_cards_that_hide_the_hysteresis_line_stop_the_hold_to_resolve() -> None:
    story = firing()
    story.see(0.98, 300)
    assert story.see(0.965, 3600, unseen=0.02) is State.CLEARING
    assert story.see(0.98, 300) is State.CLEARING
    assert story.see(0.98, 10) is State.RESOLVED


def test_a_relapse_while_clearing_pages_nobody() -> None:
    story = firing()
    story.see(0.98, 300)
    assert story.see(0.965) is State.FIRING
    story.see(0.98, 300)
    assert story.see(0.95) is State.FIRING
    assert story.acts() == ["trigger"]
    assert len(story.state.flap_times) == 2


def test_four_flaps_in_an_hour_are_flapping_with_one_notice_and_an_hour_to_resolve() -> None:
    story = firing()
    for _ in range(6):
        story.see(0.98, 120)
        story.see(0.95, 60)
    assert story.acts() == ["trigger", "notice flapping"]
    assert story.state.flapping
    assert story.see(0.98, 3600) is State.CLEARING
    assert story.see(0.98) is State.RESOLVED
    assert story.see(0.98, 900) is not State.RESOLVED
    assert not story.state.flapping


def test_four_flaps_over_more_than_an_hour_are_not_flapping() -> None:
    story = firing()
    for _ in range(4):
        story.see(0.98, 300)
        story.see(0.95, 1200)
    assert not story.state.flapping
    assert story.acts() == ["trigger"]


def test_five_points_below_the_last_page_escalate_and_take_the_name_off() -> None:
    story = firing()
    story.state = acknowledged(story.state, "kim", story.now_ms)
    assert story.see(0.91, 600) is State.FIRING
    assert story.acts() == ["trigger"]
    assert story.state.ack_by == "kim"
    story.see(0.90, 3600)
    assert story.acts() == ["trigger", "escalate value"]
    assert story.state.ack_by is None
    story.see(0.86, 600)
    story.see(0.90, 600)
    assert len(story.sent) == 2
    story.see(0.85, 600)
    assert [(a.act, a.repeat_no) for _, a in story.sent[1:]] == [
        (Act.ESCALATE, 1),
        (Act.ESCALATE, 2),
    ]


def test_silence_that_lowers_the_lower_bound_only_is_no_escalation() -> None:
    story = firing()
    story.see(0.80, 3600, unseen=0.15)
    assert story.acts() == ["trigger"]


def test_mfu_escalates_a_quarter_below_the_last_paged_figure() -> None:
    story = Story(settings=MFU.defaults, rule="mfu")
    assert story.see(0.56, 900) is State.PENDING
    assert story.see(0.56, 10) is State.FIRING
    story.see(0.43, 600)
    assert story.acts() == ["trigger"]
    story.see(0.42, 600)
    assert story.acts() == ["trigger", "escalate value"]


def test_mfu_that_straddles_its_line_is_not_held_and_may_clear() -> None:
    story = Story(settings=MFU.defaults, rule="mfu")
    story.see(0.40, 600, unseen=0.15)
    assert story.see(0.40, 10, unseen=0.21) is State.INACTIVE
    assert story.see(0.40, 910, unseen=0.15) is State.FIRING
    assert story.see(0.40, 600, unseen=0.21) is State.FIRING
    assert story.see(0.40, 600, unseen=0.22) is State.CLEARING
    assert story.see(0.40, 10, unseen=0.22) is State.RESOLVED


def test_a_new_leading_cause_pages_once_when_it_has_led_for_two_minutes() -> None:
    story = Story()
    free, failed = {"FREE": 4.0, "FAILED": 1.0}, {"FREE": 2.0, "FAILED": 3.0}
    story.see(0.95, 600, lost=free)
    for _ in range(5):
        story.see(0.95, 110, lost=failed)
        story.see(0.95, 110, lost=free)
    assert story.acts() == ["trigger"]
    story.see(0.95, 130, lost=failed)
    assert story.acts() == ["trigger", "escalate cause"]
    story.see(0.95, 600, lost=free)
    story.see(0.95, 600, lost=failed)
    assert len(story.sent) == 2


def test_a_deep_failure_fires_after_two_minutes_and_is_critical() -> None:
    story = Story()
    story.see(0.75, 120)
    assert story.state.state is State.PENDING
    assert story.see(0.75) is State.FIRING
    assert story.state.severity == "critical"
    assert story.acts() == ["trigger"]


def test_an_outage_that_turns_deep_escalates_by_value_and_by_severity() -> None:
    story = firing()
    story.see(0.75, 600)
    assert story.acts() == ["trigger", "escalate value", "escalate severity"]
    assert story.state.severity == "critical"


def test_what_nobody_wants_is_one_notice_and_no_page() -> None:
    story = Story()
    story.see(0.60, 130, idle_points=40.0)
    assert story.acts() == ["notice no_demand"]
    assert story.see(0.60, 180, idle_points=40.0) is State.FIRING
    story.see(0.50, 3600, idle_points=50.0)
    assert story.acts() == ["notice no_demand"]
    assert story.see(1.0, 3600) is State.INACTIVE
    assert story.acts() == ["notice no_demand"]


def test_a_shallow_want_of_demand_is_a_notice_once_it_held() -> None:
    story = Story()
    story.see(0.94, 290, idle_points=6.0)
    assert story.acts() == []
    story.see(0.94, 20, idle_points=6.0)
    assert story.acts() == ["notice no_demand"]


def test_a_job_that_comes_to_wait_for_the_cards_makes_it_a_page_that_is_resolved() -> None:
    story = Story()
    story.see(0.60, 400, idle_points=40.0)
    story.see(0.60, 110, lost={"FREE": 40.0})
    assert story.acts() == ["notice no_demand"]
    story.see(0.60, 20, lost={"FREE": 40.0})
    assert story.acts()[1] in ("escalate cause", "escalate severity")
    story.see(1.0, 3600)
    assert "resolve" in story.acts()


def test_nothing_fires_or_escalates_while_it_may_not() -> None:
    story = Story(may_fire=False)
    assert story.see(0.70, 3600) is State.PENDING
    story.may_fire = True
    assert story.see(0.70) is State.FIRING
    story.may_fire = False
    story.see(0.50, 3600)
    assert story.acts() == ["trigger"]


def test_an_outage_that_stands_for_a_day_gives_one_notice_and_is_standing() -> None:
    story = firing()
    assert story.see(0.95, 86_400) is State.FIRING
    assert story.see(0.95) is State.STANDING
    story.see(0.95, 86_400)
    assert story.acts() == ["trigger", "notice standing"]


def test_a_standing_outage_pages_when_it_falls_below_its_own_week() -> None:
    story = firing()
    story.see(0.95, 86_410)
    story.baseline = 0.95
    assert story.see(0.91, 600) is State.STANDING
    assert story.see(0.90) is State.FIRING
    assert story.acts()[-1] == "escalate baseline"
    story.see(0.90, 86_410)
    assert story.acts()[-1] == "notice standing"


def test_a_week_of_better_days_does_not_page_a_standing_outage_again() -> None:
    story = firing()
    story.see(0.90, 600)
    story.baseline = 0.98
    assert story.see(0.90, 3 * 86_400) is State.STANDING
    assert story.acts() == ["trigger", "escalate value", "notice standing"]


def test_a_standing_mfu_outage_needs_a_fifth_of_its_own_week() -> None:
    story = Story(settings=MFU.defaults, rule="mfu")
    assert story.see(0.50, 900 + 86_420) is State.STANDING
    story.baseline = 0.50
    assert story.see(0.41, 600) is State.STANDING
    assert story.see(0.40) is State.FIRING


def test_a_standing_outage_clears_as_any_other() -> None:
    story = firing()
    story.see(0.95, 86_410)
    assert story.see(0.97) is State.CLEARING
    assert story.see(0.97, 600) is State.RESOLVED


def test_an_escalation_postpones_standing() -> None:
    story = firing()
    story.see(0.95, 80_000)
    story.see(0.89)
    assert story.see(0.89, 80_000) is State.FIRING


def test_an_older_tick_changes_nothing() -> None:
    story = firing()
    verdict = ALLOCATION.judge(
        Observation(
            cluster="atlas",
            rule="allocation",
            simulated=False,
            device_kind="gpu",
            tick_unix_ms=story.now_ms,
            lo=1.0,
            hi=1.0,
            value=1.0,
            coverage=1.0,
            in_service_cards=1,
            unseen_cards=0,
        ),
        story.settings,
    )
    again = incident.advance(story.state, verdict, None, story.now_ms, story.settings)
    assert again == (story.state, ())


def test_a_restart_takes_its_downtime_out_of_a_pending_hold() -> None:
    story = Story()
    story.see(0.95, 200)
    story.now_ms += 1_800_000
    story.state = incident.resume(story.state, story.now_ms + STEP_MS)
    assert story.see(0.95, 100) is State.PENDING
    assert story.see(0.95, 10) is State.FIRING


def test_a_restart_after_more_than_an_hour_forgets_a_pending_outage() -> None:
    story = Story()
    story.see(0.95, 200)
    story.now_ms += 3_700_000
    story.state = incident.resume(story.state, story.now_ms + STEP_MS)
    assert story.see(0.95, 300) is State.PENDING
    assert story.see(0.95, 10) is State.FIRING
    assert story.sent[0][1].episode == "2027-01-15T09:05Z"


def test_a_restart_begins_the_hold_to_resolve_again_and_leaves_firing_alone() -> None:
    story = firing()
    before = story.state
    story.now_ms += 7_200_000
    story.state = incident.resume(story.state, story.now_ms + STEP_MS)
    assert story.state.state is State.FIRING
    assert story.state.episode == before.episode
    story.see(0.98, 500)
    story.now_ms += 60_000
    story.state = incident.resume(story.state, story.now_ms + STEP_MS)
    assert story.see(0.98, 600) is State.CLEARING
    assert story.see(0.98, 10) is State.RESOLVED


def test_only_an_outage_that_paged_can_be_acknowledged() -> None:
    story = Story()
    story.see(0.95, 100)
    assert acknowledged(story.state, "kim", story.now_ms).ack_by is None
    story.see(0.95, 300)
    assert acknowledged(story.state, "kim", story.now_ms).ack_by == "kim"


def test_the_api_shows_an_outage_from_its_first_breach() -> None:
    story = Story()
    assert outage(story.state) is None
    story.see(0.95, 310)
    assert outage(story.state) == {
        "rule": "allocation",
        "state": "firing",
        "since": "2027-01-15T08:00:10Z",
        "value": 0.95,
        "threshold": 0.96,
        "lost_points": {"FREE": pytest.approx(5.0)},
        "acked_by": None,
    }
    story.see(0.98, 610)
    assert outage(story.state) is None


def test_every_row_of_the_table_is_reached_by_a_known_event() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert {row.to for row in TRANSITIONS.values()} == set(State)


def _lines(text: str) -> Iterable[str]:
    return [line.strip() for line in text.splitlines()]


def test_the_diagram_in_the_documentation_is_the_table() -> None:
    root = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
    written = (root / "docs" / "incident-states.md").read_text(encoding="utf-8")
    assert _lines(written) == _lines(incident_diagram.document())

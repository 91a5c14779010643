"""An outage that a person resolved by hand: respected for four hours, unless it is worse."""

from __future__ import annotations

from flopwatch_collector.closure import closed, reopened
from flopwatch_collector.incident_state import State
from incident_story import STEP_MS, Story, firing

HOUR_S = 3600


def closed_story() -> Story:
    story = firing()
    story.state = closed(story.state, "kim in PagerDuty", story.now_ms)
    return story


def test_nothing_pages_for_four_hours_and_then_once() -> None:
    story = closed_story()
    assert story.see(0.95, 4 * HOUR_S - 10) is State.FIRING
    assert story.acts() == ["trigger"]
    story.see(0.95, 20)
    assert story.acts() == ["trigger", "escalate reopened"]
    assert story.state.closed_unix_ms is None
    story.see(0.95, 4 * HOUR_S)
    assert story.acts() == ["trigger", "escalate reopened"]


def test_what_is_worse_than_the_person_saw_pages_at_once() -> None:
    story = closed_story()
    story.see(0.91, 600)
    assert story.acts() == ["trigger"]
    story.see(0.90, 10)
    assert story.acts() == ["trigger", "escalate value"]


def test_another_cause_of_the_same_loss_is_no_news_to_who_closed_it() -> None:
    story = closed_story()
    story.see(0.95, 2 * HOUR_S, lost={"FAILED": 5.0})
    assert story.acts() == ["trigger"]


def test_a_new_episode_within_the_four_hours_is_told_to_nobody_nor_resolved() -> None:
    story = closed_story()
    story.see(0.98, 20 * 60)
    assert story.acts() == ["trigger", "resolve", "resolve repeat"]
    story.sent.clear()
    assert story.see(0.95, 1200) is State.FIRING
    assert story.acts() == ["resolve repeat"] * 2  # of the episode before
    story.sent.clear()
    story.see(0.98, 1800)
    assert story.acts() == []


def test_a_new_episode_that_is_worse_pages_and_ends_like_any() -> None:
    story = closed_story()
    story.see(0.98, 1800)
    story.sent.clear()
    story.see(0.90, 310)
    assert story.acts() == ["trigger"]
    story.see(0.98, 610)
    assert story.acts() == ["trigger", "resolve"]


def test_a_quiet_episode_that_becomes_worse_pages_and_is_resolved() -> None:
    story = closed_story()
    story.see(0.98, 1800)
    story.sent.clear()
    story.see(0.95, 600)
    story.see(0.89, 10)
    assert story.acts() == ["escalate value"]
    story.see(0.98, 610)
    assert story.acts() == ["escalate value", "resolve"]


def test_a_deep_failure_pages_whoever_closed_what() -> None:
    story = closed_story()
    story.see(0.98, 1800)
    story.sent.clear()
    story.see(0.50, 130)
    assert story.acts() == ["trigger"]


def test_it_can_be_taken_back() -> None:
    story = closed_story()
    story.state = reopened(story.state)
    story.see(0.95, 5 * HOUR_S)
    assert story.acts() == ["trigger"]
    story.see(0.95, HOUR_S, lost={"FAILED": 5.0})
    assert story.acts() == ["trigger", "escalate cause"]
    assert story.now_ms % STEP_MS == 0

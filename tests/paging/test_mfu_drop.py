"""An MFU that has been low for days and then collapses: who is told, and how often."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast
from unittest import mock

import pytest

from flopwatch_collector import watch
from flopwatch_collector.control.response import Kind, Response, respond
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import State
from flopwatch_collector.paging.channels import channels_of
from flopwatch_collector.paging.outbox import Sender
from flopwatch_collector.paging.settings import RouteConfig
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.watch import Watch, WatchSettings
from paging.conftest import SECRETS, config
from paging.shelf import Shelf
from receivers import PagerDuty, pagerduty

START_MS = 1_800_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
WINDOW_MS = 120_000


class Fleet:
    """A cluster in full use. Attributes: fell_unix_ms: when its MFU went from 41 % to 3 %, all at once."""

    def __init__(self) -> None:
        self.fell_unix_ms = START_MS + 1000 * DAY_MS

    def clusters(self) -> Sequence[str]:
        return ["atlas"]

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        since_ms = min(WINDOW_MS, max(0, tick_unix_ms - self.fell_unix_ms))
        mfu = (0.41 * (WINDOW_MS - since_ms) + 0.03 * since_ms) / WINDOW_MS
        return [self._seen("allocation", tick_unix_ms, 0.99), self._seen("mfu", tick_unix_ms, mfu)]

    def _seen(self, rule: str, tick_unix_ms: int, ratio: float) -> Observation:
        return Observation(
            cluster="atlas",
            rule=rule,
            simulated=False,
            device_kind="gpu",
            tick_unix_ms=tick_unix_ms,
            lo=ratio,
            hi=ratio,
            value=ratio,
            coverage=1.0,
            in_service_cards=1000,
            unseen_cards=0,
            in_service_nodes=125,
            lost_points={"low_occupancy": 100 * (1 - ratio)},
        )


class Story:
    """A watch whose days pass at once, on a store that is in memory until it is a real one."""

    def __init__(self, url: str, control: ControlStore) -> None:
        route = RouteConfig(name="pd", kind="pagerduty", url=url, secret_env="KEY")
        self.settings = WatchSettings(rules=RulesConfig(settle_s=0), paging=config(route))
        self.control, self.fleet, self.now_ms = control, Fleet(), START_MS
        self.sender = Sender(
            control, channels_of(self.settings.paging, SECRETS), clock=lambda: self.now_ms
        )

    def watch(self, on: object) -> Watch:
        return Watch(self.fleet, cast(Any, on), self.settings, lambda: self.now_ms, self.now_ms)

    def go(self, watching: Watch, until_unix_ms: int, step_ms: int = 10_000) -> None:
        while self.now_ms < until_unix_ms:
            self.now_ms += step_ms
            watching.tick(self.now_ms)

    def acknowledge(self) -> None:
        kim = Response(rule="mfu", cluster="atlas", kind=Kind.ACKNOWLEDGE, by="kim")
        assert respond(self.control, kim, self.now_ms).ack_by == "kim"

    def state(self) -> Any:
        (state,) = [s for s in self.control.incidents() if s.rule == "mfu"]
        return state


@pytest.fixture(scope="module")
def days() -> Shelf:
    """What three days at 41 % leave: a page, and a notice that it stands after the first of them."""
    kept = Shelf()
    story = Story("https://nowhere.example", cast(Any, kept))
    watching = story.watch(kept)
    with mock.patch.object(watch, "RULES", (rule_named("mfu"),)):
        story.go(watching, START_MS + 25 * HOUR_MS)
        # Where an outage stands nothing is held, and a minute is as good as its six ticks.
        story.go(watching, START_MS + 3 * DAY_MS, step_ms=MINUTE_MS)
    assert kept.told() == [("mfu", "trigger"), ("mfu", "notice")]
    return kept


@pytest.mark.parametrize("offset_ms", [0, 50_000])
async def test_three_days_low_and_then_a_collapse_is_one_page_and_one_more_within_three_minutes(
    control: ControlStore, days: Shelf, offset_ms: int
) -> None:
    with pagerduty() as service:
        story = Story(service.url, control)
        story.now_ms += 3 * DAY_MS
        days.into(control)
        await sent(story, service)
        story.acknowledge()
        assert story.state().state is State.STANDING
        assert list(service.opened.values()) == [1]
        story.fleet.fell_unix_ms = fell = story.now_ms + 60_000 + offset_ms
        watching = story.watch(control)
        story.go(watching, fell + 3 * MINUTE_MS)
        await sent(story, service)
        assert list(service.opened.values()) == [2]
        assert story.state().ack_by is None
        story.acknowledge()
        story.go(watching, fell + 10 * MINUTE_MS)
        await sent(story, service)
        pages = [row for row in control.outbox_all() if row.action != "acknowledge"]
        assert [row.action for row in pages] == ["trigger", "notice", "escalate"]
        assert json.loads(pages[-1].body)["hi"] == pytest.approx(0.03)  # and not half-way down
        assert list(service.opened.values()) == [2]
        assert len(service.open) == 1


@pytest.mark.parametrize("worse", [False, True])
async def test_what_a_person_resolved_there_opens_no_more_for_four_hours_unless_it_is_worse(
    control: ControlStore, worse: bool
) -> None:
    with pagerduty() as service, mock.patch.object(watch, "RULES", (rule_named("mfu"),)):
        story = Story(service.url, control)
        watching = story.watch(control)
        story.go(watching, story.now_ms + 16 * MINUTE_MS)
        await sent(story, service)
        service.open.clear()
        closed = Response(rule="mfu", cluster="atlas", kind=Kind.CLOSE, by="kim in PagerDuty")
        respond(control, closed, story.now_ms)
        until = story.now_ms + 4 * HOUR_MS
        story.go(watching, until - 6 * MINUTE_MS, step_ms=MINUTE_MS)
        await sent(story, service)
        assert (list(service.opened.values()), service.open) == ([1], {})
        if worse:
            story.fleet.fell_unix_ms = story.now_ms
        story.go(watching, until - MINUTE_MS)
        await sent(story, service)
        assert list(service.opened.values()) == [1 + worse]
        story.go(watching, until + MINUTE_MS)
        await sent(story, service)
        assert list(service.opened.values()) == [2]  # it holds still, and four hours are over


async def sent(story: Story, service: PagerDuty) -> None:
    """Send everything that waits."""
    while story.control.outbox_open():
        await story.sender.once()

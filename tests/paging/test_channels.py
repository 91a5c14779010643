"""What each kind of receiver holds after a story, on real sockets."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from fake_api import Answering, answering
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Act, State
from flopwatch_collector.paging import settings
from flopwatch_collector.paging.channel import Poster
from flopwatch_collector.paging.heartbeat import Heartbeat
from flopwatch_collector.paging.pace import Pace
from flopwatch_collector.paging.settings import HeartbeatConfig, PagingConfig, RouteConfig
from flopwatch_proto.errors import UsageError
from paging.conftest import Outage, config
from receivers import PagerDuty, Slack, pagerduty, slack, watcher

NOW_MS = 1_800_000_000_000


@pytest.fixture
def duty() -> Iterator[PagerDuty]:
    with pagerduty() as service:
        yield service


@pytest.fixture
def workspace() -> Iterator[Slack]:
    with slack() as service:
        yield service


def to_pagerduty(control: ControlStore, duty: PagerDuty) -> Outage:
    route = RouteConfig(name="duty", kind="pagerduty", url=duty.url, secret_env="KEY")
    return Outage(control, config(route), NOW_MS)


def to_slack(control: ControlStore, workspace: Slack) -> Outage:
    route = RouteConfig(
        name="room", kind="slack", url=workspace.url, secret_env="KEY", channel="#gpus"
    )
    return Outage(control, config(route), NOW_MS)


async def test_pagerduty_holds_one_alert_from_trigger_to_resolve(
    control: ControlStore, duty: PagerDuty
) -> None:
    outage = to_pagerduty(control, duty)
    outage.decide(Act.TRIGGER)
    await outage.send()
    ((key, alert),) = duty.open.items()
    assert key == "fw:lab:allocation:atlas:2027-01-15T07:37Z"
    payload = alert["payload"]
    assert payload["summary"].startswith("atlas alloc 91.2%")
    assert (payload["severity"], payload["source"], payload["class"]) == (
        "warning",
        "atlas",
        "hardware",
    )
    assert payload["custom_details"]["command"].startswith("flopwatch ")
    assert alert["links"][0]["href"].startswith("https://flopwatch.example/outages/allocation/")
    outage.decide(Act.RESOLVE, state=State.RESOLVED)
    await outage.send()
    assert duty.open == {}
    assert duty.opened == {key: 1}


async def test_an_escalation_pages_again_though_it_was_acknowledged(
    control: ControlStore, duty: PagerDuty
) -> None:
    outage = to_pagerduty(control, duty)
    outage.decide(Act.TRIGGER)
    await outage.send()
    outage.decide(Act.ESCALATE, 1, "value", hi=0.7, lo=0.7, value=0.7, severity="critical")
    await outage.send()
    ((key, alert),) = duty.open.items()
    assert duty.opened == {key: 2}
    assert alert["payload"]["severity"] == "critical"
    assert alert["payload"]["summary"].startswith("WORSE atlas alloc 70.0%")


async def test_a_notice_is_a_change_event_and_wakes_nobody(
    control: ControlStore, duty: PagerDuty
) -> None:
    outage = to_pagerduty(control, duty)
    outage.decide(Act.NOTICE, 1, "no_demand", leading_cause="no_demand")
    await outage.send()
    assert duty.opened == {}
    ((change),) = duty.changes
    assert change["payload"]["summary"].startswith("NO DEMAND atlas")
    assert change["payload"]["custom_details"]["owner"] == "demand"
    assert change["payload"]["custom_details"]["severity"] == "info"


async def test_whatever_pagerduty_answers_every_outage_opens_and_closes(
    control: ControlStore, duty: PagerDuty
) -> None:
    outage = to_pagerduty(control, duty)
    duty.stumble(random.Random(4), 30)
    outage.decide(Act.TRIGGER)
    outage.decide(Act.ESCALATE, 1, "value")
    outage.decide(Act.RESOLVE, state=State.RESOLVED)
    for _ in range(60):  # each failed try is followed by another within a minute
        await outage.send(2)
    assert control.outbox_open() == []
    assert duty.open == {}
    assert duty.opened


async def test_a_busy_receiver_is_left_alone_for_as_long_as_it_says(control: ControlStore) -> None:
    class Busy(Answering):
        def do_POST(self) -> None:
            self.posted_json()
            self.send_response(429)
            self.send_header("Retry-After", "120")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with answering(Busy) as url:
        route = RouteConfig(name="duty", kind="pagerduty", url=url, secret_env="KEY")
        outage = Outage(control, config(route), NOW_MS)
        outage.decide(Act.TRIGGER)
        await outage.send()
    ((row),) = control.outbox_open()
    assert (row.attempts, row.last_error) == (1, "HTTP 429")
    assert row.next_try_unix_ms == NOW_MS + 120_000


async def test_a_page_that_slack_may_take_later_is_tried_again(
    control: ControlStore, workspace: Slack
) -> None:
    outage = to_slack(control, workspace)
    workspace.error = "ratelimited"
    outage.decide(Act.TRIGGER)
    await outage.send(2)
    assert len(workspace.messages) == 1


async def test_slack_has_one_message_per_outage_and_a_thread_of_what_happened(
    control: ControlStore, workspace: Slack
) -> None:
    outage = to_slack(control, workspace)
    outage.decide(Act.TRIGGER)
    await outage.send()
    ((stamp, first),) = workspace.messages.items()
    assert first["channel"] == "#gpus"
    assert first["text"].startswith("atlas alloc 91.2% (&lt;96.0) 23m: nodes down -8.8pt")
    below = first["attachments"][0]["text"]
    assert "r17-&lt;n1&gt;" in below  # a name makes no link and calls nobody
    assert "`flopwatch cluster atlas --window 15m --end 2027-01-15T08:00:00Z`" in below
    outage.decide(Act.ESCALATE, 1, "value", hi=0.7, lo=0.7, value=0.7)
    outage.decide(Act.RESOLVE, state=State.RESOLVED)
    await outage.send(2)
    ((_, last),) = workspace.messages.items()
    assert last["text"].startswith("RESOLVED atlas")
    assert last["attachments"][0]["color"] != first["attachments"][0]["color"]
    escalated, resolved = workspace.threads[stamp]
    assert (escalated["reply_broadcast"], resolved["reply_broadcast"]) == (True, False)
    assert escalated["text"].startswith("WORSE atlas")


async def test_a_wrong_token_goes_to_the_fallback_at_once(
    control: ControlStore, workspace: Slack, duty: PagerDuty
) -> None:
    room = RouteConfig(
        name="room", kind="slack", url=workspace.url, secret_env="KEY", channel="#gpus"
    )
    desk = RouteConfig(
        name="desk", kind="pagerduty", url=duty.url, secret_env="KEY", clusters=("none",)
    )
    outage = Outage(control, config(room, desk, fallback="desk"), NOW_MS)
    workspace.error = "invalid_auth"
    outage.decide(Act.TRIGGER)
    await outage.send(2)
    assert list(duty.opened.values()) == [1]
    assert outage.sender.counters.refused == 1


async def test_pages_go_to_who_can_act(control: ControlStore, duty: PagerDuty) -> None:
    with pagerduty() as demand:
        sre = RouteConfig(
            name="sre",
            kind="pagerduty",
            url=duty.url,
            secret_env="KEY",
            owners=("hardware", "scheduling", "facility", "workload"),
        )
        product = RouteConfig(
            name="product", kind="pagerduty", url=demand.url, secret_env="KEY", owners=("demand",)
        )
        outage = Outage(control, config(sre, product), NOW_MS)
        outage.decide(Act.NOTICE, 1, "no_demand", leading_cause="no_demand")
        await outage.send(2)
        assert (duty.changes, duty.opened) == ([], {})
        assert len(demand.changes) == 1
        outage.decide(Act.ESCALATE, 1, "cause", leading_cause="FREE")
        await outage.send(2)
        assert list(duty.opened.values()) == [1]
        assert demand.opened == {}


def test_so_many_pages_a_minute_and_no_more() -> None:
    pace = Pace(6)
    assert [pace.take(NOW_MS) for _ in range(7)] == [True] * 6 + [False]
    assert not pace.take(NOW_MS + 9_000)
    assert pace.take(NOW_MS + 10_000)
    assert not pace.take(NOW_MS + 10_000)
    assert sum(pace.take(NOW_MS + 3_600_000) for _ in range(20)) == 6


async def test_the_heart_beats_while_rules_are_judged_and_stops_with_them() -> None:
    judged = NOW_MS
    with watcher() as (url, heard):
        plain = HeartbeatConfig(name="health", url=f"{url}/ping/1")
        manager = HeartbeatConfig(name="am", url=url, kind="alertmanager")
        now = NOW_MS + 60_000
        heart = Heartbeat((plain, manager), "lab", lambda: judged, lambda: now)
        poster = Poster(RouteConfig(name="heartbeat"))
        for one in (plain, manager):
            await heart.beat(one, poster)
        assert [path for path, _ in heard] == ["/ping/1", "/api/v2/alerts"]
        assert heard[1][1][0]["labels"]["alertname"] == "FlopwatchWatchdog"
        now += 1
        await heart.beat(plain, poster)
        assert len(heard) == 2
        assert (heart.counters.sent, heart.counters.withheld) == (2, 1)
        await poster.close()


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ({"kind": "smoke"}, "kind is 'smoke'; known are webhook, pagerduty, slack, alertmanager"),
        ({"url": ""}, "url must be given for a route of the kind webhook"),
        ({"kind": "slack"}, "channel must be given for Slack, and for nothing else"),
        ({"peers": ("http://b:9093",)}, "peers are of an Alertmanager"),
        ({"secret_env": None}, "set one of secret_file and secret_env"),
        ({"per_minute": 0}, "per_minute must be more than 0"),
    ],
)
def test_a_wrong_route_is_named_with_its_fix(route: dict[str, object], said: str) -> None:
    given = {"name": "ops", "url": "https://pages.example", "secret_env": "KEY", **route}
    paging = PagingConfig(route=(RouteConfig(**given),))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^paging\.route") as caught:
        settings.validate(paging)
    assert said in str(caught.value)


def test_pagerduty_needs_no_url_of_its_own() -> None:
    settings.validate(config(RouteConfig(name="duty", kind="pagerduty", secret_env="KEY")))


def test_a_page_says_who_can_act(control: ControlStore) -> None:
    route = RouteConfig(name="duty", kind="pagerduty", secret_env="KEY")
    outage = Outage(control, config(route), NOW_MS)
    outage.decide(Act.TRIGGER)
    (row,) = control.outbox_open()
    assert json.loads(row.body)["owner"] == "hardware"

"""Alertmanagers of which one does not hear everything: each holds one alert of an outage at most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest

from fake_api import Answering, answering
from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Act
from flopwatch_collector.paging.settings import RouteConfig
from paging.conftest import Outage, config

NOW_MS = 1_800_000_000_000


class Member:
    """What one keeps. Attributes: ends: by labels, Unix ms; status: what it answers."""

    def __init__(self, stack: ExitStack) -> None:
        self.ends: dict[str, int] = {}
        self.status = 200
        member = self

        class Handler(Answering):
            def do_POST(self) -> None:
                alerts = self.posted_json()
                if member.status == 200:
                    member.ends |= {json.dumps(a["labels"]): _ms(a["endsAt"]) for a in alerts}
                self.say(member.status, {})

        self.url = stack.enter_context(answering(Handler))

    def held(self, now_ms: int) -> list[str]:
        """Return the number of the escalation of each alert that it holds."""
        return [json.loads(n)["escalation"] for n, end in self.ends.items() if end > now_ms]


def _ms(moment: Any) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


@pytest.fixture
def members() -> Iterator[list[Member]]:
    with ExitStack() as stack:
        yield [Member(stack), Member(stack)]


@pytest.fixture
def outage(control: ControlStore, members: list[Member]) -> Outage:
    route = RouteConfig(name="am", kind="alertmanager", url=members[0].url, peers=(members[1].url,))
    told = Outage(control, config(route), NOW_MS)
    told.decide(Act.TRIGGER)
    return told


async def reminded(outage: Outage) -> None:
    aside = Aside("reminder")
    outage.now_ms += 60_000
    await outage.reminder.once(aside)
    await aside.end()


async def test_a_member_that_missed_an_escalation_is_told_what_it_replaced(
    outage: Outage, members: list[Member]
) -> None:
    await outage.send()
    members[1].status = 500
    outage.decide(Act.ESCALATE, 1, "value")
    await outage.send()
    assert [member.held(outage.now_ms) for member in members] == [["1"], ["0"]]
    members[1].status = 200
    await reminded(outage)
    assert [member.held(outage.now_ms) for member in members] == [["1"], ["1"]]
    outage.decide(Act.RESOLVE)
    await outage.send()
    assert [member.held(outage.now_ms) for member in members] == [[], []]


async def test_what_is_about_to_be_replaced_or_resolved_is_not_told_again(
    outage: Outage, members: list[Member]
) -> None:
    await outage.send()
    outage.decide(Act.ESCALATE, 1, "value")
    await reminded(outage)
    assert outage.reminder.counters.told == 0
    await outage.send()
    await reminded(outage)
    assert outage.reminder.counters.told == 1


async def test_a_page_is_refused_only_where_every_member_refuses_it(
    control: ControlStore, outage: Outage, members: list[Member]
) -> None:
    members[0].status, members[1].status = 400, 503
    await outage.send()
    (waiting,) = control.outbox_open()
    assert waiting.last_error == "HTTP 503"
    members[1].status = 400
    outage.now_ms += 61_000
    await outage.send()
    assert control.outbox_open() == []

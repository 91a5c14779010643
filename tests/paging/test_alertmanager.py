"""A real pair of Alertmanagers: told, reminded, escalated and resolved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from alertmanagers import Pair, alertmanagers, free_port
from flopwatch_collector.control import operations
from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.operations import Silence
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Act, State
from flopwatch_collector.paging.channels import channels_of
from flopwatch_collector.paging.settings import RouteConfig
from flopwatch_collector.paging.silences import Silences, as_regex
from flopwatch_collector.paging.turn import AlwaysTurn
from paging.conftest import SECRETS, Outage, config
from processes import awaited
from receivers import watcher


@pytest.fixture
def told() -> Iterator[tuple[str, list[Any]]]:
    with watcher() as heard:
        yield heard


@pytest.fixture
def pair(tmp_path: Path, told: tuple[str, list[Any]]) -> Iterator[Pair]:
    with alertmanagers(tmp_path, told[0]) as made:
        yield made


def heard(told: tuple[str, list[Any]], status: str) -> list[dict[str, Any]]:
    """The alerts with a status that the receiver was told of, by any member."""
    return [a for _, post in told[1] for a in post["alerts"] if a["status"] == status]


async def test_a_pair_holds_an_outage_once_pages_what_is_worse_and_lets_go_of_it(
    control: ControlStore, pair: Pair, told: tuple[str, list[Any]]
) -> None:
    route = RouteConfig(name="am", kind="alertmanager", url=pair.urls[0], peers=(pair.urls[1],))
    outage = Outage(control, config(route), time.time_ns() // 1_000_000)
    outage.decide(Act.TRIGGER)
    await outage.send()
    for member in (0, 1):
        ((alert),) = pair.active(member)
        assert alert["labels"]["alertname"] == "FlopwatchAllocation"
        assert (alert["labels"]["owner"], alert["labels"]["severity"]) == ("hardware", "warning")
        assert alert["annotations"]["summary"].startswith("atlas alloc 91.2%")
    awaited(lambda: heard(told, "firing"), "the first page")

    outage.decide(Act.ESCALATE, 1, "value", severity="critical", hi=0.7, lo=0.7, value=0.7)
    await outage.send()
    awaited(
        lambda: [a for a in heard(told, "firing") if a["labels"]["severity"] == "critical"],
        "the escalation",
    )
    ((alert),) = pair.active()  # the one before it has ended
    assert alert["labels"]["escalation"] == "1"

    # A member that was away hears of it with the next reminder; one that is away stops nobody.
    pair.members[0].terminate()
    pair.members[0].wait()
    aside = Aside("reminder")
    before = outage.now_ms
    outage.now_ms += 60_000
    await outage.reminder.once(aside)
    await aside.end()
    assert outage.reminder.counters.told == 1
    ends = awaited(lambda: pair.active(1), "the alert on the other")[0]["endsAt"]
    assert ends > alert["endsAt"]

    outage.now_ms = before
    outage.decide(Act.RESOLVE, state=State.RESOLVED)
    await outage.send()
    assert control.outbox_open() == []
    awaited(lambda: not pair.active(1), "its end")
    awaited(
        lambda: [a for a in heard(told, "resolved") if a["labels"]["escalation"] == "1"],
        "the resolved page",
    )


async def test_where_no_member_answers_the_page_waits(control: ControlStore) -> None:
    route = RouteConfig(name="am", kind="alertmanager", url=f"http://127.0.0.1:{free_port()}")
    outage = Outage(control, config(route), time.time_ns() // 1_000_000)
    outage.decide(Act.TRIGGER)
    await outage.send()
    ((row),) = control.outbox_open()
    assert row.attempts == 1
    assert row.last_error == "ConnectError"


async def test_silences_are_one_truth_whoever_makes_them(control: ControlStore, pair: Pair) -> None:
    route = RouteConfig(name="am", kind="alertmanager", url=pair.urls[0], peers=(pair.urls[1],))
    outage = Outage(control, config(route), time.time_ns() // 1_000_000)
    outage.decide(Act.TRIGGER)
    await outage.send()
    channels = channels_of(outage.paging, SECRETS)
    mirror = Silences(control, channels, "lab", AlwaysTurn(), lambda: outage.now_ms)
    aside = Aside("silences")
    try:
        there = made_there(pair, "kim", "moving racks")
        awaited(lambda: pair.active()[0]["status"]["silencedBy"], "the silence at the alert")
        await mirror.once(aside)
        await mirror.once(aside)  # what is known is not taken twice
        (here,) = operations.silences(control, outage.now_ms)
        assert here.matchers == {"cluster": "atlas", "rule": "allocation"}
        assert (here.by, here.why) == ("kim", "moving racks")
        outage.decide(Act.ESCALATE, 1, "value", hi=0.7, lo=0.7, value=0.7)
        await outage.send()
        assert control.outbox_open()[0].held_reason == f"silence {here.id}: moving racks"

        ended = httpx.delete(f"{pair.urls[0]}/api/v2/silence/{there}", trust_env=False)
        assert ended.status_code == 200
        outage.now_ms += 1_000
        await mirror.once(aside)
        assert operations.silences(control, outage.now_ms) == []

        made = Silence(
            matchers={"cluster": "at*", "rule": "*"},
            starts_unix_ms=outage.now_ms,
            ends_unix_ms=outage.now_ms + 3_600_000,
            by="lee",
            why="switch",
        )
        number = operations.add_silence(control, made)
        await mirror.once(aside)
        awaited(lambda: pair.active()[0]["status"]["silencedBy"], "our silence there")
        await mirror.once(aside)  # our own is not taken for somebody else's
        assert [s.id for s in operations.silences(control, outage.now_ms)] == [number]
        operations.end_window(control, "silence", number, outage.now_ms)
        await mirror.once(aside)
        awaited(lambda: not pair.active()[0]["status"]["silencedBy"], "its end there")
        counters = mirror.counters
        assert (counters.taken, counters.ended, counters.failed) == (1, 1, 0)
        assert (counters.told, counters.withdrawn) == (1, 1)
    finally:
        await aside.end()
        for channel in channels.values():
            await channel.close()


def made_there(pair: Pair, by: str, why: str) -> str:
    """Silence the alerts of a cluster at Alertmanager itself; return the silence's id."""
    now = datetime.now(UTC)
    silence = {
        "matchers": [{"name": "cluster", "value": "atl.*", "isRegex": True}],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(hours=2)).isoformat(),
        "createdBy": by,
        "comment": why,
    }
    answer = httpx.post(f"{pair.urls[0]}/api/v2/silences", json=silence, trust_env=False)
    answer.raise_for_status()
    there: str = answer.json()["silenceID"]
    return there


@pytest.mark.parametrize(
    ("pattern", "expression"),
    [("atlas", "atlas"), ("at*", "at.*"), ("r1[0-9]?", "r1[0-9]."), ("[!ab].x", r"[^ab]\.x")],
)
def test_a_shell_pattern_reads_the_same_there(pattern: str, expression: str) -> None:
    assert as_regex(pattern) == expression

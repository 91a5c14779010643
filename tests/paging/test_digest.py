"""The daily digest, and the page that is only a test."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from msgspec import structs

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.store import DAY_MS, ControlStore
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.paging.digest import Digest, due
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig, validate
from flopwatch_collector.paging.trial import try_routes
from flopwatch_collector.paging.turn import AlwaysTurn
from flopwatch_proto.errors import UsageError
from paging.conftest import SECRETS, config
from receivers import pagerduty

NOW_MS = 1_800_000_000_000  # 2027-01-15T08:00Z
STANDING = IncidentState(
    rule="mfu",
    cluster="atlas",
    state=State.STANDING,
    began_unix_ms=NOW_MS - 3 * DAY_MS,
    value=0.412,
    line=0.6,
)
ROUTE = RouteConfig(name="room", secret_env="KEY", url="https://example.invalid")


async def test_standing_outages_are_one_line_each_once_a_day(control: ControlStore) -> None:
    control.save(
        states=[STANDING, replace(STANDING, cluster="borealis", rule="allocation", value=0.931)]
    )
    now = [NOW_MS + 5_000]
    woken: list[int] = []
    paging = config(structs.replace(ROUTE, digest=True), structs.replace(ROUTE, name="duty"))
    aside = Aside("digest")
    digest = Digest(control, paging, AlwaysTurn(), lambda: now[0], lambda: woken.append(now[0]))
    for _ in range(3):
        await digest.once(aside)
        now[0] += 60_000
    # A collector that starts again the same day says it no second time.
    again = Digest(control, paging, AlwaysTurn(), lambda: now[0], lambda: None)
    await again.once(aside)
    (row,) = control.outbox_all()
    assert (row.route, row.action, len(woken)) == ("room", "notice", 1)
    body = json.loads(row.body)
    assert body["lines"] == ["atlas mfu 41.2% for 3d", "borealis allocation 93.1% for 3d"]
    assert body["summary"].startswith("2 standing outages: atlas mfu 41.2% for 3d; borealis")
    now[0] = NOW_MS + DAY_MS
    await digest.once(aside)
    assert len(control.outbox_all()) == 2
    await aside.end()


async def test_a_day_without_a_standing_outage_says_nothing(control: ControlStore) -> None:
    control.save(states=[replace(STANDING, state=State.FIRING)])
    aside = Aside("digest")
    digest = Digest(
        control,
        config(structs.replace(ROUTE, digest=True)),
        AlwaysTurn(),
        lambda: NOW_MS,
        lambda: None,
    )
    await digest.once(aside)
    await aside.end()
    assert control.outbox_all() == []


def test_the_digest_is_due_at_its_time_of_day() -> None:
    assert due("08:00", NOW_MS) == NOW_MS
    assert due("08:00", NOW_MS - 1) == NOW_MS - DAY_MS
    assert due("23:59", NOW_MS) == NOW_MS - DAY_MS + (15 * 60 + 59) * 60_000
    with pytest.raises(UsageError, match=r"paging\.digest_at is '8'"):
        validate(PagingConfig(digest_at="8"))


async def test_a_test_page_opens_and_closes_and_says_which_route_fails() -> None:
    with pagerduty() as duty:
        routes = (
            RouteConfig(name="duty", kind="pagerduty", url=duty.url, secret_env="KEY"),
            RouteConfig(name="away", url="http://127.0.0.1:9", secret_env="KEY"),
        )
        results = await try_routes(config(*routes), SECRETS, None, lambda: NOW_MS)
        assert [(r.route, bool(r.error)) for r in results] == [("duty", False), ("away", True)]
        assert duty.open == {}
        assert list(duty.opened.values()) == [1]
        assert "canary" not in results[1].error
        with pytest.raises(UsageError, match="no route desk; known are duty, away"):
            await try_routes(config(*routes), SECRETS, "desk", lambda: NOW_MS)

"""What the body of a page tells, where it is found, and what becomes of hostile names in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from flopwatch_collector.control.observations import Judged
from flopwatch_collector.control.past import Past
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Act, Action, IncidentState, State
from flopwatch_collector.news import NO_DEMAND
from flopwatch_collector.paging import alertmanager, page, slack
from flopwatch_collector.paging.background import Background, Backgrounds, Change
from flopwatch_collector.paging.changes import NODES_MAX, Changes
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.rules import Cause, Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.tally import Job, Tally, layout_of, rack_of
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import RetryableError

NOW_MS = 1_800_000_000_000
MINUTE = 60_000
BEGAN_MS = NOW_MS - 23 * MINUTE
TRIGGER = Action(act=Act.TRIGGER, episode="2027-01-15T07:37Z")
RESOLVE = Action(act=Act.RESOLVE, episode="2027-01-15T07:37Z")
LINK = "https://flopwatch.example"
PAGING = PagingConfig(deployment="lab", base_url=LINK)
ALLOCATION = rule_named("allocation").defaults
NASTY = "x<!channel>`\x1b[2J\u202e\n" + "y" * 300


def observed(tick_ms: int, value: float, **more: object) -> Observation:
    known = {
        "cluster": "atlas", "rule": "allocation", "simulated": False, "device_kind": "gpu",
        "tick_unix_ms": tick_ms, "lo": value, "hi": value, "value": value, "coverage": 1.0,
        "in_service_cards": 2_000.0, "unseen_cards": 0.0,
    }  # fmt: skip
    return Observation(**{**known, **more})  # type: ignore[arg-type]


NOW = observed(NOW_MS, 0.912, lost_points={"MISSING": 5.2, "FREE": 2.6, "MAINT": 1.0})
BEFORE = observed(BEGAN_MS - MINUTE, 0.974, lost_points={"MISSING": 1.6, "MAINT": 1.0})
STATE = IncidentState(
    rule="allocation",
    cluster="atlas",
    state=State.FIRING,
    episode=TRIGGER.episode,
    began_unix_ms=BEGAN_MS,
    lo=0.912,
    hi=0.912,
    value=0.912,
    line=0.96,
    lost_points=dict(NOW.lost_points),
    causes=(Cause(kind="node", name="r17-n01", cards=8, points=0.4),),
    leading_cause="MISSING",
    paged_value=0.912,
    paged_causes=("MISSING",),
)


def tally(unix_ms: int, missing: int, name: str = "r17-n") -> Tally:
    """A rack of 18 nodes among others, the first ones of which are missing."""
    nodes = [f"{name}{n:02d}" for n in range(18)] + [f"r18-n{n:02d}" for n in range(18)]
    slots = [(node, f"s{card}") for node in nodes for card in range(4)]
    return Tally(
        unix_ms=unix_ms,
        layout=layout_of(slots),
        lost={"MISSING": dict.fromkeys(nodes[:missing], 4.0), "MAINT": {"r18-n17": 4.0}},
        jobs={},
        held={"llama": 512.0} if not missing else {},
    )


def background(**more: object) -> Background:
    known = {
        "settings": ALLOCATION,
        "now": NOW,
        "before": BEFORE,
        "tally": tally(NOW_MS, 18),
        "earlier": tally(BEGAN_MS, 0),
        "changes": (Change(unix_ms=BEGAN_MS - 1000, what="Xid 79", count=12, nodes=("r17-n01",)),),
    }
    return Background(**{**known, **more})  # type: ignore[arg-type]


def built(state: IncidentState = STATE, action: Action = TRIGGER, **more: object) -> page.Page:
    return page.build(state, action, NOW_MS, PAGING, background=background(**more))


def test_a_page_tells_everything_that_an_on_call_asks() -> None:
    told = built(usd_per_card_hour=2.5)
    assert told.summary == (
        "atlas alloc 91.2% (<96.0) 23m: rack r17 dark, 72 cards -3.6pt; was 97.4 07:36"
    )
    assert told.body["text"].split("\n") == [
        "atlas allocation: 91.2% (<96.0), since 2027-01-15T07:37:00Z; "
        "it was 97.4% at 2027-01-15T07:36:00Z.",
        "Cause: rack r17 dark (72 cards, 3.6 points). For: hardware.",
        "First: Look at the rack's power and its top-of-rack switch; if several of its nodes answer on "
        "their management port, it is the network.",
        "Paste: flopwatch cluster atlas --window 15m --end 2027-01-15T08:00:00Z",
        "Lost: missing 5.2 points, 104 cards, $260/h; free 2.6 points, 52 cards, $130/h; "
        "maint 1.0 points, 20 cards, $50/h",
        "Nodes, cards lost: "
        + ", ".join(f"r17-n{n:02d} 4 missing" for n in range(10))
        + " and 9 more",
        "Jobs that ended, cards they had: llama 512",
        "Just before:",
        "- 2027-01-15T07:36:59Z Xid 79 ×12 on r17-n01",
        f"outage: {LINK}/outages/allocation/atlas/2027-01-15T07%3A37Z",
        f"dashboard: {LINK}/?cluster=atlas&window=15m",
        f"api: {LINK}/api/v1/clusters/atlas?window=15m&end=2027-01-15T08%3A00%3A00Z",
    ]


def test_the_page_in_the_documents_is_one_that_was_made() -> None:
    told = built(usd_per_card_hour=2.5)
    shown = Path(__file__, "../../../docs/pages.md").resolve().read_text(encoding="utf-8")
    assert f"\n    {told.summary}\n" in shown
    assert f"```\n{told.body['text']}\n```" in shown


def test_money_is_told_only_where_a_price_is_set() -> None:
    without = built().body
    assert [loss["usd_per_hour"] for loss in without["largest_losses"]] == [None, None, None]
    assert "Money: no price is set" in without["text"]
    assert [loss["cards"] for loss in without["largest_losses"]] == pytest.approx([104, 52, 20])
    free = built(usd_per_card_hour=0.0).body
    assert "no price" not in free["text"]


def test_the_end_of_an_outage_tells_no_losses() -> None:
    told = built(replace(STATE, state=State.RESOLVED, value=0.981, hi=0.981), RESOLVE)
    assert told.summary == ("RESOLVED atlas alloc 98.1% (≥96.0) 23m: was nodes down, paged at 91.2")
    assert [line.split(":")[0] for line in told.body["text"].split("\n")] == [
        *("atlas allocation", "Paste", "outage", "dashboard", "api"),
    ]


def test_what_is_not_known_is_left_out_and_not_made_up() -> None:
    body = page.build(STATE, TRIGGER, NOW_MS, PAGING).body
    assert (body["before"], body["changes"], body["behind"]) == (None, None, {})
    assert "Just before" not in body["text"]
    assert "it was" not in body["text"]
    assert "Just before: nothing was told." in built(changes=()).body["text"]


def test_what_grew_is_the_cause_and_not_what_has_been_broken_for_long() -> None:
    old = observed(BEGAN_MS - MINUTE, 0.974, lost_points={"MISSING": 5.2})
    body = built(before=old, tally=None, earlier=None).body
    assert body["cause"]["kind"] == "free"
    assert body["owner"] == "scheduling"


def test_hostile_names_drive_no_terminal_mention_nobody_and_stay_short() -> None:
    state = replace(STATE, causes=(Cause(kind="job", name=NASTY, cards=8, points=0.4),))
    nodes = tally(NOW_MS, 9, NASTY)
    jobs = {NASTY: Job(team=NASTY, cards=64.0, steps={"sm_idle": 60.0})}
    change = Change(unix_ms=BEGAN_MS, what=NASTY, nodes=(NASTY,))
    body = built(state, tally=replace(nodes, jobs=jobs), earlier=None, changes=(change,)).body
    said = slack.message(body)
    attachment = said["attachments"][0]
    for told in (said["text"], attachment["text"], attachment["fallback"]):
        assert "<" not in told
        assert all(line.isprintable() for line in told.split("\n"))
    alert = alertmanager.alert(body, NOW_MS)
    assert all(line.isprintable() for t in alert["annotations"].values() for line in t.split("\n"))
    assert len(json.dumps(body)) < 64_000
    assert "y" * 65 not in json.dumps(body["behind"])


def test_whoever_was_woken_hears_the_end_though_another_could_act_by_now() -> None:
    routes = (
        RouteConfig(name="hardware", url="https://a", secret_env="S", owners=("hardware",)),
        RouteConfig(name="demand", url="https://a", secret_env="S", owners=("demand",)),
    )
    config = replace_routes(routes)
    over = replace(STATE, state=State.RESOLVED, leading_cause=NO_DEMAND)
    deaf = page.rows(over, [RESOLVE], NOW_MS, config)
    assert [row.route for row in deaf] == ["demand"]
    told = Background(told=frozenset({"hardware"}))
    heard = page.rows(over, [RESOLVE], NOW_MS, config, background=told)
    assert [row.route for row in heard] == ["hardware", "demand"]


def replace_routes(routes: tuple[RouteConfig, ...]) -> PagingConfig:
    return PagingConfig(deployment="lab", route=routes)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    yield opened
    opened.close()


def test_the_past_is_the_best_figure_of_before_and_the_routes_that_were_told(
    control: ControlStore,
) -> None:
    seen = [
        observed(BEGAN_MS + at * MINUTE, value) for at, value in ((-3, 0.97), (-2, 0.98), (0, 0.9))
    ]
    judged = [Judged(observation=o, condition="ok") for o in seen]
    route = RouteConfig(name="ops", url="https://a", secret_env="S")
    control.save(
        states=[STATE],
        pages=page.rows(STATE, [TRIGGER], NOW_MS, replace_routes((route,))),
        observations=judged,
    )

    def broken(cluster: str, since_ms: int, until_ms: int) -> list[Change]:
        raise RetryableError("the store is busy")

    found = Backgrounds(kept=Past(control), changes=broken, prices={"atlas": 2.0}).of(
        STATE, [TRIGGER], NOW, ALLOCATION, NOW_MS
    )
    assert found.before == seen[1]
    assert found.told == {"ops"}
    assert found.changes is None  # and the page goes out all the same
    assert found.usd_per_card_hour == 2.0
    # What is worse than the last page said is compared with just before it, not with last week.
    worse = Action(act=Act.ESCALATE, episode=TRIGGER.episode, repeat_no=1, reason="value")
    late = BEGAN_MS + 14 * MINUTE
    again = Backgrounds(kept=Past(control), prices={}).of(STATE, [worse], NOW, ALLOCATION, late)
    assert again.before == seen[2]


def test_events_of_one_kind_are_one_change_and_many_agents_that_came_back_too(
    store: TelemetryStore,
) -> None:
    kinds = [("xid", 79)] * 6 + [("goodbye", 30_000), ("goodbye", 60_000), ("xid", 48)]
    count = len(kinds)
    store.append(
        "event",
        {
            "cluster": ["atlas"] * count,
            "node": [f"n{n}" for n in range(count)],
            "time_unix_ms": [NOW_MS - 1_000 * (count - n) for n in range(count)],
            "kind": [kind for kind, _ in kinds],
            "code": [code for _, code in kinds],
            "stored_unix_ms": [NOW_MS] * count,
        },
    )
    agents = [
        {"cluster": "atlas", "node": f"n{n}", "version": "1.2", "hello_unix_ms": NOW_MS - MINUTE}
        for n in range(5)
    ]
    told = Changes(store.bounded({}, 1), lambda now_unix_ms: agents)(
        "atlas", NOW_MS - MINUTE, NOW_MS
    )
    assert [(change.what, change.count) for change in told] == [
        ("Xid 48", 1),
        ("agents took leave", 2),
        ("Xid 79", 6),
        ("agents connected anew, version 1.2", 5),
    ]
    assert told[2].nodes == ("n0", "n1", "n2", "n3", "n4", "n5")[:NODES_MAX]


def test_a_store_in_trouble_is_not_asked_again_for_a_minute() -> None:
    class Busy:
        asked = 0

        def query(self, *asked: object, **more: object) -> pa.Table:
            self.asked += 1
            raise RetryableError("the store is busy")

    busy = Busy()
    changes = Changes(busy, lambda now_unix_ms: [])
    for at_ms in (NOW_MS, NOW_MS + 1_000, NOW_MS + MINUTE):
        with pytest.raises(RetryableError):
            changes("atlas", NOW_MS - MINUTE, at_ms)
    assert busy.asked == 2


@pytest.mark.parametrize(
    ("node", "rack"),
    [
        ("r17-n03", "r17"),
        ("r17n03.example.org", "r17"),
        ("dc1-r17-node-03", "dc1-r17"),
        ("atlas-0012", None),
        ("gpu", None),
    ],
)
def test_a_rack_is_what_stands_before_the_last_number(node: str, rack: str | None) -> None:
    assert rack_of(node) == rack


def test_one_rack_of_all_nodes_is_no_rack() -> None:
    assert layout_of([(f"h100-{n:03d}", "s0") for n in range(9)]).racks == {}

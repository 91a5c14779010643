"""What pages say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwatch_collector.incident_state import Act, Action, IncidentState, State
from flopwatch_collector.paging import page, settings, text
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.paging.summary import CHARACTERS_MAX
from flopwatch_collector.rules import Cause
from flopwatch_proto.errors import UsageError

NOW_MS = 1_800_000_000_000
TRIGGER = Action(act=Act.TRIGGER, episode="2027-01-15T07:37Z")
STATE = IncidentState(
    rule="allocation",
    cluster="atlas",
    state=State.FIRING,
    episode="2027-01-15T07:37Z",
    began_unix_ms=NOW_MS - 23 * 60_000,
    lo=0.912,
    hi=0.912,
    value=0.912,
    coverage=1.0,
    line=0.96,
    lost_points={"FREE": 3.1, "MISSING": 4.2, "HELD": 0.0, "FAILED": 0.9, "MAINT": 0.6},
    causes=(Cause(kind="node", name="atlas-0012", cards=8, points=1.6),),
    paged_value=0.912,
)
PAGING = PagingConfig(
    deployment="lab",
    base_url="https://flopwatch.example/",
    route=(RouteConfig(name="ops", url="https://pages.example/hook", secret_env="S"),),
)


def test_the_summary_says_where_what_how_long_and_why() -> None:
    built = page.build(STATE, TRIGGER, NOW_MS, PAGING)
    assert built.summary == ("atlas alloc 91.2% (<96.0) 23m: nodes down -4.2pt")


def test_the_body_carries_everything_that_needs_no_login() -> None:
    body = page.build(STATE, TRIGGER, NOW_MS, PAGING).body
    assert json.loads(json.dumps(body)) == body
    assert body["dedup_key"] == "fw:lab:allocation:atlas:2027-01-15T07:37Z"
    assert (body["since"], body["at"]) == ("2027-01-15T07:37:00Z", "2027-01-15T08:00:00Z")
    assert (body["value"], body["lo"], body["hi"], body["threshold"]) == (0.912, 0.912, 0.912, 0.96)
    assert body["lost_points"] == dict(STATE.lost_points)
    assert [loss["step"] for loss in body["largest_losses"]] == ["MISSING", "FREE", "FAILED"]
    assert body["causes"] == [{"kind": "node", "name": "atlas-0012", "cards": 8, "points": 1.6}]
    assert body["command"] == ("flopwatch cluster atlas --window 15m --end 2027-01-15T08:00:00Z")
    assert body["links"]["api"].endswith("/clusters/atlas?window=15m&end=2027-01-15T08%3A00%3A00Z")
    assert (body["action"], body["state"], body["simulated"]) == ("trigger", "firing", False)


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        (0.9596, "95.96"),
        (0.95999, "95.999"),
        (0.9599999999, "95.999999"),
        (0.9594, "95.9"),
        (0.96, "96.0"),
        (0.9604, "96.0"),
        (0.912, "91.2"),
    ],
)
def test_a_figure_never_rounds_onto_its_line(ratio: float, shown: str) -> None:
    assert text.percent(ratio, 0.96) == shown


@given(ratio=st.floats(0, 1), line=st.floats(0.01, 1))
def test_a_figure_below_its_line_reads_below_it(ratio: float, line: float) -> None:
    shown = float(text.percent(ratio, line))
    if ratio < line:
        assert shown < line * 100 or shown == pytest.approx(line * 100, abs=1e-12)
    assert abs(shown - ratio * 100) <= 0.05 + 1e-9


@given(
    cluster=st.text(min_size=1, max_size=200),
    names=st.lists(st.text(min_size=1, max_size=60), max_size=4),
    ratio=st.floats(0, 0.9599),
    simulated=st.booleans(),
)
def test_a_summary_is_one_line_of_at_most_ninety_characters(
    cluster: str, names: list[str], ratio: float, simulated: bool
) -> None:
    state = replace(
        STATE,
        cluster=cluster,
        value=ratio,
        simulated=simulated,
        lost_points=dict.fromkeys(names, 1.5),
        causes=tuple(Cause(kind="job", name=name, cards=1, points=1) for name in names),
    )
    for act in Act:
        action = Action(act=act, episode="e", reason="flapping" if act is Act.NOTICE else "")
        summary = page.build(state, action, NOW_MS, PAGING).summary
        assert len(summary) <= CHARACTERS_MAX
        assert summary.isprintable()
        assert text.percent(ratio, 0.96) in summary


def test_bounds_without_a_value_are_shown_as_bounds() -> None:
    state = replace(STATE, rule="mfu", value=None, lo=0.36, hi=0.43, line=0.60)
    summary = page.build(state, TRIGGER, NOW_MS, PAGING).summary
    assert summary.startswith("atlas MFU 36.0-43.0% (<60.0) 23m")


def test_a_resolve_says_so_and_names_the_figure_above_the_line() -> None:
    state = replace(STATE, value=0.981, hi=0.981, lo=0.981, state=State.RESOLVED)
    built = page.build(state, Action(act=Act.RESOLVE, episode=STATE.episode), NOW_MS, PAGING)
    assert built.summary == "RESOLVED atlas alloc 98.1% (≥96.0) 23m: paged at 91.2"
    assert built.body["state"] == "resolved"


def test_escalations_notices_and_simulations_are_marked() -> None:
    worse = page.build(STATE, Action(act=Act.ESCALATE, episode="e", reason="value"), NOW_MS, PAGING)
    assert worse.summary.startswith("WORSE atlas")
    notice = Action(act=Act.NOTICE, episode="e", reason="standing")
    standing = page.build(replace(STATE, simulated=True), notice, NOW_MS, PAGING)
    assert standing.summary.startswith("[sim] STANDING atlas")
    assert standing.body["simulated"] is True


def test_one_page_names_the_other_outages_of_its_cluster() -> None:
    other = replace(STATE, rule="data_missing", state=State.PENDING)
    quiet = replace(STATE, rule="mfu", state=State.INACTIVE)
    body = page.build(STATE, TRIGGER, NOW_MS, PAGING, [other, quiet]).body
    assert [found["rule"] for found in body["also"]] == ["data_missing"]


def test_hostile_names_are_quoted_in_the_command_and_the_links() -> None:
    state = replace(STATE, cluster="a; rm -rf /\n")
    body = page.build(state, TRIGGER, NOW_MS, PAGING).body
    assert body["command"].startswith("flopwatch fleet ")  # what cannot be typed is left out
    assert body["links"]["dashboard"].endswith("/?cluster=a%3B+rm+-rf+%2F%0A&window=15m")
    state = replace(STATE, cluster="a; rm -rf /")
    assert " cluster 'a; rm -rf /' " in page.build(state, TRIGGER, NOW_MS, PAGING).body["command"]


def test_a_long_dedup_key_is_hashed() -> None:
    short = page.dedup_key("lab", "mfu", "c", "2027-01-15T07:37Z")
    long = page.dedup_key("lab", "mfu", "c" * 300, "2027-01-15T07:37Z")
    assert short == "fw:lab:mfu:c:2027-01-15T07:37Z"
    assert len(long) == 3 + 64
    assert long != page.dedup_key("lab", "mfu", "c" * 301, "2027-01-15T07:37Z")


def test_a_page_goes_to_the_routes_that_take_it() -> None:
    routes = (
        RouteConfig(name="all", url="https://a", secret_env="S"),
        RouteConfig(name="atlas", url="https://a", secret_env="S", clusters=("atl*",)),
        RouteConfig(name="mfu", url="https://a", secret_env="S", rules=("mfu",)),
        RouteConfig(name="real", url="https://a", secret_env="S", send_simulated=False),
    )
    config = PagingConfig(route=routes)
    rows = page.rows(STATE, [TRIGGER], NOW_MS, config)
    assert [row.route for row in rows] == ["all", "atlas", "real"]
    assert len({row.id for row in rows}) == 3
    simulated = page.rows(replace(STATE, simulated=True), [TRIGGER], NOW_MS, config)
    assert [row.route for row in simulated] == ["all", "atlas"]
    # The id says what the page is, so another collector gives it the same.
    assert page.rows(STATE, [TRIGGER], NOW_MS + 60_000, config)[0].id == rows[0].id


def test_a_route_may_be_of_a_team() -> None:
    config = PagingConfig(
        route=(
            RouteConfig(name="all", url="https://a", secret_env="S"),
            RouteConfig(name="vision", url="https://a", secret_env="S", teams=("vis*",)),
        )
    )
    causes = (
        Cause(kind="job", name="run-7", cards=80, points=8),
        Cause(kind="team", name="vision", cards=80, points=8),
        Cause(kind="team", name="speech", cards=8, points=1),
    )
    stalled = replace(STATE, causes=causes)
    assert [row.route for row in page.rows(stalled, [TRIGGER], NOW_MS, config)] == ["all", "vision"]
    of_speech = replace(STATE, causes=(causes[0], *reversed(causes[1:])))
    assert [row.route for row in page.rows(of_speech, [TRIGGER], NOW_MS, config)] == ["all"]
    assert [row.route for row in page.rows(STATE, [TRIGGER], NOW_MS, config)] == ["all"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PagingConfig(deployment="a:b"), "paging.deployment"),
        (PagingConfig(fallback="desk"), "paging.fallback"),
        (PagingConfig(route=(RouteConfig(name="", url="x", secret_env="S"),)), "name"),
        (PagingConfig(route=PAGING.route * 2), "unlike every other"),
        (PagingConfig(route=(RouteConfig(name="a", url="x"),)), "secret_file and secret_env"),
        (
            PagingConfig(route=(RouteConfig(name="a", url="x", secret_env="S", kind="fax"),)),
            "known are webhook",
        ),
        (
            PagingConfig(route=(RouteConfig(name="a", url="x", secret_env="S", timeout_s=0),)),
            "timeout_s",
        ),
    ],
)
def test_wrong_routes_are_refused_by_key(config: PagingConfig, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings.validate(config)


def test_durations_are_told_in_their_two_largest_units() -> None:
    told = [text.lasted(ms) for ms in (45_000, 23 * 60_000, 11_100_000, 187_200_000, -5)]
    assert told == ["45s", "23m", "3h05m", "2d04h", "0s"]

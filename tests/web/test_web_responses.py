"""What people do about an outage, over the real API and as the command types it; and PagerDuty's webhooks."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flopwatch.cli.app import run
from flopwatch_collector.control import operations, response
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Act, Action, IncidentState, State
from flopwatch_collector.paging import page
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from web.web_server import running, said

NOW_MS = time.time_ns() // 1_000_000
SECRET = b"canary-signing-secret"
PAGING = PagingConfig(
    deployment="lab", route=(RouteConfig(name="duty"), RouteConfig(name="room", owners=("nobody",)))
)
FIRING = IncidentState(
    rule="allocation",
    cluster="atlas",
    state=State.FIRING,
    episode="2027-01-15T07:37Z",
    began_unix_ms=NOW_MS - 600_000,
    fired_unix_ms=NOW_MS - 300_000,
    last_eval_unix_ms=NOW_MS,
    hi=0.912,
    lo=0.912,
    value=0.912,
    line=0.96,
    paged_value=0.912,
)
KEY = page.dedup_key("lab", FIRING.rule, FIRING.cluster, FIRING.episode)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("responses")
    ControlStore.open(f"sqlite:///{directory}/control.db").close()
    secret = directory / "secret"
    secret.write_bytes(SECRET + b"\n")
    with running(directory, "--pagerduty-secret-file", str(secret)) as process:
        STORE[0] = directory
        yield said(process)


STORE: list[Path] = [Path()]


@pytest.fixture
def control(url: str) -> Iterator[ControlStore]:
    """The control store of the process, with one outage that was paged to one route."""
    store = ControlStore.open(f"sqlite:///{STORE[0]}/control.db", migrate=False)
    for left in store.incidents():
        store.save(
            states=[IncidentState(rule=left.rule, cluster=left.cluster, version=left.version)]
        )
    version = next((s.version for s in store.incidents()), 0)
    states = [page_state(version)]
    trigger = Action(act=Act.TRIGGER, episode=FIRING.episode)
    store.save(states=states, pages=page.rows(FIRING, [trigger], NOW_MS, PAGING))
    yield store
    store.close()


def page_state(version: int) -> IncidentState:
    return IncidentState(
        **{name: getattr(FIRING, name) for name in FIRING.__slots__ if name != "version"},
        version=version,
    )


def only(control: ControlStore) -> IncidentState:
    (state,) = control.incidents()
    return state


def typed(url: str, *arguments: str) -> int:
    return run([*arguments, "--api", url])


def test_an_acknowledgement_is_shown_and_told_to_who_was_paged(
    url: str, control: ControlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(url, "acknowledge", "atlas", "--by", "kim") == 0
    assert "acknowledged by kim" in capsys.readouterr().out
    assert only(control).ack_by == "kim"
    told = [row for row in control.outbox_all() if row.action == "acknowledge"]
    assert [(row.route, json.loads(row.body)["acked_by"]) for row in told] == [("duty", "kim")]
    assert json.loads(told[0].body)["summary"].startswith("ACKNOWLEDGED by kim: ")
    assert len(json.loads(told[0].body)["summary"]) <= 90
    typed(url, "acknowledge", "atlas", "--by", "lee")  # the first name stands
    assert only(control).ack_by == "kim"
    typed(url, "acknowledge", "atlas", "--back")
    assert only(control).ack_by is None


def test_a_timeline_tells_what_was_paged_done_and_noted(
    url: str, control: ControlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(url, "note", "atlas", "allocation", "switch of r17 [red]", "--by", "kim") == 0
    capsys.readouterr()
    assert typed(url, "timeline", "atlas") == 0
    shown = capsys.readouterr().out
    assert "trigger" in shown
    assert "switch of r17 [red]" in " ".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert typed(url, "timeline", "borealis") == 1


def test_what_nobody_was_paged_for_cannot_be_acknowledged(
    url: str, control: ControlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(url, "acknowledge", "borealis", "mfu") == 2
    assert "no mfu outage of borealis has paged" in capsys.readouterr().err
    answer = httpx.post(f"{url}/api/v1/outages", json={"cluster": "atlas"}, trust_env=False)
    assert (answer.status_code, answer.json()["parameter"]) == (422, "rule")


def test_closed_by_hand_and_taken_back(url: str, control: ControlStore) -> None:
    assert typed(url, "close", "atlas", "--by", "kim") == 0
    assert (only(control).closed_by, only(control).closed_value) == ("kim", 0.912)
    assert typed(url, "close", "atlas", "--back") == 0
    assert only(control).closed_unix_ms is None


def test_a_silence_and_a_window_are_made_listed_and_ended(
    url: str, control: ControlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ("silence", "add", "--cluster", "at*", "--for", "2h", "--why", "move", "--by", "kim")
    assert typed(url, *made) == 0
    (silence,) = operations.silences(control, time.time_ns() // 1_000_000)
    assert (silence.matchers, silence.by) == ({"cluster": "at*", "rule": "*"}, "kim")
    window = ("maintenance", "add", "--cluster", "atlas", "--nodes", "r17-*", "--for", "1d")
    assert typed(url, *window, "--why", "pump") == 0
    capsys.readouterr()
    assert typed(url, "silence", "list") == 0
    assert typed(url, "maintenance", "list") == 0
    shown = capsys.readouterr().out
    assert "move" in shown
    assert "r17-*" in shown
    assert typed(url, "silence", "end", str(silence.id), "--by", "kim") == 0
    assert operations.silences(control, time.time_ns() // 1_000_000) == []
    whats = [entry["what"] for entry in operations.audit(control)]
    assert whats[:3] == ["silence ends", "maintenance", "silence"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("silence", "add", "--for", "2h", "--why", "x"), "name a cluster or a rule"),
        (("silence", "add", "--rule", "mfu", "--for", "soon", "--why", "x"), "for: "),
        (("silence", "end", "999"), "silence 999 is unknown"),
        (
            ("maintenance", "add", "--cluster", "a", "--nodes", "n", "--for", "1h", "--why", ""),
            "why: ",
        ),
    ],
)
def test_a_window_that_says_nothing_is_refused(
    url: str, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(url, *arguments) == 2
    assert words in capsys.readouterr().err


# ---- PagerDuty


def webhook(url: str, kind: str, secret: bytes = SECRET, **more: Any) -> int:
    agent = {"type": "user_reference", "summary": "Kim"} | more.pop("agent", {})
    data = {"incident_key": KEY, "status": "x"} | more
    event = {"event": {"event_type": f"incident.{kind}", "agent": agent, "data": data}}
    body = json.dumps(event).encode()
    signed = hmac.new(secret, body, hashlib.sha256).hexdigest()
    headers = {"X-PagerDuty-Signature": f"v1={'0' * 64},v1={signed}"}
    sent = httpx.post(f"{url}/api/v1/pagerduty", content=body, headers=headers, trust_env=False)
    return sent.status_code


def test_what_people_do_in_pagerduty_holds_here(url: str, control: ControlStore) -> None:
    assert webhook(url, "acknowledged") == 204
    assert only(control).ack_by == "Kim in PagerDuty"
    assert webhook(url, "unacknowledged") == 204
    assert only(control).ack_by is None
    assert webhook(url, "resolved") == 204
    assert only(control).closed_by == "Kim in PagerDuty"
    assert webhook(url, "reopened") == 204
    assert only(control).closed_by is None
    assert webhook(url, "annotated", content="looking", incident={"incident_key": KEY}) == 204
    events = response.timeline(control, "allocation", "atlas", FIRING.episode)
    assert "looking" in [event["text"] for event in events]


def test_our_own_resolve_comes_back_and_closes_nothing(url: str, control: ControlStore) -> None:
    assert webhook(url, "resolved", agent={"type": "service_reference"}) == 204
    assert webhook(url, "escalated") == 204
    assert webhook(url, "resolved", incident_key="of another service") == 204
    assert only(control).closed_by is None


def test_a_webhook_that_nobody_signed_is_nothing(url: str, control: ControlStore) -> None:
    assert webhook(url, "acknowledged", secret=b"guess") == 404
    assert only(control).ack_by is None
    body = b"[]"
    signed = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    headers = {"X-PagerDuty-Signature": f"v1={signed}"}
    sent = httpx.post(f"{url}/api/v1/pagerduty", content=body, headers=headers, trust_env=False)
    assert sent.status_code == 422


# ---- the page of an outage


def page_path() -> str:
    return f"/outages/allocation/atlas/{FIRING.episode}"


def test_the_page_is_answered_without_javascript(url: str, control: ControlStore) -> None:
    with httpx.Client(base_url=url, trust_env=False, follow_redirects=True) as browser:
        shown = browser.get(page_path()).text
        assert "Acknowledge" in shown
        assert len(shown) < 50_000
        answered = browser.post(page_path(), data={"what": "acknowledge", "by": "kim <b>"})
        assert answered.status_code == 200
        assert "acknowledged by <b><bdi>kim &lt;b&gt;" in answered.text
        browser.post(page_path(), data={"what": "note", "by": "kim", "text": "on <my> way"})
        browser.post(page_path(), data={"what": "silence", "by": "kim"})
        assert "on &lt;my&gt; way" in browser.get(page_path()).text
    assert only(control).ack_by == "kim <b>"
    held = operations.silences(control, time.time_ns() // 1_000_000)
    assert held[-1].matchers == {"cluster": "atlas", "rule": "allocation"}


@pytest.mark.parametrize(
    ("headers", "form", "status"),
    [
        ({"Origin": "https://evil.example"}, {"what": "acknowledge", "by": "x"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, {"what": "acknowledge", "by": "x"}, 403),
        ({}, {"what": "acknowledge"}, 422),
        ({}, {"what": "note", "by": "x"}, 422),
        ({}, {"what": "explode", "by": "x"}, 422),
    ],
)
def test_a_form_that_is_wrong_or_foreign_changes_nothing(
    url: str,
    control: ControlStore,
    headers: dict[str, str],
    form: dict[str, str],
    status: int,
) -> None:
    sent = httpx.post(url + page_path(), data=form, headers=headers, trust_env=False)
    assert sent.status_code == status
    assert only(control).ack_by is None

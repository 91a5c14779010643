"""`flopwatch job capture` against an API that answers by script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fake_api import Answering, answering
from flopwatch.cli import app, job

ASKED = {
    "id": "c1",
    "cluster": "atlas",
    "job": "run",
    "slots": 2,
    "answered": 0,
    "ranks": [{"node": n, "slot": "0", "state": "asked"} for n in ("n0", "n1")],
}
READINGS: dict[str, dict[str, Any]] = {
    node: {
        "node": node,
        "slot": "0",
        "taken_unix_ms": [1000, 1100, 1200],
        "columns": {"sm_active_ratio": [0.25, None, 0.75], "power_watts": [300.0, 310.0, 320.0]},
    }
    for node in ("n0", "n1")
}


class Handler(Answering):
    """Every poll finds one rank more, up to those that answer at all."""

    answers = 2
    posted: ClassVar[dict[str, Any]] = {}
    polls = 0

    def do_POST(self) -> None:
        Handler.posted, Handler.polls = self.posted_json(), 0
        if Handler.posted["job"] == "nobody":
            self.say(404, {"detail": "job 'nobody' holds no card now"})
        else:
            self.say(201, ASKED)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.endswith(".csv"):
            self.say(200, b"node,slot,taken_unix_ms\nn0,0,1000\n")
        elif query.startswith("node="):
            self.say(200, {**ASKED, "readings": [READINGS[query.removeprefix("node=")]]})
        else:
            Handler.polls = min(Handler.polls + 1, Handler.answers)
            ranks: list[dict[str, str]] = [dict(rank) for rank in ASKED["ranks"]]  # type: ignore[attr-defined]
            for rank in ranks[: Handler.polls]:
                rank["state"] = "answered"
            self.say(200, {**ASKED, "answered": Handler.polls, "ranks": ranks})


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(job, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(job, "BEGINS_SECONDS", 0.0)
    monkeypatch.setattr(Handler, "answers", 2)
    with answering(Handler) as url:
        yield url


def capture(*more: str) -> int:
    return app.run(["job", "capture", *more])


def test_a_capture_ends_when_every_rank_answered_and_sums_them_up(
    api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture("run", "--api", api, "--for", "90s", "--rate", "5") == 0
    said = capsys.readouterr().out
    assert "run · capture c1" in said
    for word in ("n0", "n1", "10.0", "50.0", "25.0", "310"):
        assert word in said
    asked = Handler.posted
    assert asked.pop("by")
    assert asked == {"job": "run", "seconds": 90.0, "readings_per_second": 5}


def test_ranks_that_do_not_answer_in_time_are_named(
    api: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "answers", 1)
    flags = ("--for", "100ms", "--wait", "100ms", "--cluster", "atlas")
    assert capture("run", "--api", api, *flags) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "flopwatch: 1 of 2 ranks did not answer in time: n1 0"
    assert Handler.posted["cluster"] == "atlas"


def test_readings_go_to_a_file_as_csv_or_json(
    api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, whole = tmp_path / "out.csv", tmp_path / "out.json"
    assert capture("run", "--api", api, "--output", str(table)) == 0
    assert table.read_text().splitlines() == ["node,slot,taken_unix_ms", "n0,0,1000"]
    assert capture("run", "--api", api, "--output", str(whole)) == 0
    said = json.loads(whole.read_text())
    assert said["readings"] == [READINGS["n0"], READINGS["n1"]]
    capsys.readouterr()
    assert capture("run", "--api", api, "--json") == 0
    assert json.loads(capsys.readouterr().out) == said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nobody",), "job 'nobody' holds no card now"),
        (("run", "--for", "60"), "--for: '60' is not a duration"),
        (("run", "--wait", "soon"), "--wait: 'soon' is not a duration"),
        (("run", "--rate", "11"), "--rate"),
        (("run", "--output", "/nowhere/at/all.csv"), "--output: there is no directory"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_asked_is_wrong_usage(
    api: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert capture(*arguments, "--api", api) == 2
    said = capsys.readouterr().err
    assert said.startswith("flopwatch: ")
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_slot_that_holds_nothing_has_no_figures() -> None:
    found = job.summary({"node": "n", "slot": "0", "taken_unix_ms": [], "columns": {}})
    assert found.pop("readings") == 0
    assert {name for name, value in found.items() if value is not None} == {"node", "slot"}

"""`flopwatch job ID` against an API that answers by script: what is printed, asked, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import pytest

from fake_api import Answering, answering
from flopwatch.cli import app, job_answer

RECEIPT = "24 x H100, 0.3 h, MFU 31.0 %, HFU 40.5 %; machine; culprit n3 s3 (slow clock)"
CULPRIT = {
    "kind": "slow_clock", "node": "n3", "slot": "0000:48:00.0", "confidence": 0.97,
    "evidence": ["SM clock 1098 MHz beside 1648 MHz of its peers, 33 % lower"],
}  # fmt: skip
FOUND = {
    "judged": True, "culprits": [], "reason": "nobody stands out from its peers", "cards": 24,
    "idle_cards": 8, "step_s": 2.9, "every_s": 10.0, "from": "rows", "capture": None,
}  # fmt: skip
JOB: dict[str, Any] = {
    "name": "llama", "cluster": "atlas", "simulated": False, "status": "final", "team": "pre",
    "user": None, "attempt": 2, "attempts": 3, "workload_class": "training", "sku": "NVIDIA H100 80GB HBM3",
    "start": "2027-01-15T08:00:00Z", "end": "2027-01-15T08:20:00Z", "window_s": 1200.0,
    "cards": {"allocated": 24.0, "in_service": 24.0},
    "hfu": {"value": 0.405}, "mfu": {"value": 0.31, "lo": 0.31, "hi": 0.31},
    "allocation": {"value": 1.0}, "active_allocation": {"value": 1.0}, "yield": {"value": 0.405},
    "answer": {
        "verdict": {
            "value": "both",
            "machine": {"state": "yes", "points": 0.03, "evidence": ["clock lost 3.0 pt"]},
            "workload": {"state": "unknown", "points": 0.0, "evidence": ["no counters"]},
        },
        "causes": [
            {
                "step": "tensor_gap", "lost": 0.41, "gain_points": None, "gain_cards": None,
                "unit": "MFU", "first": "Look at exposed communication and memory-bound kernels.",
            },
            {
                "step": "sm_idle", "lost": 0.10, "gain_points": 0.034, "gain_cards": 2.7,
                "unit": "MFU", "first": "Profile one step on one rank.",
            },
        ],
        "bridge": {
            "reported": 0.38, "ours": 0.31, "reason": None,
            "steps": [
                {
                    "step": "convention", "factor": 0.889, "lo": 0.889, "hi": 0.889, "points": -0.042,
                    "note": "it counts 12.5 % more FLOPs per token than we do",
                },
                {
                    "step": "peak", "factor": None, "lo": 0.9, "hi": 1.0, "points": None,
                    "note": "not known; part of the step that closes them",
                },
            ],
        },
        "peers": {
            "count": 9, "reason": None, "hfu": None,
            "mfu": {"p25": 0.34, "p50": 0.37, "p75": 0.41, "rank": 8, "of": 10},
        },
        "stragglers": FOUND,
        "flags": [{"words": "the job reports more than it runs", "next_step": "check its peak"}],
        "receipt": RECEIPT,
    },
}  # fmt: skip


class Handler(Answering):
    """A capture is answered at the third poll; an answer about it names a culprit."""

    simulated: ClassVar[bool] = False
    posted: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[dict[str, str]]] = []
    polls = 0

    def do_POST(self) -> None:
        Handler.posted = self.posted_json()
        Handler.polls = 0
        self.say(201, {"id": "c1", "slots": 24, "answered": 0})

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        parameters = dict(parse_qsl(query))
        if path == "/api/v1/captures/c1":
            Handler.polls += 1
            self.say(200, {"id": "c1", "slots": 24, "answered": 8 * Handler.polls})
        elif path == "/api/v1/jobs/llama":
            Handler.asked.append(parameters)
            found = FOUND
            if parameters.get("capture") == "c1":
                found = {**FOUND, "culprits": [CULPRIT], "from": "capture", "every_s": 1.0}
            answer = {**JOB["answer"], "stragglers": found}
            self.say(200, {**JOB, "simulated": Handler.simulated, "answer": answer})
        else:
            self.say(404, {"detail": "job 'nobody' held no card in the last 30 days"})


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(job_answer, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(Handler, "simulated", False)
    monkeypatch.setattr(Handler, "asked", [])
    monkeypatch.setenv("COLUMNS", "80")
    with answering(Handler) as url:
        yield url


def test_the_answer_begins_with_the_verdict_and_fits_80_columns(
    api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["job", "llama", "--api", api, "--window", "20m"]) == 0
    said = capsys.readouterr().out
    assert Handler.asked == [{"window": "20m"}]
    order = (
        "Both: the machine", "machine: yes, 3.0 pts", "clock lost", "workload: unknown",
        "largest losses", "from its own MFU to ours", "0.889", "0.90–1.00", "our MFU",
        "34.0–41.0 %, this one is 8 of 10", "none: nobody stands out", "8 cards of the job",
        "flag: the job reports", RECEIPT[:40],
    )  # fmt: skip
    places = [said.index(words) for words in order]
    assert places == sorted(places)
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "\x1b[3" not in said  # weight alone: no colour that a background could swallow


def test_an_attempt_is_asked_for_and_named(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["job", "llama", "--api", api, "--attempt", "2"]) == 0
    assert Handler.asked == [{"attempt": "2"}]
    assert "llama · atlas · pre · training · attempt 2 of 3" in capsys.readouterr().out


def test_json_is_exactly_what_the_api_said(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["job", "llama", "--api", api, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == JOB


def test_a_receipt_is_one_line(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["job", "llama", "--receipt", "--api", api]) == 0
    assert capsys.readouterr().out == RECEIPT + "\n"


def test_stragglers_come_from_the_last_minute_of_the_nodes(
    api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["job", "llama", "--stragglers", "--api", api]) == 1
    said = capsys.readouterr().out
    assert "1. n3 0000:48:00.0: slow clock, 97 % sure" in said
    assert "SM clock 1098 MHz beside 1648 MHz" in said
    assert Handler.posted == {
        "job": "llama", "cluster": "atlas", "from": "2027-01-15T08:19:00.000Z",
        "to": "2027-01-15T08:20:00.000Z", "by": "flopwatch job --stragglers",
    }  # fmt: skip
    assert Handler.asked[-1] == {"cluster": "atlas", "capture": "c1"}


def test_simulated_nodes_are_judged_by_rows(
    api: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "simulated", True)
    monkeypatch.setattr(Handler, "posted", {})
    assert app.run(["job", "llama", "--stragglers", "--api", api]) == 0
    captured = capsys.readouterr()
    assert "simulated nodes keep no readings" in captured.err
    assert "none: nobody stands out" in captured.out
    assert Handler.posted == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nobody",), "job 'nobody' held no card in the last 30 days"),
        (("llama", "--receipt", "--json"), "--receipt: it stands alone"),
        (
            ("llama", "--stragglers", "--attempt", "1"),
            "--stragglers: nodes are asked about the newest",
        ),
        (("llama", "--windw", "1h"), "--windw; nearest known: --window"),
    ],
)
def test_what_cannot_be_asked_is_wrong_usage(
    api: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert app.run(["job", *arguments, "--api", api]) == 2
    assert says in capsys.readouterr().err

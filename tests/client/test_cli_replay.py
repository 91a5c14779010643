"""`flopwatch replay` as an operator runs it: on a file, on a store, and with what is wrong with either."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flopwatch.cli.app import run
from flopwatch_collector.control.observations import Judged
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.rules import Observation

DAY = """\
cluster = "atlas"
start = 2026-11-02T00:00:00Z
step = "1m"
cards = 1000
[[phase]]
for = "2h"
allocation = { hi = 0.975 }
[[phase]]
for = "90m"
allocation = { hi = 0.945, lost_points = { FAILED = 5.5 } }
[[phase]]
for = "2h"
allocation = { hi = 0.975 }
"""
TICK_MS = 10_000
START_MS = 1_800_000_000_000


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "day.toml").write_text(DAY, encoding="utf-8")
    (tmp_path / "tried.toml").write_text("[rules.allocation]\nline = 0.94\n", encoding="utf-8")
    return tmp_path


def test_a_scenario_shows_what_would_have_paged_within_80_columns(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["replay", "--data", ".", "--scenario", "day.toml", "--rules", "tried.toml"]
    assert run(asked) == 0
    out = capsys.readouterr().out
    assert "atlas allocation: would have paged once in 5.5 h, 0 standing with today's" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "▲" in out
    assert "┄" in out


def test_json_tells_every_outage_with_its_pages(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", "--data", ".", "--scenario", "day.toml", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["clusters"]
    (outage,) = answer["today"]["outages"]
    assert outage["rule"] == "allocation"
    assert [page["act"] for page in outage["told"]] == ["trigger"]
    assert outage["fired_unix_ms"] - outage["began_unix_ms"] == 300_000
    assert outage["worst"] == 0.945
    assert not answer["simulated"]


def test_kept_observations_are_replayed_beside_the_store_and_marked_where_simulated(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Observation(
        cluster="demo",
        rule="allocation",
        simulated=True,
        device_kind="gpu",
        tick_unix_ms=0,
        lo=0.9,
        hi=0.9,
        value=0.9,
        coverage=1.0,
        in_service_cards=100,
        unseen_cards=0,
    )
    store = ControlStore.open(f"sqlite:///{directory}/control.db")
    ticks = [START_MS + number * TICK_MS for number in range(120)]
    store.save(
        observations=[
            Judged(observation=replace(seen, tick_unix_ms=tick), condition="breach")
            for tick in ticks
        ]
    )
    until = "2027-01-15T08:20:00Z"  # 20 minutes after START_MS
    asked = ["replay", "--data", ".", "--since", "1h", "--until", until]
    assert run([*asked, "--would-have"]) == 0
    out = capsys.readouterr().out
    assert "demo (simulated) allocation: would have paged once" in out
    assert run([*asked, "--cluster", "atlas"]) == 2
    assert "--cluster: no observation of 'atlas'; known: demo" in capsys.readouterr().err
    store.close()


@pytest.mark.parametrize(
    ("changed", "text", "arguments", "named"),
    [
        ("tried.toml", "[rules.allocation]\nline = 96\n", [], "rules.allocation.line"),
        ("tried.toml", "[rules.allocation]\nlime = 0.9\n", [], "lime"),
        ("tried.toml", "[listen]\n", [], "--rules"),
        ("day.toml", DAY.replace('"90m"', '"4h30m"'), [], "phase.1: for"),
        ("day.toml", DAY.replace("0.945", "94.5"), [], "phase.1.allocation.lo"),
        ("day.toml", DAY.replace("allocation =", "alocation ="), [], "alocation"),
        ("day.toml", "cluster = 'a'\n", [], "[[phase]]"),
        ("day.jsonl", '{"rule": "allocation", "hi": 0.9}\n', ["day.jsonl"], "line 1: no tick"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_field(
    changed: str,
    text: str,
    arguments: list[str],
    named: str,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (directory / changed).write_text(text, encoding="utf-8")
    scenario = arguments[0] if arguments else "day.toml"
    asked = ["replay", "--data", ".", "--scenario", scenario, "--rules", "tried.toml"]
    assert run(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize(
    ("option", "value"), [("--since", "soon"), ("--since", "90d"), ("--until", "noon")]
)
def test_a_wrong_window_is_named(
    option: str, value: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", "--data", ".", option, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line

"""Teams over HTTP, from a real web process over a real store."""

from __future__ import annotations

import pytest

from flopwatch.cli.app import run
from flopwatch_collector.web import team_shapes
from web.test_web_api import moment
from web.web_server import Web


def test_teams_are_listed_and_one_has_its_waterfall_and_its_clusters(web: Web) -> None:
    window = {"start": moment(web.end - 900_000), "end": moment(web.end)}
    answer = web.get("/api/v1/teams", **window, cluster="atlas").json()
    team_shapes.TeamsAnswer.model_validate(answer)
    (listed,) = answer["teams"]
    assert (listed["name"], listed["share"]) == ("t", 1.0)
    assert listed["buckets"] == {"ACTIVE": listed["card_seconds"]}
    assert listed["card_seconds"] == pytest.approx(3 * 900)
    one = web.get("/api/v1/teams/t", **window).json()
    team_shapes.TeamAnswer.model_validate(one)
    assert one["simulated"] is False
    assert one["mfu"]["lo"] < one["mfu"]["hi"]
    assert one["clusters"][0]["card_seconds"] == listed["card_seconds"]
    assert sum(step["card_seconds"] or 0.0 for step in one["waterfall"]) == pytest.approx(3 * 900)


def test_a_team_that_held_nothing_is_not_found(web: Web) -> None:
    answer = web.get("/api/v1/teams/nobody", cluster="atlas")
    assert answer.status_code == 404
    said = "team 'nobody' held no card of cluster 'atlas' in this window"
    assert answer.json()["detail"] == said


def test_the_command_shows_teams_and_one_of_them(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    window = ("--window", "15m", "--end", moment(web.end), "--cluster", "atlas", "--api", web.url)
    assert run(["team", *window]) == 0
    listed = capsys.readouterr().out
    (line,) = [line for line in listed.splitlines() if line.strip().startswith("t ")]
    assert line.split()[1:3] == ["0.750", "100.0"]
    assert run(["team", "t", *window]) == 0
    shown = capsys.readouterr().out
    assert "where every FLOP went" in shown
    assert all(len(line) <= 80 for line in (listed + shown).splitlines())
    assert run(["team", "nobody", *window]) == 2


def test_pages_of_teams_show_the_same_figures(web: Web) -> None:
    listed = web.get("/teams", window="15m")
    assert listed.status_code == 200
    assert "/teams/t?window=15m" in listed.text
    shown = web.get("/teams/t", window="15m")
    assert shown.status_code == 200
    assert "Card-hours" in shown.text
    assert "<script>window.hurt" not in listed.text + shown.text
    assert web.get("/teams/nobody", window="15m").status_code == 404
    assert web.get("/teams", window="soon").status_code == 422

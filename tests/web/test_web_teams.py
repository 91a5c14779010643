"""Teams over HTTP, from a real web process over a real store."""

from __future__ import annotations

import pytest

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

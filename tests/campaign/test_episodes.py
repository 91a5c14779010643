"""A few outages while pagers, their database and an Alertmanager die."""

from __future__ import annotations

from pathlib import Path

from campaign.episodes import campaign


def test_every_outage_is_paged_held_once_and_closed_whoever_dies(tmp_path: Path) -> None:
    armed = ("page taken, not noted:2", "outcome, not committed:4")
    with campaign(tmp_path, episodes=6, clusters=6, seed=4, armed=armed) as running:
        verdict = running.run()
    assert verdict.problems == []
    assert verdict.episodes >= 6
    assert verdict.pages > verdict.episodes
    assert {point.partition(":")[0] for point in armed} <= set(verdict.deaths)
    assert verdict.answers.total() > verdict.answers[202]

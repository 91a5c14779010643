"""Each of the eight seeded bugs is found by a campaign or a test that is known to pass without it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from campaign import pings, prefixes, seeded
from campaign.delivery import campaign
from flopwatch_collector import listen

TESTS = Path(__file__).resolve().parents[1]
DELIVERED = {
    "acknowledged before the commit": ("before the commit:1", "rows are lost"),
    "a store that doubles what is sent again": (
        "committed, not acknowledged:1",
        "rows are doubled",
    ),
    "page sent before it is stored": (
        "pages, before they are stored:1",
        "pages came that nobody decided",
    ),
}
SPOOLED = {
    "watermark outside of the transaction": (100, 1, "batches said to be lost that were not"),
    "dropped before the gap is written": (200, 4, "a gap that nothing had made"),
}
ELSEWHERE = {
    "resolved where there is no data",
    "wrong name of the ping option",
    "name of the certificate not checked",
}


def test_every_bug_has_what_finds_it() -> None:
    assert seeded.BUGS.keys() == DELIVERED.keys() | SPOOLED.keys() | ELSEWHERE


@pytest.mark.parametrize("bug", DELIVERED)
def test_one_kill_at_the_right_point_finds_a_collector_that_is_wrong(
    bug: str, tmp_path: Path
) -> None:
    point, problem = DELIVERED[bug]
    with campaign(tmp_path, 1, nodes=("n1",), point=point, bug=bug) as running:
        verdict = running.run(["collector"])
    assert verdict.deaths[f"collector: {point.partition(':')[0]}"] == 1
    assert any(problem in line for line in verdict.problems), verdict.problems


@pytest.mark.parametrize("bug", SPOOLED)
def test_power_losses_find_a_spool_that_takes_two_steps(
    bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded.apply(bug, monkeypatch.setattr)
    amount, seed, problem = SPOOLED[bug]
    problems = prefixes.run(tmp_path, amount, seed).problems
    assert any(problem in line for line in problems), problems


def test_the_story_of_silence_finds_an_incident_that_ends_without_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = importlib.util.spec_from_file_location(
        "incident_stories", TESTS / "collector" / "test_incident.py"
    )
    assert spec is not None
    assert spec.loader is not None
    stories: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, stories)
    spec.loader.exec_module(stories)
    seeded.apply("resolved where there is no data", monkeypatch.setattr)
    with pytest.raises(AssertionError):
        stories.test_unknown_never_resolves_and_stops_the_hold_of_a_clearing_one()


async def test_a_client_that_pings_finds_an_option_that_the_server_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await pings.outlives(listen.SERVER_OPTIONS, 3.0)
    seeded.apply("wrong name of the ping option", monkeypatch.setattr)
    assert not await pings.outlives(listen.SERVER_OPTIONS, 60.0)


def test_the_wrong_node_finds_a_name_that_is_not_checked() -> None:
    test = "test_a_stream_is_of_the_node_that_its_certificate_names"
    done = subprocess.run(
        (
            *(sys.executable, "-m", "pytest", "-q", "-p", "campaign.seeded", "-k", test),
            *("-p", "no:cacheprovider", str(TESTS / "collector" / "test_trust_ingest.py")),
        ),
        cwd=TESTS.parent,
        env={**os.environ, "CAMPAIGN_BUG": "name of the certificate not checked"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "assert wrong.startswith" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1

"""Outages in real time, with short holds: what pages, what it says, and what never ends one.

What is looked at here began to play before other tests (`stage`), so that nobody waits for it.
"""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from e2e.stage import SPEAKS_MS, Stage
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from processes import SECONDS_MAX, awaited


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_rolling_restart_of_all_agents_with_goodbye_pages_nobody(stage: Stage) -> None:
    stage.restarted.result(timeout=2 * SECONDS_MAX)
    assert stage.receiver.pages("rolling") == []
    assert stage.states("rolling") == stage.states("rolling", "blind") == []


def test_a_drop_to_95_percent_pages_once_and_says_why(stage: Stage) -> None:
    page, *_ = awaited(lambda: stage.receiver.pages("drops"), "the page of the drop")
    assert (page["rule"], page["action"], page["state"]) == ("allocation", "trigger", "firing")
    assert page["simulated"] is True
    assert page["threshold"] == 0.96
    assert page["value"] == pytest.approx(0.95, abs=0.001)
    assert page["lost_points"] == {"FREE": pytest.approx(5.0, abs=0.1)}
    (loss,) = page["largest_losses"]
    assert (loss["step"], loss["points"]) == ("FREE", pytest.approx(5.0, abs=0.1))
    assert loss["cards"] == pytest.approx(0.05 * 20, abs=0.1)
    assert [(cause["kind"], cause["name"]) for cause in page["causes"]] == [("node", "drops-0019")]
    assert [node["name"] for node in page["behind"]["nodes"]["first"]] == ["drops-0019"]
    assert page["before"]["value"] == pytest.approx(1.0, abs=0.001)
    assert page["changes"] is not None  # the store was asked, and answered in time


def test_a_fifth_of_the_agents_stopped_while_the_roster_speaks_costs_only_coverage(
    stage: Stage,
) -> None:
    start = (stage.began_unix_ms + 30_000) // 10_000 * 10_000
    window = (moment(start), moment(start + 20_000))
    awaited(lambda: wall_unix_ms(SystemClock()) > start + 35_000, "the window has passed")
    shown = stage.collector.cluster("unwatched", *window)
    assert shown["allocation"] == {
        "value": 1.0, "lo": 1.0, "hi": 1.0, "coverage": pytest.approx(0.80, abs=1e-9),
    }  # fmt: skip
    assert shown["hfu"]["coverage"] == pytest.approx(0.80, abs=1e-9)
    assert stage.receiver.pages("unwatched", "allocation") == []
    assert stage.outages("unwatched") == []


def test_agents_that_fall_silent_end_no_outage(stage: Stage) -> None:
    (page,) = awaited(lambda: stage.receiver.pages("muted", "allocation"), "the page of 90 %")
    assert page["lost_points"] == {"FREE": pytest.approx(10.0, abs=0.1)}

    def silent() -> bool:
        shown = stage.collector.get("/api/v1/clusters/muted", window="10s")
        return bool(shown["cards"]["unseen"] == shown["cards"]["in_service"] == 20)

    awaited(silent, "nobody speaks for the cluster")
    assert stage.muted is not None
    stage.muted.end(signal.SIGKILL)
    silence_unix_ms = stage.began_unix_ms + SPEAKS_MS
    judged = awaited(
        lambda: stage.judged("muted", silence_unix_ms + 30_000), "judgements of the silence"
    )
    assert judged["state"] == "firing"
    assert [p["action"] for p in stage.receiver.pages("muted", "allocation")] == ["trigger"]


def actions(pages: list[dict[str, Any]]) -> list[str]:
    """What pages of one outage say, in order; a resolve is repeated every 5 minutes."""
    assert len({page["dedup_key"] for page in pages}) == 1
    return list(dict.fromkeys(page["action"] for page in pages))


def test_the_drop_is_resolved_once_after_recovery(stage: Stage) -> None:
    pages = awaited(
        lambda: found if len(found := stage.receiver.pages("drops")) > 1 else None,
        "the page of the recovery",
    )
    assert actions(pages) == ["trigger", "resolve"]
    assert pages[1]["state"] == "resolved"
    assert pages[0]["dedup_key"] == pages[1]["dedup_key"]
    assert stage.outages("drops") == []
    listed = stage.collector.get("/api/v1/outages", state="resolved")["outages"]
    (ended,) = (o for o in listed if (o["cluster"], o["rule"]) == ("drops", "allocation"))
    assert ended["lost_points"] == {"FREE": pytest.approx(5.0, abs=0.1)}


def test_a_collector_that_was_killed_ends_no_outage(stage: Stage) -> None:
    stage.collector.kill()
    time.sleep(10)
    stage.collector.restart()
    since = wall_unix_ms(SystemClock())
    awaited(lambda: stage.judged("muted", since + 10_000), "judgements after the restart")
    assert stage.states("muted") == ["firing"]
    assert [p["action"] for p in stage.receiver.pages("muted", "allocation")] == ["trigger"]
    assert actions(stage.receiver.pages("drops")) == ["trigger", "resolve"]
    assert stage.receiver.pages("unwatched", "allocation") == []


def test_every_page_is_signed_and_sent_under_a_key_of_its_own(stage: Stage) -> None:
    received = stage.receiver.received
    assert received
    assert all(each.genuine for each in received)
    assert len({each.key for each in received}) == len(received)

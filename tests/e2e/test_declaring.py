"""A job that starts to declare its FLOPs changes what is known, not what is shown first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from evidence_tables import GPM_SPREAD
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from processes import Collector, backfill

MEASURED = 1e-6  # rows hold what is measured to 20 bits
SCENARIO = """
[scenario]
start = "{start}"
duration = "10m"
[[cluster]]
name = "declares"
sku = "NVIDIA H100 80GB HBM3"
nodes = 4
cards_per_node = 1
# Two jobs at HFU 0.43: tensor pipes busy 0.43 of the time at the reference clock. One node is free.
[[cluster.phase]]
nodes = "0-1"
job = "quiet"
sm_active = 0.9
tensor_active = 0.43
[[cluster.phase]]
nodes = "2"
job = "open"
sm_active = 0.9
tensor_active = 0.43
[[cluster.phase]]
nodes = "2"
from = "5m"
job = "open"
sm_active = 0.9
tensor_active = 0.43
declared_mfu = 0.36
"""


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def halves(
    shared: Collector, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cluster's figures before and after the job began to declare."""
    start = wall_unix_ms(SystemClock()) // 60_000 * 60_000 - 7_200_000
    scenario = tmp_path_factory.mktemp("declares") / "declares.toml"
    scenario.write_text(SCENARIO.format(start=moment(start)), encoding="utf-8")
    sent = backfill(shared, scenario)
    assert sent.returncode == 0, sent.stderr
    middle, end = moment(start + 300_000), moment(start + 600_000)
    before = shared.cluster("declares", moment(start), middle)
    return before, shared.cluster("declares", middle, end)


def test_a_job_that_starts_declaring_moves_no_headline(
    halves: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    before, after = halves
    assert before["allocation"]["value"] == 0.75
    assert before["hfu"]["value"] == pytest.approx(0.43, abs=MEASURED)
    for name in ("allocation", "active_allocation", "hfu", "yield"):
        was, now = before[name]["value"], after[name]["value"]
        assert now == pytest.approx(was, abs=MEASURED), name
    assert before["mfu"]["value"] is after["mfu"]["value"] is None


def test_only_the_declared_share_rises_and_the_bounds_of_mfu_close_in(
    halves: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    before, after = (half["mfu"] for half in halves)
    least, most = 0.72 * 0.43 * (1 - GPM_SPREAD), 0.43 * (1 + GPM_SPREAD)
    assert (before["declared_share"], after["declared_share"]) == (0.0, pytest.approx(1 / 3))
    assert before["hi"] == pytest.approx(most, abs=MEASURED)
    assert before["lo"] == pytest.approx(least, abs=MEASURED)
    assert after["hi"] == pytest.approx((2 * most + 0.36) / 3, abs=MEASURED)
    assert after["lo"] == pytest.approx((2 * least + 0.36) / 3, abs=MEASURED)

"""The worked vector over the whole path, by a scenario and by a driver: 4 digits at the other end.

An H100 whose SMs are active 0.90 of the time and whose tensor pipes 0.45 of it, at 1650 MHz of 1830:

    idle 0.1000   clock 0.0885   tensor gap 0.4057   u = 0.45 × 1650 / 1830 = 0.4057   401.4 TFLOP/s
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from evidence_tables import GPM_SPREAD
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from processes import Collector, awaited, backfill

PEAK: Final = 989.4e12
DIGITS: Final = 5e-5
STEPS: Final = {
    "sm_idle": 0.1000,
    "clock": 0.08852,
    "tensor_gap": 0.40574,
    "hardware_flops": 0.40574,
}


def check(figures: Any, window_s: float, *, steps: dict[str, float] = STEPS) -> None:
    """One card, allocated all the time, with the vector's figures."""
    assert figures["cards"]["in_service"] == figures["cards"]["active"] == 1.0
    assert figures["allocation"] == {"value": 1.0, "lo": 1.0, "hi": 1.0, "coverage": 1.0}
    assert figures["hfu"]["value"] == pytest.approx(0.40574, abs=DIGITS)
    assert figures["hfu"]["coverage"] == 1.0
    assert figures["hfu"]["methods"] == [{"method": "gpm", "share": 1.0}]
    assert figures["mfu"]["value"] is None
    assert figures["hfu"]["lo"] == pytest.approx(0.40574 * (1 - GPM_SPREAD), abs=DIGITS)
    assert figures["hfu"]["hi"] == pytest.approx(0.40574 * (1 + GPM_SPREAD), abs=DIGITS)
    assert figures["mfu"]["hi"] == pytest.approx(0.40574 * (1 + GPM_SPREAD), abs=DIGITS)
    assert figures["mfu"]["lo"] == pytest.approx(0.72 * 0.40574 * (1 - GPM_SPREAD), abs=DIGITS)
    assert figures["mfu"]["declared_share"] == 0.0
    waterfall = {step["step"]: step for step in figures["waterfall"]}
    for name, step in waterfall.items():
        if step["share"] is not None:
            assert step["share"] == pytest.approx(steps.get(name, 0.0), abs=DIGITS), name
    done_flops = waterfall["hardware_flops"]["flops"] / window_s
    assert done_flops == pytest.approx(401.4e12, rel=2e-4)


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_scenario_of_one_card_and_a_minute_gives_the_worked_vector(
    shared: Collector, tmp_path: Path
) -> None:
    start = wall_unix_ms(SystemClock()) // 60_000 * 60_000 - 3_600_000
    scenario = tmp_path / "vector.toml"
    scenario.write_text(
        f"""
        [scenario]
        start = "{moment(start)}"
        duration = "60s"
        [[cluster]]
        name = "vector"
        sku = "NVIDIA H100 80GB HBM3"
        nodes = 1
        cards_per_node = 1
        [[cluster.phase]]
        job = "vector"
        sm_active = 0.90
        tensor_active = 0.45
        sm_clock_mhz = 1650
        """,
        encoding="utf-8",
    )
    sent = backfill(shared, scenario)
    assert sent.returncode == 0, sent.stderr
    check(shared.cluster("vector", moment(start), moment(start + 60_000)), 60.0)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A window in which the agent watched the fake driver all the time. Attributes: node: the answer."""

    start: str
    end: str
    node: Any


@pytest.fixture(scope="module")
def watched(shared: Collector, driven: str) -> Watched:
    """Two whole intervals of the agent beside the fake driver."""
    whole = (
        "SELECT start_unix_ms FROM interval FINAL WHERE node = {node:String} "
        "AND duration_ms = 10000 GROUP BY start_unix_ms HAVING count() = 2 ORDER BY start_unix_ms"
    )
    rows = awaited(
        lambda: found if len(found := shared.sql(whole, node=driven)) >= 2 else None,
        "two whole intervals",
    )
    first = rows[0]["start_unix_ms"]
    start, end = moment(first), moment(first + 20_000)
    node = shared.get(f"/api/v1/nodes/{driven}", start=start, end=end)
    return Watched(start=start, end=end, node=node)


def test_the_vector_comes_through_driver_agent_wire_and_store(watched: Watched) -> None:
    node = watched.node
    assert (node["cluster"], node["simulated"]) == ("driven", False)
    card, other = node["cards_list"]
    assert (card["bucket"], card["job"], card["team"]) == ("ACTIVE", "vector-run", "physics")
    assert (other["bucket"], other["job"]) == ("FREE", None)
    assert card["sku"] == other["sku"] == "NVIDIA H100 80GB HBM3"
    assert card["hfu"]["value"] == pytest.approx(0.40574, abs=DIGITS)
    row = card["row"]
    assert row["card_ms"] == row["covered_ms"] == row["counted_ms"] == row["resident_ms"] == 10_000
    quantities = row["quantities"]
    for name, wanted in {
        "sm_active_ms": 9_000,
        "tensor_active_ms": 4_500,
        "sm_active_clock_ms": 9_000 * 1650 / 1830,
        "tensor_active_clock_ms": 4_500 * 1650 / 1830,
        "capacity_flops": 10 * PEAK,
        "u_flops": 10 * PEAK * 0.45 * 1650 / 1830,
        "dram_active_ms": 3_000,
        "energy_joules": 720,
        "power_watts_max": 72,
    }.items():
        assert quantities[name] == pytest.approx(wanted, rel=1e-3), name


def test_the_cluster_of_that_driver_has_the_vectors_figures(
    shared: Collector, watched: Watched
) -> None:
    """Two cards in service, one of them free: the vector's shares are of half of the time."""
    figures = shared.cluster("driven", watched.start, watched.end)
    assert figures["simulated"] is False
    assert figures["cards"] == {
        "in_service": 2.0, "allocated": 1.0, "active": 1.0, "unseen": 0.0, "rogue": 0.0, "excused": 0,
        "free": 1.0, "free_demand": None, "free_no_demand": None,
    }  # fmt: skip
    assert figures["allocation"] == {"value": 0.5, "lo": 0.5, "hi": 0.5, "coverage": 1.0}
    assert figures["hfu"]["value"] == pytest.approx(0.40574, abs=DIGITS)
    assert figures["yield"]["value"] == pytest.approx(0.20287, abs=DIGITS)
    shares = {step["step"]: step["share"] for step in figures["waterfall"]}
    halves = {name: share / 2 for name, share in STEPS.items()} | {"free": 0.5}
    for name, share in shares.items():
        if share is not None:
            assert share == pytest.approx(halves.get(name, 0.0), abs=DIGITS), name


def test_what_is_missing_not_supported_or_failed_stays_apart_to_the_api(watched: Watched) -> None:
    row = watched.node["cards_list"][1]["row"]
    absent = row["absent"]
    assert absent["energy_joules"] == "not_supported"
    assert absent["tensor_active_ms"] == absent["u_flops"] == "failed"
    assert absent["model_flops"] == "missing"
    assert row["counted_ms"] == 0
    assert row["covered_ms"] == 10_000
    assert row["quantities"]["sm_active_ms"] == pytest.approx(9_000, rel=1e-3)
    assert {name for name, value in row["quantities"].items() if value is None} == set(absent)

"""Bridge, peers, causes, verdict and receipt of a job: pure functions of what is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwatch_collector.jobs.bridge import Declared, bridge
from flopwatch_collector.jobs.causes import causes
from flopwatch_collector.jobs.peers import JobFigures, peers
from flopwatch_collector.jobs.receipt import CHARACTERS_MAX, receipt
from flopwatch_collector.jobs.verdict import Seen, verdict

H100 = "NVIDIA H100 80GB HBM3"
PEAK = 989.4e12
HOUR = 3_600_000.0

# Ours: 31 % of 100 card-hours, of which 90 are inside steps.
WHOLE = Declared(
    reported_mfu_ms=0.38 * 90 * HOUR,
    reported_ms=90 * HOUR,
    reported_flops=0.31 * 100 * 3600 * PEAK * 1.125,
    model_flops=0.31 * 100 * 3600 * PEAK,
    model_capacity_flops=100 * 3600 * PEAK,
    step_ms=90 * HOUR,
    card_ms=100 * HOUR,
    phase_ms={"steady": 91 * HOUR, "startup": 2 * HOUR, "eval": 4 * HOUR, "checkpoint": 3 * HOUR},
    sku=H100,
    dtype="bf16",
)


def points(made: dict[str, Any]) -> float:
    return float(sum(step["points"] or 0.0 for step in made["steps"]))


def step(made: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in made["steps"] if s["step"] == name)


def test_the_bridge_walks_from_38_to_31_in_named_steps() -> None:
    made = bridge(WHOLE)
    assert made["reported"] == pytest.approx(0.38)
    assert made["ours"] == pytest.approx(0.31)
    names = [s["step"] for s in made["steps"]]
    assert names == ["convention", "peak", "startup", "eval", "checkpoint", "between steps"]
    assert points(made) == pytest.approx(0.31 - 0.38, abs=1e-12)
    assert step(made, "convention")["factor"] == pytest.approx(1 / 1.125)
    assert "12.5 % more" in step(made, "convention")["note"]
    inside = 0.31 / 0.9
    assert step(made, "eval")["points"] == pytest.approx(-(inside - 0.31) * 4 / 10)


def test_an_unknown_convention_has_bounds_and_a_step_that_closes() -> None:
    made = bridge(replace(WHOLE, reported_flops=None))
    assert points(made) == pytest.approx(0.31 - 0.38, abs=1e-12)
    for name in ("convention", "peak"):
        assert step(made, name)["points"] is None
        lo, hi = step(made, name)["lo"], step(made, name)["hi"]
        assert lo < hi
        assert lo <= step(made, "convention and peak")["factor"] <= hi


def test_a_sparse_peak_is_named() -> None:
    made = bridge(replace(WHOLE, reported_mfu_ms=0.31 / 0.9 / 2 * 1.125 * 90 * HOUR))
    assert step(made, "peak")["factor"] == pytest.approx(2.0)
    assert "sparse" in step(made, "peak")["note"]


def test_without_step_times_the_whole_way_is_one_step() -> None:
    made = bridge(replace(WHOLE, step_ms=None))
    assert made["reason"] == "no step times"
    assert step(made, "not split")["points"] == pytest.approx(-0.07)


def test_without_phases_what_lies_outside_steps_is_not_split() -> None:
    made = bridge(replace(WHOLE, phase_ms={}))
    assert step(made, "eval")["points"] is None
    assert points(made) == pytest.approx(-0.07)


@pytest.mark.parametrize(
    ("less", "reason"),
    [
        ({"reported_ms": None}, "the job reports no MFU of its own"),
        ({"model_flops": None}, "the job declares no model FLOPs: there is no exact MFU of ours"),
    ],
)
def test_a_bridge_needs_both_ends(less: dict[str, Any], reason: str) -> None:
    made = bridge(replace(WHOLE, **less))
    assert (made["steps"], made["reason"]) == ([], reason)


@given(
    st.floats(0.01, 1.5),
    st.floats(0.01, 1.0),
    st.floats(0.05, 1.0),
    st.one_of(st.none(), st.floats(0.3, 2.0)),
    st.lists(st.floats(0, 0.5), min_size=3, max_size=3),
)
def test_known_points_always_add_up(
    reported: float, ours: float, wall: float, convention: float | None, phases: list[float]
) -> None:
    made = bridge(
        replace(
            WHOLE,
            reported_mfu_ms=reported * 90 * HOUR,
            model_flops=ours * 100 * 3600 * PEAK,
            reported_flops=None if convention is None else convention * ours * 3.6e5 * PEAK,
            step_ms=wall * 100 * HOUR,
            phase_ms={
                name: share * 100 * HOUR
                for name, share in zip(("startup", "eval", "checkpoint"), phases, strict=True)
            },
        )
    )
    assert points(made) == pytest.approx(ours - reported, abs=1e-9)


# ---- peers


def figures(job: str, cards: float = 64, **more: Any) -> JobFigures:
    made: dict[str, Any] = {
        "cluster": "atlas", "job": job, "sku": H100, "workload_class": "training",
        "cards": cards, "card_hours": 100.0, "mfu": 0.4, "hfu": 0.5,
    }  # fmt: skip
    return JobFigures(**(made | more))


def test_peers_are_alike_and_this_job_has_a_rank() -> None:
    alike = [figures(f"p{i}", 64 + i, mfu=0.30 + i / 100, hfu=None) for i in range(10)]
    others = [
        figures("small", 31),
        figures("large", 129),
        figures("eval", workload_class="eval"),
        figures("b200", sku="NVIDIA B200"),
        figures("short", card_hours=0.5),
        figures("own"),
    ]
    made = peers(figures("own", mfu=0.355), [*alike, *others])
    assert made["count"] == 10
    assert made["mfu"] == {
        "p25": pytest.approx(0.3225), "p50": pytest.approx(0.345), "p75": pytest.approx(0.3675),
        "rank": 5, "of": 11,
    }  # fmt: skip
    assert made["hfu"] is None
    assert made["reason"] is None


def test_four_peers_are_not_enough() -> None:
    made = peers(figures("own"), [figures(f"p{i}") for i in range(4)])
    assert (made["mfu"], made["hfu"]) == (None, None)
    assert made["reason"].startswith("4 jobs of this SKU")


# ---- causes


def waterfall(**shares: float | None) -> list[dict[str, Any]]:
    return [{"step": n, "owner": "workload", "share": share} for n, share in shares.items()]


WORKED = waterfall(  # science notes, section 7: SM 0.90, 1650 of 1830 MHz, A 0.45
    sm_idle=0.1, clock=0.9 * (1 - 1650 / 1830), tensor_gap=0.40574, hardware_flops=0.40574
)


def test_the_largest_losses_come_with_a_bounded_gain() -> None:
    made = causes(WORKED, cards=64, ceiling=0.75, peer=0.45, mfu_of_hfu=None)
    assert [c["step"] for c in made] == ["tensor_gap", "sm_idle", "clock"]
    gap, idle, clock = made
    assert gap["gain_points"] == pytest.approx(0.45 - 0.40574, abs=1e-4)
    assert gap["bounded_by"] == "peers"
    assert idle["bounded_by"] == "peers"  # 0.4057 / 0.9 = 0.4508
    assert clock["gain_points"] == pytest.approx(0.45 - 0.40574, abs=1e-4)
    assert all(c["first"].endswith(".") and c["unit"] == "HFU" for c in made)
    assert idle["gain_cards"] == pytest.approx(64 * idle["gain_points"] / 0.40574, rel=1e-4)


def test_a_gap_without_a_bound_promises_nothing() -> None:
    made = causes(WORKED, cards=64, ceiling=None, peer=None, mfu_of_hfu=0.8)
    gap, idle, _ = made
    assert (gap["gain_points"], gap["gain_cards"], gap["bounded_by"]) == (None, None, None)
    assert idle["gain_points"] == pytest.approx(0.8 * 0.40574 / 9, rel=1e-4)
    assert idle["unit"] == "MFU"


def test_recompute_gives_back_the_time_it_takes() -> None:
    made = causes(
        waterfall(recompute=0.1, model_flops=0.4, tensor_gap=0.5),
        cards=10, ceiling=None, peer=None, mfu_of_hfu=0.8,
    )  # fmt: skip
    recompute = next(c for c in made if c["step"] == "recompute")
    assert recompute["gain_points"] == pytest.approx(0.1)  # MFU 0.4 → 0.5 = HFU: nothing else ran
    assert (
        causes(waterfall(no_process=1.0), cards=1, ceiling=None, peer=None, mfu_of_hfu=None) == []
    )


# ---- verdict

SOUND = Seen(
    shares={"sm_idle": 0.0, "clock": 0.01, "tensor_gap": 0.2},
    throttled={},
    clock_parts={},
    ceilings_below=[],
    ceilings_known=1.0,
    ceiling=0.78,
    hfu=0.77,
    faults=[],
    stragglers=[],
    coverage=1.0,
)
HOT: dict[str, Any] = {
    "clock_parts": {"thermal_hw": 0.08, "power": 0.02},
    "throttled": {"thermal_hw": 0.4, "power": 0.1},
    "shares": {**SOUND.shares, "clock": 0.1},
}
IDLE: dict[str, Any] = {"shares": {**SOUND.shares, "sm_idle": 0.15}}


def culprit(kind: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "node": "n17", "slot": "s3"}]


@pytest.mark.parametrize(
    ("more", "value"),
    [
        ({}, "neither"),
        (HOT, "machine"),
        (IDLE, "workload"),
        ({**HOT, "shares": {**HOT["shares"], "sm_idle": 0.1}}, "both"),
        ({"hfu": 0.4}, "workload"),
        ({"faults": ["xid 79: 1 ×, first on n1 s1"]}, "machine"),
        ({"ceilings_below": [("n1", "s1", -0.08)]}, "machine"),
        ({"stragglers": culprit("slow_clock")}, "machine"),
        ({"stragglers": culprit("slow_link"), **IDLE}, "both"),
        ({"stragglers": culprit("late_rank")}, "workload"),
        ({"stragglers": culprit("data_stall")}, "workload"),
        ({"coverage": None}, "cannot tell"),
        ({"shares": {"sm_idle": 0.2, "clock": None}}, "cannot tell"),
    ],
)
def test_the_verdict_follows_from_what_was_seen(more: dict[str, Any], value: str) -> None:
    made = verdict(replace(SOUND, **more))
    assert made["value"] == value
    for side in ("machine", "workload"):
        assert made[side]["state"] in ("yes", "no", "unknown")
        if made[side]["state"] != "no":
            assert made[side]["evidence"]


# ---- receipt

JOB: dict[str, Any] = {
    "simulated": False,
    "sku": H100,
    "held_s": 6.1 * 3600,
    "cards": {"allocated": 512.0},
    "mfu": {"value": 0.382, "lo": 0.369, "hi": 0.396},
    "hfu": {"value": 0.44},
    "waterfall": waterfall(sm_idle=0.061, clock=0.02, tensor_gap=None, model_flops=0.38),
    "answer": {
        "verdict": {"value": "both"},
        "stragglers": {"culprits": [{"kind": "slow_clock", "node": "node-17", "slot": "3"}]},
    },
}


def test_a_receipt_is_one_line() -> None:
    assert receipt(JOB) == (
        "512 x H100, 6.1 h, MFU 38.2 % (36.9-39.6), HFU 44.0 %, lost: input/idle 6.1 pt, "
        "clock 2.0 pt; both; culprit node-17 3 (slow clock)"
    )
    assert receipt({**JOB, "simulated": True}).startswith("SIMULATED 512 x")


def test_a_receipt_with_nothing_known_says_so() -> None:
    nothing = {
        **JOB, "sku": None, "waterfall": [], "hfu": {"value": None},
        "mfu": {"value": None, "lo": None, "hi": None},
        "answer": {"verdict": {"value": "cannot tell"}, "stragglers": None},
    }  # fmt: skip
    assert receipt(nothing) == "512 x cards, 6.1 h, MFU unknown, HFU unknown; cannot tell"


@given(st.text(max_size=300))
def test_a_receipt_needs_no_escaping(name: str) -> None:
    culprits = [{"kind": "slow_card", "node": name, "slot": None}]
    line = receipt({**JOB, "answer": {**JOB["answer"], "stragglers": {"culprits": culprits}}})
    assert len(line) <= CHARACTERS_MAX
    assert all(" " <= c <= "~" and c not in "'\"\\`$" for c in line)

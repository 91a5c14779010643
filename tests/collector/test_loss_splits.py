"""Steps of the waterfall split further: clock by reason, the tensor gap by bounds, what jobs tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence_tables import (
    H100_BF16_FLOPS,
    MINUTE,
    roster_table,
    row,
    row_table,
    slot,
    slot_table,
)
from flopwatch_collector.ledger.account import account
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import Heard, Window, rosters_of, rows_of, seats_of
from flopwatch_collector.ledger.lines import CLOCK_REASONS, SPLIT_SUMS
from flopwatch_collector.ledger.rework import SAME_RESTART_MS, restarts
from flopwatch_collector.ledger.sheet import Sheet, joined, sheet_of_lines
from flopwatch_collector.ledger.waterfall import dtype_ratios, waterfall
from flopwatch_proto.rows import Bucket

QUIET: dict[str, Any] = dict.fromkeys((f"throttled_{reason}_ms" for reason in CLOCK_REASONS), 0.0)
WORKED: dict[str, Any] = {"sm": 0.90, "tensor": 0.45, "clock": 1650 / 1830}
NVLINK_H100 = 450e9


def lines(rows: Sequence[Mapping[str, Any]], slots: int = 1) -> Lines:
    seats = seats_of(slot_table([slot(name=f"s{i}") for i in range(slots)]))
    return account(
        Window(start=0, end=MINUTE),
        now_unix_ms=MINUTE,
        seats=seats,
        rows=rows_of(row_table(rows), seats),
        rosters=rosters_of(roster_table([]), seats),
        heard=Heard.nothing(seats),
    )


def sheet(rows: Sequence[Mapping[str, Any]], slots: int = 1) -> Sheet:
    return sheet_of_lines(lines(rows, slots))


def minute(**more: Any) -> list[dict[str, Any]]:
    return [row(t, **more) for t in range(0, MINUTE, 10_000)]


def steps(made: Sheet, *args: Any) -> dict[str, dict[str, Any]]:
    return {s["step"]: s for s in waterfall(made, *args)}


def parts(step: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in step["parts"]}


def seconds(step: Mapping[str, Any]) -> dict[str, float | None]:
    return {p["name"]: p["card_seconds"] for p in step["parts"]}


def test_the_clock_step_is_shared_by_throttled_time_and_the_rest_was_asked_for() -> None:
    held = QUIET | {"throttled_power_ms": 6_000.0, "throttled_thermal_sw_ms": 2_000.0}
    clock = steps(sheet(minute(**WORKED, **held)))["clock"]
    whole = 60 * 0.9 * (1 - 1650 / 1830)
    assert clock["card_seconds"] == pytest.approx(whole)
    found = seconds(clock)
    assert found["power"] == pytest.approx(0.6 * whole)
    assert found["thermal_sw"] == pytest.approx(0.2 * whole)
    assert found["application"] == pytest.approx(0.2 * whole)
    assert found["power_brake"] == found["boost"] == found["unknown"] == 0
    assert not any(p["bounded"] for p in clock["parts"])


def test_reasons_that_overlap_share_the_deficit_by_their_ratio() -> None:
    held = QUIET | {"throttled_power_ms": 9_000.0, "throttled_thermal_hw_ms": 9_000.0}
    clock = steps(sheet(minute(**WORKED, **held)))["clock"]
    found = seconds(clock)
    assert found["power"] == found["thermal_hw"] == pytest.approx(clock["card_seconds"] / 2)
    assert found["application"] == pytest.approx(0, abs=1e-9)


def test_boost_keeps_its_sign_and_is_not_split() -> None:
    held = QUIET | {"throttled_power_ms": 5_000.0}
    fast = minute(sm=0.9, tensor=0.5, clock=1.05, **held)
    slow = minute(sm=0.9, tensor=0.5, clock=0.9, name="s1", **held)
    clock = steps(sheet([*fast, *slow], slots=2))["clock"]
    found = seconds(clock)
    assert found["boost"] == pytest.approx(-60 * 0.9 * 0.05)
    assert found["power"] == pytest.approx(60 * 0.9 * 0.1 / 2)
    assert sum(v or 0 for v in found.values()) == pytest.approx(clock["card_seconds"], abs=1e-9)


def test_without_counters_of_reasons_the_deficit_is_of_unknown_cause() -> None:
    clock = steps(sheet(minute(**WORKED)))["clock"]
    found = seconds(clock)
    assert found["unknown"] == pytest.approx(clock["card_seconds"])
    assert found["power"] is None
    assert found["application"] is None
    held = {k: v for k, v in QUIET.items() if k != "throttled_sync_boost_ms"}
    found = seconds(
        steps(sheet(minute(**WORKED, **held | {"throttled_power_ms": 5_000.0})))["clock"]
    )
    assert found["power"] == found["unknown"] == pytest.approx(clock["card_seconds"] / 2)
    assert found["sync_boost"] is None
    assert found["application"] is None


def test_the_worked_vector_bounds_memory_and_links() -> None:
    moved = NVLINK_H100 * 10 * 0.6
    made = sheet(
        minute(**WORKED, dram_active_ms=5_520.0, nvlink_tx_bytes=moved, nvlink_rx_bytes=moved / 2)
    )
    gap = steps(made)["tensor_gap"]
    assert gap["share"] == pytest.approx(0.40574, abs=5e-6)
    found = parts(gap)
    scale = 60 * 1650 / 1830
    # D = 0.552 / 0.92 = 0.6, N = 0.6, A = 0.45, S = 0.9
    assert found["memory"]["lo"] == pytest.approx(0.15 * scale)
    assert found["memory"]["hi"] == pytest.approx(0.45 * scale)
    assert found["memory"]["card_seconds"] == pytest.approx(0.30 * scale)
    assert found["link"]["lo"] == pytest.approx(0, abs=1e-9)
    assert found["link"]["hi"] == pytest.approx(0.45 * scale)
    assert found["other"]["lo"] == 0
    assert found["other"]["hi"] == pytest.approx(0.30 * scale)
    assert all(p["bounded"] for p in gap["parts"])


def test_a_quiet_memory_and_a_quiet_link_leave_the_gap_to_neither() -> None:
    still: dict[str, Any] = dict.fromkeys(
        ("nvlink_tx_bytes", "nvlink_rx_bytes", "pcie_tx_bytes"), 0.0
    )
    gap = steps(sheet(minute(**WORKED, dram_active_ms=0.0, **still)))["tensor_gap"]
    other = parts(gap)["other"]
    assert other["lo"] == other["hi"] == pytest.approx(gap["card_seconds"])
    assert parts(gap)["memory"]["hi"] == 0


def test_bounds_that_say_nothing_have_no_middle() -> None:
    gap = steps(sheet(minute(**WORKED)))["tensor_gap"]
    for part in gap["parts"]:
        assert part["card_seconds"] is None
        assert part["lo"] == 0
        assert part["hi"] == pytest.approx(gap["card_seconds"])
    strange = minute(**WORKED, sku="NVIDIA X9", nvlink_tx_bytes=1e12)
    assert parts(steps(sheet(strange))["tensor_gap"])["link"]["card_seconds"] is None


def test_lines_of_before_the_splits_are_unknown_and_never_zero() -> None:
    held = QUIET | {"throttled_power_ms": 10_000.0}
    new = sheet(minute(**WORKED, **held, dram_active_ms=9_200.0))
    old = sheet(minute(**WORKED))
    for name in SPLIT_SUMS:
        old.sums[name] = np.full_like(old.sums[name], np.nan)
    both = steps(joined([new, old]))
    found = seconds(both["clock"])
    assert found["power"] == found["unknown"] == pytest.approx(both["clock"]["card_seconds"] / 2)
    memory = parts(both["tensor_gap"])["memory"]
    assert memory["lo"] == pytest.approx(both["tensor_gap"]["card_seconds"] / 2)
    assert memory["hi"] == pytest.approx(both["tensor_gap"]["card_seconds"])


def test_evaluation_and_checkpoints_are_taken_out_of_what_was_done() -> None:
    model: dict[str, Any] = {"model_flops": 0.36 * H100_BF16_FLOPS * 10}
    rows = [
        *(row(t, sm=0.9, tensor=0.43, phase="steady", **model) for t in range(0, 40_000, 10_000)),
        row(40_000, sm=0.9, tensor=0.43, phase="eval"),
        row(50_000, sm=0.3, tensor=0.01, phase="checkpoint", **model),
    ]
    found = steps(sheet(rows))
    assert found["eval_checkpoint"]["card_seconds"] == pytest.approx(10 * (0.43 + 0.36))
    assert seconds(found["eval_checkpoint"]) == {
        "eval": pytest.approx(4.3),
        "checkpoint": pytest.approx(3.6),
    }
    assert found["model_flops"]["card_seconds"] == pytest.approx(40 * 0.36)
    assert found["hardware_flops"]["card_seconds"] == 0
    assert sum(s["share"] or 0 for s in found.values()) == pytest.approx(1, abs=1e-9)
    steady = minute(sm=0.9, tensor=0.43, phase="steady")
    assert steps(sheet(steady))["eval_checkpoint"]["share"] == 0
    unsaid = sheet([*steady, *minute(sm=0.9, tensor=0.43, name="s1")], slots=2)
    assert steps(unsaid)["eval_checkpoint"]["share"] is None
    silent = steps(sheet(minute(sm=0.9, tensor=0.43)))
    assert silent["eval_checkpoint"]["share"] is None
    assert silent["rework"]["share"] is None


def test_steps_lost_by_a_restart_are_rework_of_their_job() -> None:
    rows = [
        *minute(sm=0.9, tensor=0.4, job="a", steps_count=5.0),
        *minute(sm=0.9, tensor=0.4, job="b", steps_count=5.0, name="s1"),
    ]
    made = sheet(rows, slots=2)
    found = steps(made, {"a": 12.0})
    assert found["rework"]["card_seconds"] == pytest.approx(60 * 0.4 * 12 / 30)
    assert found["hardware_flops"]["card_seconds"] == pytest.approx(48 - 60 * 0.4 * 12 / 30)
    assert steps(made, {"a": 1e9})["rework"]["card_seconds"] == pytest.approx(24)
    assert steps(made)["rework"]["card_seconds"] == 0


def test_what_many_nodes_say_of_one_restart_counts_once() -> None:
    def event(at: int, lost: str, job: str = "a") -> dict[str, Any]:
        return {"job": job, "time_unix_ms": at, "text": f"started again at step 5: {lost}"}

    far = 3 * SAME_RESTART_MS
    told = [
        event(0, "7 steps lost"),
        event(1_000, "9 steps lost"),
        event(2_000, "1 step lost", "b"),
        event(3_000, "how many steps are lost is not known", "c"),
        event(far, "4 steps lost"),
    ]
    assert restarts(told) == [("a", 0, 9), ("b", 2_000, 1), ("a", far, 4)]


def test_a_reference_dtype_makes_its_advantage_a_step_of_its_own() -> None:
    made = sheet(minute(sm=0.9, tensor=0.4, model_flops=0.36 * H100_BF16_FLOPS * 10))
    found = steps(made, {}, dtype_ratios(made, "fp8"))
    assert found["dtype"]["card_seconds"] == pytest.approx(60 * 0.4 / 2, rel=1e-3)
    assert found["model_flops"]["card_seconds"] == pytest.approx(60 * 0.36 / 2, rel=1e-3)
    assert found["model_flops"]["flops"] == pytest.approx(60 * 0.36 * H100_BF16_FLOPS, rel=1e-6)
    assert sum(s["share"] or 0 for s in found.values()) == pytest.approx(1, abs=1e-9)
    assert steps(made)["dtype"]["share"] is None


def test_declaring_more_than_was_run_raises_the_disagreement() -> None:
    for declared, disagrees in ((0.38, False), (0.405, False), (0.42, True)):
        rows = minute(sm=0.9, tensor=0.4, model_flops=declared * H100_BF16_FLOPS * 10)
        assert steps(sheet(rows))["recompute"]["disagreement"] is disagrees


def test_a_card_without_a_reference_clock_has_no_clock_step_beside_free_cards() -> None:
    bound = 0.5 * H100_BF16_FLOPS * 10
    rows = minute(sm=0.9, tensor=0.5, counted_ms=0, u_flops=None, sm_active_clock_ms=None,
                  tensor_active_clock_ms=None, u_lo_flops=0.8 * bound, u_hi_flops=bound)  # fmt: skip
    found = steps(sheet([*rows, *minute(bucket=Bucket.FREE, name="s1")], slots=2))
    assert found["clock"]["card_seconds"] is None
    assert found["clock"]["parts"] == []


_MAYBE = st.one_of(st.none(), st.floats(0, 1.2))
_ROWS = st.fixed_dictionaries(
    {
        "sm": _MAYBE,
        "tensor": _MAYBE,
        "clock": st.floats(0.5, 1.1),
        "phase": st.sampled_from(("", "steady", "eval", "checkpoint")),
        "bucket": st.sampled_from((Bucket.ACTIVE, Bucket.IDLE_ALLOC, Bucket.FREE)),
        "dram_active_ms": st.one_of(st.none(), st.floats(0, 10_000)),
        "nvlink_tx_bytes": st.one_of(st.none(), st.floats(0, 6e12)),
        "model_flops": st.one_of(st.none(), st.floats(0, 9e15)),
        "steps_count": st.one_of(st.none(), st.floats(0, 50)),
        **{name: st.one_of(st.none(), st.floats(0, 10_000)) for name in QUIET},
    }
)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(_ROWS, min_size=1, max_size=12), lost=st.floats(0, 300), fp8=st.booleans())
def test_splits_add_up_whatever_is_known(
    rows: list[dict[str, Any]], lost: float, fp8: bool
) -> None:
    placed = [
        row(10_000 * (i % 6), job="a", name=f"s{i // 6}", **known) for i, known in enumerate(rows)
    ]
    made = sheet(placed, slots=2)
    ratios = dtype_ratios(made, "fp8" if fp8 else None)
    for found in (steps(made), steps(made, {"a": lost}, ratios)):
        assert sum(s["card_seconds"] or 0 for s in found.values()) == pytest.approx(
            120, rel=1e-9, abs=0
        )
        for name in ("clock", "eval_checkpoint"):
            if found[name]["parts"]:
                total = sum(v or 0 for v in seconds(found[name]).values())
                assert total == pytest.approx(found[name]["card_seconds"], abs=1e-9)
        for name, part in parts(found["clock"]).items():
            if part["card_seconds"] is not None and name not in ("boost", "unknown"):
                assert part["card_seconds"] >= 0
        whole = found["tensor_gap"]["card_seconds"]
        bounds = parts(found["tensor_gap"])
        for part in bounds.values():
            assert -1e-9 <= part["lo"] <= part["hi"] + 1e-9 <= whole + 2e-9
        if bounds:
            assert sum(p["lo"] for p in bounds.values()) <= whole + 1e-6
            assert sum(p["hi"] for p in bounds.values()) >= whole - 1e-6


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(_ROWS, min_size=1, max_size=12))
def test_splits_by_slot_and_summed_over_slots_are_the_same(rows: list[dict[str, Any]]) -> None:
    placed = [
        row(10_000 * (i % 6), job="a", name=f"s{i // 6}", **known) for i, known in enumerate(rows)
    ]
    fine = lines(placed, slots=2)
    coarse = sheet_of_lines(fine.without_slots())
    for name in SPLIT_SUMS:
        assert coarse.sum(name) == pytest.approx(sheet_of_lines(fine).sum(name))

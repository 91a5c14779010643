"""Readings become interval rows: sums, edges, silence, clocks and shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_proto.codec import IntervalRow, Value, encode_rows
from flopwatch_proto.rows import Absence, Bucket

H100 = "NVIDIA H100 80GB HBM3"
NOON = 1_793_534_400_000  # a multiple of ten seconds
ACTIVE = Share(bucket=Bucket.ACTIVE, job="llama", team="pre", source="processes")
FREE = Share(bucket=Bucket.FREE)
CARD = Device(slot="0000:18:00.0", kind="gpu", sku=H100, uuid="GPU-1", serial="1")
VECTOR: Mapping[str, Value] = {
    "sm_active_ratio": 0.90,
    "tensor_active_ratio": 0.45,
    "sm_clock_mhz": 1650.0,
    "imma_active_ratio": 0.0,
    "dfma_active_ratio": 0.0,
}


def reading(
    at_ms: int, values: Mapping[str, Value] = VECTOR, boot_ms: float | None = None, **more: Any
) -> Reading:
    """Return a reading `at_ms` after noon; the boot clock runs with the wall unless told."""
    boot = at_ms if boot_ms is None else boot_ms
    arguments: dict[str, Any] = {"device": CARD, "processes": (Process(pid=1),), **more}
    return Reading(
        taken_unix_ms=NOON + at_ms,
        boottime_ns=int((boot + 1_000_000) * 1e6),
        values=values,
        **arguments,
    )


def total(rows: Sequence[IntervalRow], name: str) -> float:
    """Return the sum of a quantity over the rows that have a value for it."""
    found = [row.values[name] for row in rows if name in row.values]
    return sum(value for value in found if not isinstance(value, Absence))


def run(readings: Sequence[Reading], shares: Sequence[Share], **fold: Any) -> list[IntervalRow]:
    """Return every row of the readings, the last one closed."""
    folder = Fold(**fold)
    rows = [row for item in readings for row in folder.add(item, shares)]
    return rows + folder.close(readings[-1].taken_unix_ms)


def test_the_worked_vector_of_an_h100_minute_comes_out_of_the_sums() -> None:
    rows = run([reading(1000 * i) for i in range(61)], [ACTIVE])
    assert [row.start_unix_ms for row in rows] == [NOON + 10_000 * i for i in range(6)]
    card = sum(row.card_times["card_ms"] for row in rows)
    assert card == sum(row.card_times["counted_ms"] for row in rows) == 60_000
    sm, tensor = total(rows, "sm_active_ms"), total(rows, "tensor_active_ms")
    sm_clock, u = total(rows, "sm_active_clock_ms"), total(rows, "tensor_active_clock_ms")
    assert (card - sm) / card == pytest.approx(0.1)
    assert (sm - sm_clock) / card == pytest.approx(0.08852, abs=5e-6)
    assert (sm_clock - u) / card == pytest.approx(0.40574, abs=5e-6)
    assert u / card == pytest.approx(0.40574, abs=5e-6)
    assert tensor / card == pytest.approx(0.45)
    assert total(rows, "u_flops") / 60 == pytest.approx(401.4e12, rel=2e-4)
    assert total(rows, "u_flops") / total(rows, "capacity_flops") == pytest.approx(u / card)
    assert total(rows, "u_lo_flops") == total(rows, "u_hi_flops") == total(rows, "u_flops")
    assert {row.texts["efficiency_method"] for row in rows} == {"gpm"}


def test_flops_of_an_undeclared_dtype_lie_between_the_slowest_and_the_fastest_that_fit() -> None:
    rows = run([reading(0), reading(10_000)], [ACTIVE])
    u = total(rows, "u_flops")
    assert total(rows, "hardware_lo_flops") == pytest.approx(u / 2, rel=1e-3)  # tf32
    assert total(rows, "hardware_hi_flops") == pytest.approx(u * 2, rel=1e-3)  # fp8
    told = run([reading(0), reading(10_000)], [replace(ACTIVE, dtype="fp8")])
    assert total(told, "hardware_lo_flops") == total(told, "hardware_hi_flops")
    assert total(told, "hardware_lo_flops") == pytest.approx(u * 2, rel=1e-3)
    assert told[0].texts["dtype_confidence"] == "declared"


def test_what_runs_on_the_integer_pipe_is_int8_and_has_one_rate() -> None:
    values = {**VECTOR, "imma_active_ratio": 0.45}
    rows = run([reading(0), reading(10_000, values)], [ACTIVE])
    assert total(rows, "hardware_lo_flops") == pytest.approx(total(rows, "hardware_hi_flops"))
    assert total(rows, "hardware_hi_flops") == pytest.approx(2 * total(rows, "u_flops"), rel=1e-3)


def test_a_declared_dtype_that_the_card_has_no_peak_for_is_not_believed() -> None:
    rows = run([reading(0), reading(10_000)], [replace(ACTIVE, dtype="fp4")])
    assert (rows[0].texts["dtype"], rows[0].texts["dtype_confidence"]) == ("bf16", "cluster")


def test_without_a_reference_clock_u_is_bounded_and_the_clock_step_is_absent() -> None:
    card = replace(CARD, sku="NVIDIA B300 SXM6 AC", clock_mhz_max=2000.0)
    rows = run([reading(0, device=card), reading(10_000, device=card)], [ACTIVE])
    (row,) = rows
    capacity = total(rows, "capacity_flops")
    assert capacity > 0
    assert "u_flops" not in row.values
    assert "sm_active_clock_ms" not in row.values
    assert total(rows, "u_hi_flops") == pytest.approx(0.45 * capacity)
    assert total(rows, "u_lo_flops") == pytest.approx(0.45 * capacity * 1650 / 2000)
    assert row.card_times["counted_ms"] == 0  # nothing exact to divide by
    assert row.texts["efficiency_method"] == "gpm"


def test_an_unknown_card_counts_in_card_time_and_activity_but_has_no_capacity() -> None:
    card = replace(CARD, sku="NVIDIA X900")
    (row,) = run([reading(0, device=card), reading(10_000, device=card)], [ACTIVE])
    assert row.card_times["card_ms"] == 10_000
    assert row.values["sm_active_ms"] == pytest.approx(9000)
    assert not {"capacity_flops", "u_flops", "u_hi_flops"} & set(row.values)


def test_a_processor_has_no_datasheet_peak_but_its_measured_ceiling_counts() -> None:
    card = Device(slot="cpu", kind="cpu", sku="EPYC 9654")
    share = replace(ACTIVE, dtype="fp32", model_flops_total=0.0)
    fold = Fold(achievable={("cpu", "fp32"): 2e12})
    fold.add(reading(0, {}, device=card), [share])
    (row,) = fold.add(reading(10_000, {}, device=card), [replace(share, model_flops_total=5e12)])
    assert row.values["achievable_flops"] == pytest.approx(2e13)
    assert row.values["model_flops"] == pytest.approx(5e12)
    assert row.texts["efficiency_method"] == "declared"
    assert "capacity_flops" not in row.values


def test_counters_count_by_difference_and_a_fall_is_a_restart() -> None:
    energies = [100.0, 800.0, 50.0, 750.0]
    readings = [
        reading(2500 * i, {"energy_joules_total": joules}) for i, joules in enumerate(energies)
    ]
    rows = run(readings, [ACTIVE])
    assert total(rows, "energy_joules") == pytest.approx(1400.0)


def test_a_row_is_cut_where_the_job_changes_and_the_change_holds_from_its_reading_on() -> None:
    fold = Fold()
    assert fold.add(reading(3000), [FREE]) == []
    (free,) = fold.add(reading(7000), [ACTIVE])
    (active,) = fold.add(reading(12_000), [ACTIVE])
    assert (free.start_unix_ms, free.duration_ms, free.bucket) == (NOON + 3000, 4000, Bucket.FREE)
    assert (active.start_unix_ms, active.duration_ms) == (NOON + 7000, 3000)
    (last,) = fold.close(NOON + 12_000)
    assert (last.start_unix_ms, last.duration_ms) == (NOON + 10_000, 2000)
    assert fold.close(NOON + 60_000) == []


def test_a_shared_card_has_one_row_per_share_that_add_up_to_it_exactly() -> None:
    shares = [replace(ACTIVE, job=job, weight=1 / 3) for job in "abc"]
    rows = run([reading(0), reading(10_000)], shares)
    assert sorted(row.card_times["card_ms"] for row in rows) == [3333, 3333, 3334]
    assert total(rows, "sm_active_ms") == pytest.approx(9000)
    assert {row.duration_ms for row in rows} == {10_000}


def test_what_the_shares_leave_of_a_card_is_free_and_keys_stay_distinct() -> None:
    rows = run([reading(0), reading(10_000)], [replace(ACTIVE, job=None, weight=0.25)])
    assert [(row.bucket, row.card_times["card_ms"]) for row in rows] == [
        (Bucket.ACTIVE, 2500),
        (Bucket.FREE, 7500),
    ]
    assert len({(row.texts["job"], row.texts["instance"]) for row in rows}) == 2


def test_no_shares_mean_one_free_row() -> None:
    (row,) = run([reading(0, processes=()), reading(10_000, processes=())], [])
    assert (row.bucket, row.weight, row.card_times["resident_ms"]) == (Bucket.FREE, 1.0, 0)


def test_a_quantity_takes_its_value_from_the_parts_that_had_one() -> None:
    fold = Fold()
    fold.add(reading(0), [ACTIVE])
    fold.add(reading(4000), [ACTIVE])
    (row,) = fold.add(reading(10_000, {**VECTOR, "tensor_active_ratio": Absence.FAILED}), [ACTIVE])
    assert row.card_times["counted_ms"] == 4000
    assert row.card_times["covered_ms"] == 10_000
    assert row.values["tensor_active_ms"] == pytest.approx(1800)
    assert row.values["sm_active_ms"] == pytest.approx(3600)  # of the counted time only
    assert row.values["sm_clock_mhz_seconds"] == pytest.approx(16_500)


def test_an_absence_says_whether_the_card_lacks_it_or_reading_failed() -> None:
    values: dict[str, Value] = {
        "sm_active_ratio": Absence.NOT_SUPPORTED,
        "dram_active_ratio": Absence.FAILED,
        "fp16_active_ratio": math.nan,
    }
    (row,) = run([reading(0, values), reading(10_000, values)], [ACTIVE])
    assert row.values["sm_active_ms"] is Absence.NOT_SUPPORTED
    assert row.values["dram_active_ms"] is Absence.FAILED
    assert row.values["fp16_active_ms"] is Absence.FAILED
    assert row.values["u_flops"] is Absence.NOT_SUPPORTED
    assert "hmma_active_ms" not in row.values
    assert row.texts["efficiency_method"] == "none"


def test_a_silent_driver_leaves_the_last_bucket_for_30_s_then_the_slot_is_failed() -> None:
    fold = Fold()
    rows = fold.add(reading(0), [ACTIVE])
    for second in range(1, 62):
        silent = reading(1000 * second, {}, alive=False, failure="unresponsive", processes=None)
        rows += fold.add(silent, [])
    rows += fold.close(NOON + 61_000)
    assert [(row.bucket, row.duration_ms) for row in rows] == [
        (Bucket.ACTIVE, 10_000),
        (Bucket.ACTIVE, 10_000),
        (Bucket.ACTIVE, 10_000),
        (Bucket.ACTIVE, 1000),
        (Bucket.FAILED, 9000),
        (Bucket.FAILED, 10_000),
        (Bucket.FAILED, 10_000),
        (Bucket.FAILED, 1000),
    ]
    assert {row.card_times["covered_ms"] for row in rows} == {0}
    assert rows[-1].values["tensor_active_ms"] is Absence.FAILED


def test_the_time_from_a_silence_to_the_next_answer_was_not_watched() -> None:
    fold = Fold()
    fold.add(reading(0, {"energy_joules_total": 0.0}), [ACTIVE])
    fold.add(reading(4000, {}, alive=False, failure="unresponsive", processes=None), [ACTIVE])
    fold.add(reading(6000, {"energy_joules_total": 600.0}), [ACTIVE])
    (row,) = fold.add(reading(10_000, {"energy_joules_total": 1000.0}), [ACTIVE])
    # The energy of the 4 s that were watched, and of no other.
    assert (row.card_times["covered_ms"], row.values["energy_joules"]) == (4000, 400.0)


def test_a_lost_card_is_failed_at_once() -> None:
    fold = Fold()
    fold.add(reading(0), [ACTIVE])
    fold.add(reading(1000, {}, alive=False, failure="gpu_is_lost", processes=None), [])
    (row,) = fold.add(reading(10_000), [FREE])
    assert (row.bucket, row.start_unix_ms) == (Bucket.FAILED, NOON + 1000)


def test_silence_longer_than_the_limit_is_a_hole_and_not_data() -> None:
    fold = Fold()
    fold.add(reading(0), [ACTIVE])
    fold.add(reading(2000), [ACTIVE])
    (before,) = fold.add(reading(60_000), [ACTIVE])
    (after,) = fold.add(reading(70_000), [ACTIVE])
    assert (before.start_unix_ms, before.duration_ms) == (NOON, 2000)
    assert (after.start_unix_ms, after.duration_ms) == (NOON + 60_000, 10_000)
    assert not fold.steps


def test_time_that_a_clock_stepping_back_repeats_is_skipped_and_reported() -> None:
    fold = Fold()
    rows = fold.add(reading(0), [ACTIVE])
    rows += fold.add(reading(8000), [ACTIVE])
    rows += fold.add(reading(4000, boot_ms=9000), [ACTIVE])  # five seconds back
    rows += fold.add(reading(6000, boot_ms=11_000), [ACTIVE])
    rows += fold.add(reading(10_000, boot_ms=15_000), [ACTIVE])
    assert [(row.start_unix_ms, row.duration_ms) for row in rows] == [(NOON, 10_000)]
    assert rows[0].values["sm_active_ms"] == pytest.approx(9000)
    (step,) = fold.steps
    assert (step.before_unix_ms, step.after_unix_ms) == (NOON + 8000, NOON + 4000)
    assert (step.elapsed_ms, fold.steps_total) == (1000.0, 1)


def test_a_clock_jumping_forward_makes_no_card_time() -> None:
    fold = Fold()
    fold.add(reading(0), [ACTIVE])
    (row,) = fold.add(reading(9000, boot_ms=1000), [ACTIVE])
    assert (row.start_unix_ms, row.duration_ms) == (NOON, 1000)
    (after,) = fold.add(reading(10_000, boot_ms=2000), [ACTIVE])
    assert (after.start_unix_ms, after.duration_ms) == (NOON + 9000, 1000)
    assert len(fold.steps) == 1


def test_after_a_restart_no_row_starts_before_the_end_of_the_last() -> None:
    fold = Fold(resume_unix_ms=NOON + 5000)
    fold.add(reading(2000), [ACTIVE])
    assert fold.add(reading(4000), [ACTIVE]) == []
    (row,) = fold.add(reading(10_000), [ACTIVE])
    assert (row.start_unix_ms, row.duration_ms) == (NOON + 5000, 5000)


def test_a_clock_that_was_hours_ahead_does_not_silence_the_slot_for_hours() -> None:
    year_ms = 365 * 86_400_000
    fold = Fold(resume_unix_ms=NOON + year_ms)
    fold.add(reading(0), [ACTIVE])
    (row,) = fold.add(reading(10_000), [ACTIVE])
    assert (row.start_unix_ms, row.duration_ms) == (NOON, 10_000)
    fold.add(reading(year_ms, boot_ms=11_000), [ACTIVE])
    (ahead,) = fold.add(reading(year_ms + 10_000, boot_ms=21_000), [ACTIVE])
    assert ahead.start_unix_ms == NOON + year_ms
    fold.add(reading(20_000, boot_ms=22_000), [ACTIVE])
    (back,) = fold.add(reading(30_000, boot_ms=32_000), [ACTIVE])
    assert (back.start_unix_ms, back.duration_ms) == (NOON + 20_000, 10_000)
    assert fold.steps_total == 2


def test_suspended_time_is_a_hole_and_no_step_of_the_clock() -> None:
    fold = Fold()
    fold.add(reading(0), [ACTIVE])
    fold.add(reading(1000), [ACTIVE])
    # An hour of suspend: CLOCK_BOOTTIME counts it, as the wall does.
    rows = fold.add(reading(3_601_000), [ACTIVE])
    rows += fold.add(reading(3_602_000), [ACTIVE])
    assert [(row.start_unix_ms, row.duration_ms) for row in rows] == [(NOON, 1000)]
    assert not fold.steps


def test_a_released_card_keeps_its_holder_and_is_not_failed() -> None:
    fold = Fold()
    fold.add(reading(0), [ACTIVE])
    released = replace(reading(5000), alive=False, values={}, failure="released")
    rows = fold.add(released, [ACTIVE])
    for second in range(6, 121):
        dark = replace(released, taken_unix_ms=NOON + second * 1000)
        rows += fold.add(replace(dark, boottime_ns=reading(second * 1000).boottime_ns), [ACTIVE])
    assert {row.bucket for row in rows} == {Bucket.ACTIVE}
    assert rows[-1].card_times["covered_ms"] == 0


def test_a_swapped_card_starts_its_own_row_and_counters_do_not_cross() -> None:
    fold = Fold()
    fold.add(reading(0, {"energy_joules_total": 5.0}), [FREE])
    other = replace(CARD, uuid="GPU-2", serial="2")
    (old,) = fold.add(reading(4000, {"energy_joules_total": 900.0}, device=other), [FREE])
    (new,) = fold.add(reading(10_000, {"energy_joules_total": 960.0}, device=other), [FREE])
    assert old.texts["device_uuid"] == "GPU-1"
    assert "energy_joules" not in old.values or isinstance(old.values["energy_joules"], Absence)
    assert (new.texts["device_uuid"], new.values["energy_joules"]) == ("GPU-2", 60.0)


def test_declared_flops_are_differences_and_the_last_one_may_come_with_the_end() -> None:
    fold = Fold()
    fold.add(reading(0), [replace(ACTIVE, model_flops_total=1e15)])
    fold.add(reading(4000), [replace(ACTIVE, model_flops_total=3e15)])
    (row,) = fold.add(reading(8000), [FREE], {("llama", None): {"model_flops": 6e15}})
    assert row.values["model_flops"] == pytest.approx(5e15)


def test_a_gauge_keeps_its_maximum_and_is_not_divided() -> None:
    shares = [replace(ACTIVE, job=job, weight=0.5) for job in "ab"]
    fold = Fold()
    fold.add(reading(0, {"power_watts": 100.0}), shares)
    fold.add(reading(5000, {"power_watts": 640.0}), shares)
    rows = fold.add(reading(10_000, {"power_watts": 300.0}), shares)
    assert [row.values["power_watts_max"] for row in rows] == [640.0, 640.0]


RATIOS = ("sm_active_ratio", "tensor_active_ratio", "imma_active_ratio", "dfma_active_ratio")
ANY_VALUE: st.SearchStrategy[Any] = st.one_of(st.floats(), st.sampled_from(Absence))
GOOD_RATIO: st.SearchStrategy[Any] = st.one_of(st.floats(0, 1), st.sampled_from(Absence))
VALUES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(RATIOS, GOOD_RATIO),
        "sm_clock_mhz": st.one_of(st.floats(0, 3000), ANY_VALUE),
        "pcie_tx_bytes_per_second": ANY_VALUE,
        "energy_joules_total": ANY_VALUE,
        "power_watts": ANY_VALUE,
        "fp16_active_ratio": ANY_VALUE,
    },
)
SHARES = st.lists(
    st.builds(
        Share,
        bucket=st.sampled_from([Bucket.ACTIVE, Bucket.FREE, Bucket.IDLE_ALLOC]),
        weight=st.floats(0.01, 1.0),
        job=st.sampled_from([None, "a", "b"]),
        model_flops_total=st.one_of(st.none(), st.floats(0, 1e25)),
    ),
    max_size=3,
)
WALKS = st.lists(
    st.tuples(st.integers(-20_000, 45_000), st.integers(1, 45_000), VALUES, SHARES),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(WALKS)
def test_rows_never_overlap_never_hold_nonsense_and_a_cards_rows_add_up(walk: Any) -> None:
    fold, wall_ms, boot_ms, rows = Fold(), 100_000, 0, []
    for wall_step, boot_step, values, shares in walk:
        wall_ms, boot_ms = max(0, wall_ms + wall_step), boot_ms + boot_step
        rows += fold.add(reading(wall_ms, values, boot_ms), shares)
    rows += fold.close(NOON + 10**9)
    encode_rows(rows)
    spans: dict[tuple[int, int], int] = {}
    for row in rows:
        span = (row.start_unix_ms, row.start_unix_ms + row.duration_ms)
        spans[span] = spans.get(span, 0) + row.card_times["card_ms"]
        assert row.start_unix_ms // 10_000 == (span[1] - 1) // 10_000
        assert 0 < row.weight <= 1
        for value in row.values.values():
            assert isinstance(value, Absence) or math.isfinite(value)
        if row.card_times["counted_ms"]:
            assert row.values["sm_active_ms"] >= row.values["tensor_active_ms"]
    ordered = sorted(spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ordered))
    assert all(card_ms == end - start for (start, end), card_ms in spans.items())
    keys = [(r.start_unix_ms, r.texts["job"], r.texts["instance"]) for r in rows]
    assert len(keys) == len(set(keys))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 59_999), max_size=30, unique=True))
def test_constant_values_give_the_same_sums_however_often_one_reads(edges: list[int]) -> None:
    chopped = run([reading(at) for at in [0, *sorted(edges), 60_000]], [ACTIVE], gap_ms_max=10**6)
    whole = run([reading(0), reading(60_000)], [ACTIVE], gap_ms_max=10**6)
    assert [(r.start_unix_ms, r.duration_ms) for r in chopped] == [
        (r.start_unix_ms, r.duration_ms) for r in whole
    ]
    for name in ("sm_active_ms", "u_flops", "tensor_active_clock_ms", "hardware_hi_flops"):
        assert total(chopped, name) == pytest.approx(total(whole, name), rel=1e-9)

"""Counters, declaration and probes of a job side by side: what does not fit is named, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evidence_tables import MINUTE, roster_table, row, row_table, slot, slot_table
from flopwatch_collector.ledger.account import account
from flopwatch_collector.ledger.evidence import Heard, Window, rosters_of, rows_of, seats_of
from flopwatch_collector.ledger.reconcile import Card, Flag, Told, reconcile, sides_of
from flopwatch_collector.ledger.sheet import Sheet, joined, sheet_of_lines
from flopwatch_collector.ledger.suspects import peak_used
from flopwatch_kernels import peaks
from flopwatch_kernels.flops import ModelShape, train_flops_per_token

H100 = "NVIDIA H100 80GB HBM3"
PARAMETERS = 70e9


def job(
    hfu: float | None = 0.45,
    mfu: float | None = 0.40,
    *,
    dtype: str = "bf16",
    reported: float | None = None,
    ceiling: float | None = None,
    step_share: float | None = None,
    **more: Any,
) -> Sheet:
    """Return a minute of one card of a job."""
    peak = peaks.peak_flops(H100, dtype) or 0.0
    known: dict[str, Any] = {"dtype": dtype, "peak": peak, "job": "j", "phase": "steady"}
    if hfu is not None:
        known |= {"sm": 0.95, "tensor": hfu}
    if mfu is not None:
        known["model_flops"] = mfu * peak * 10
    if reported is not None:
        known |= {"reported_mfu_ms": reported * 10_000, "reported_ms": 10_000.0}
    if ceiling is not None:
        known["achievable_flops"] = ceiling * peak * 10
    if step_share is not None:
        known |= {"step_ms": step_share * 10_000, "steps_count": 2.0}
    seats = seats_of(slot_table([slot()]))
    rows = [row(t, **known | more) for t in range(0, MINUTE, 10_000)]
    return sheet_of_lines(
        account(
            Window(start=0, end=MINUTE),
            now_unix_ms=MINUTE,
            seats=seats,
            rows=rows_of(row_table(rows), seats),
            rosters=rosters_of(roster_table([]), seats),
            heard=Heard.nothing(seats),
        )
    )


def codes(flags: list[Flag]) -> list[str]:
    return [flag.code for flag in flags]


def flag(sheet: Sheet, code: str, cards: Sequence[Card] = (), **told: Any) -> Flag:
    found = {f.code: f for f in reconcile(sheet, cards, Told(**told))}
    assert code in found, sorted(found)
    assert found[code].words
    assert found[code].next_step
    return found[code]


def test_an_honest_job_raises_nothing() -> None:
    for hfu, mfu in ((0.40, 0.40), (0.41, 0.415), (0.45, 0.40), (0.53, 0.40)):
        sheet = job(hfu, mfu, reported=mfu, ceiling=0.80, step_share=1.0)
        assert reconcile(sheet, told=Told(parameters=PARAMETERS)) == []
    sides = sides_of(job(0.45, 0.40, reported=0.42, ceiling=0.8, step_share=0.9))
    found = [sides.hfu, sides.mfu, sides.reported, sides.ceiling, sides.ratio, sides.step_share]
    assert found == pytest.approx([0.45, 0.40, 0.42, 0.8, 1.125, 0.9])


def test_a_job_that_says_nothing_raises_nothing() -> None:
    assert reconcile(job(None, None)) == []
    assert reconcile(job(0.5, None)) == []
    sides = sides_of(job(None, None))
    assert sides.mfu is None
    assert sides.hfu is None
    assert sides.ratio is None


def test_time_outside_training_is_left_out_of_the_ratio() -> None:
    steady, evaluation = job(0.45, 0.40), job(0.90, 0.01, phase="eval")
    sides = sides_of(joined([steady, evaluation]))
    assert sides.ratio == pytest.approx(1.125)
    assert sides.hfu == pytest.approx(0.675)


def test_more_declared_than_was_run_is_inconsistent() -> None:
    found = flag(job(0.36, 0.40), "declaration_inconsistent")
    assert found.figures["hfu_over_mfu"] == pytest.approx(0.9)
    assert "0.90" in found.words


def test_far_more_run_than_declared_suspects_operators_without_a_formula() -> None:
    sheet = job(0.60, 0.40)
    assert codes(reconcile(sheet)) == ["declaration_inconsistent", "zero_flop_operators"]
    assert codes(reconcile(sheet, told=Told(recompute="full"))) == ["declaration_inconsistent"]


def test_a_count_short_of_six_n_is_named_without_any_counter() -> None:
    peak = peaks.peak_flops(H100, "bf16") or 0.0
    tokens = 0.40 * peak * 10 / (0.8 * 6 * PARAMETERS)
    sheet = job(None, 0.40, tokens_count=tokens)
    found = flag(sheet, "zero_flop_operators", parameters=PARAMETERS)
    assert found.figures["counted_of_6n"] == pytest.approx(0.8)
    assert "zero_flop_operators" not in codes(reconcile(sheet))


def mlperf_gpt3() -> float:
    """Return the model FLOP/s per card of an MLPerf v4.0 GPT-3 175B run: 512 H100, 10.638 s a step, fp8."""
    shape = ModelShape(
        parameters=175e9,
        layers=96,
        attention_width=12_288,
        sequence_tokens=2_048,
    )
    return train_flops_per_token(shape) * 2_048 * 2_048 / 10.638 / 512


def test_the_mlperf_gpt3_run_is_41_percent_of_fp8_and_flagged_where_bf16_is_claimed() -> None:
    achieved = 819.7e12
    assert mlperf_gpt3() == pytest.approx(achieved, rel=1e-4)
    fp8, bf16 = (achieved / (peaks.peak_flops(H100, d) or 0.0) for d in ("fp8", "bf16"))
    assert fp8 == pytest.approx(0.414, abs=5e-4)
    assert bf16 == pytest.approx(0.828, abs=5e-4)
    assert reconcile(job(0.45, fp8, dtype="fp8")) == []
    claimed = flag(job(0.45, fp8, dtype="fp8"), "implausible_mfu", claimed_dtype="bf16")
    assert claimed.figures["claimed"] == pytest.approx(bf16, rel=1e-6)
    declared = flag(job(0.90, bf16), "implausible_mfu")
    assert "82.8 %" in declared.words
    assert "41.4 %" in declared.words
    assert declared.figures["of_fp8_peak"] == pytest.approx(fp8, rel=1e-3)


def test_an_mfu_above_the_measured_ceiling_is_named() -> None:
    found = flag(job(0.70, 0.60, ceiling=0.50), "above_ceiling")
    assert found.figures["ceiling"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("peak", "words"),
    [
        (312e12, "A100"),
        (1979e12, "sparse"),
        (756.4e12, "H100-PCIe"),
        (835.5e12, "H100-NVL"),
    ],
)
def test_a_wrong_peak_is_named_by_its_ratio(peak: float, words: str) -> None:
    reported = 0.40 / 0.9 * 989.4e12 / peak
    found = flag(job(0.45, 0.40, reported=reported, step_share=0.9), "wrong_peak")
    assert words in found.words
    assert found.figures["peak_used_flops"] == pytest.approx(peak, rel=1e-3)


def test_a_job_that_counts_its_steps_alone_has_no_wrong_peak() -> None:
    for step_share in (0.5, 0.76, 0.9):
        sheet = job(0.45, 0.40, reported=0.40 / step_share, step_share=step_share)
        assert "wrong_peak" not in codes(reconcile(sheet))


def test_a_ratio_that_no_peak_explains_names_none() -> None:
    assert peak_used(H100, "bf16", 1.07) is None
    assert peak_used(H100, "bf16", 0.63) is None
    assert peak_used("NVIDIA X9", "bf16", 2.0) is None
    for sku in peaks.skus():
        for dtype in sku.peaks:
            assert peak_used(sku.name, dtype, 1.03) is None


def test_silent_counters_with_a_declaration_are_named() -> None:
    assert "no card has counters" in flag(job(None, 0.4), "counters_silent").words
    assert "0.0 %" in flag(job(0.0, 0.4), "counters_silent").words


def _cards(noise: float, spread: float = 0.0, rate: float | None = 1e5) -> list[Card]:
    dice = random.Random(3)
    return [
        Card(
            activity=[0.8 + spread * i + dice.gauss(0, noise) for _ in range(30)],
            link_bytes_per_second=rate,
        )
        for i in range(8)
    ]


def test_a_burn_in_looks_synthetic_and_training_does_not() -> None:
    sheet = job(0.8, None)
    found = flag(sheet, "synthetic_load", _cards(0.001))
    assert found.figures["activity"] == pytest.approx(0.8, abs=0.01)
    real: list[tuple[list[Card], Told]] = [
        (_cards(0.05), Told()),
        (_cards(0.001, spread=0.02), Told()),
        (_cards(0.001, rate=5e9), Told()),
        (_cards(0.001, rate=None), Told()),
        (_cards(0.001), Told(steps_told=True)),
        (_cards(0.001), Told(network_bytes_per_second=1e9)),
        ([], Told()),
        ([Card(activity=[0.0] * 30, link_bytes_per_second=0.0)], Told()),
        ([Card(activity=[0.8] * 5, link_bytes_per_second=0.0)], Told()),
    ]
    for cards, told in real:
        assert codes(reconcile(sheet, cards, told)) == []


def test_a_flag_survives_any_mixture_of_what_is_known() -> None:
    dice = np.random.default_rng(0)

    def maybe(high: float) -> float | None:
        return None if dice.random() < 0.3 else float(dice.random() * high)

    for _ in range(60):
        sheet = job(
            maybe(1.0), maybe(1.0), reported=maybe(2), ceiling=maybe(1), step_share=maybe(1)
        )
        for found in reconcile(sheet, told=Told(parameters=maybe(1e12))):
            assert found.words
            assert found.next_step
            assert all(v is None or isinstance(v, float | str) for v in found.figures.values())

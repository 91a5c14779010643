"""Cycle counters: activity and clock over exact time, where they can be believed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from fakenvml import Script, device
from flopwatch_agent.driver.cycles import CHECKS_FAILED_MAX, Cycles

BUSY = {2: 92, 5: 46, 7: 46, 8: 0, 9: 0, 6: 0}
SMS = 132  # of the fake H100

Start = Callable[..., Any]


def cycles(scale: float, mhz: float = 1650) -> dict[int, float]:
    """Return rates of the counters for a card that is as busy as BUSY, summed over `scale` SMs."""
    elapsed = mhz * 1e6 * scale
    return {
        248: elapsed,
        249: 0.92 * elapsed,
        250: 0.46 * elapsed,
        251: 0,
        252: 0.46 * elapsed,
        253: 0,
        254: 0,
    }


def write(script: Script, gpm: dict[int, float], **keys: Any) -> None:
    script.write(device(0, gpm=gpm, sm_clock_mhz=1650, **keys))


@pytest.mark.parametrize("scale", [1, SMS])
def test_activity_and_clock_come_from_cycles_whether_averaged_or_summed(
    start: Start, script: Script, scale: int
) -> None:
    write(script, {**BUSY, **cycles(scale)})
    child = start()
    child.inventory()
    seen = [child.card() for _ in range(5)]
    assert [reading.method for reading in seen[:2]] == ["gpm"] * 2  # nothing to compare with before
    assert [reading.method for reading in seen[2:]] == ["cycle_counters"] * 3
    for reading in seen[2:]:
        assert reading.values["sm_active_ratio"] == pytest.approx(0.92)
        assert reading.values["tensor_active_ratio"] == pytest.approx(0.46)
        assert reading.values["hmma_active_ratio"] == pytest.approx(0.46)
        assert reading.values["sm_clock_mhz"] == pytest.approx(1650, rel=0.5)
        assert reading.disagreement is None


def test_the_clock_by_cycles_adds_up_to_the_cycles_counted_and_is_seldom_compared(
    start: Start, script: Script
) -> None:
    write(script, {**BUSY, **cycles(1)})
    child = start()
    child.inventory()
    seen = [child.card() for _ in range(13)]  # checks and clock samples among them
    assert {reading.method for reading in seen[2:]} == {"cycle_counters"}
    whole = (seen[-1].boottime_ns - seen[2].boottime_ns) / 1e9
    counted = sum(
        now.values["sm_clock_mhz"] * (now.boottime_ns - before.boottime_ns) / 1e9
        for before, now in pairwise(seen[2:])
    )
    assert counted / whole == pytest.approx(1650, rel=0.1)
    # The room of the buffer, three readings until the counters are trusted, two for the next check.
    assert child.calls()["nvmlDeviceGetSamples"] <= 7


def test_counters_that_contradict_the_utilisation_are_given_up_and_say_why(
    start: Start, script: Script
) -> None:
    write(script, {**BUSY, **cycles(1), 250: 0.20 * 1650e6})
    child = start()
    child.inventory()
    seen = [child.card() for _ in range(CHECKS_FAILED_MAX + 3)]
    assert {reading.method for reading in seen} == {"gpm"}
    assert seen[-1].values["tensor_active_ratio"] == pytest.approx(0.46)
    assert seen[-1].values["sm_clock_mhz"] == 1650
    assert seen[1].disagreement is None
    assert (
        seen[-1].disagreement == "tensor_active_ratio is 0.2000 by cycles and 0.4600 by utilisation"
    )


def test_counters_on_no_known_scale_are_given_up(start: Start, script: Script) -> None:
    write(script, {**BUSY, **cycles(20)})
    child = start()
    child.inventory()
    seen = [child.card() for _ in range(CHECKS_FAILED_MAX + 3)]
    assert {reading.method for reading in seen} == {"gpm"}
    assert "neither 1 nor the number of SMs (132)" in seen[-1].disagreement


def test_a_card_without_cycle_counters_is_asked_for_them_once(start: Start, script: Script) -> None:
    write(script, {**BUSY, 10: 30})
    child = start()
    child.inventory()
    for _ in range(4):
        reading = child.card()
    assert reading.method == "gpm"
    assert reading.values["tensor_active_ratio"] == pytest.approx(0.46)
    # One call a pair for all metrics, and one more, in the first, for all counters.
    assert child.calls()["nvmlGpmMetricsGet"] == 3 + 1


def test_denied_cycle_counters_leave_the_utilisation(start: Start, script: Script) -> None:
    write(script, {**BUSY, **cycles(1)})
    script.add(*[f"device 0 gpm_return {m} NO_PERMISSION" for m in range(248, 255)])
    child = start()
    child.inventory()
    for _ in range(3):
        reading = child.card()
    assert reading.method == "gpm"
    assert reading.values["sm_active_ratio"] == pytest.approx(0.92)


# ---- the arithmetic, by itself

RATIOS = {"sm_active_ratio": 0.9, "tensor_active_ratio": 0.45}


def counts(elapsed: float) -> dict[int, float]:
    return {248: elapsed, 249: 0.9 * elapsed, 250: 0.45 * elapsed}


def trusted() -> Cycles:
    """Return counters of a card at 1 GHz that were checked at 1 s."""
    of = Cycles(SMS)
    of.step(counts(0), 1.0)
    means = of.step(counts(1e9), 1.0)
    assert means is not None
    assert of.check(means, RATIOS, 1000.0)
    return of


def test_a_restarted_counter_and_one_that_stood_still_say_nothing() -> None:
    of = trusted()
    assert of.step(counts(5e8), 1.0) is None
    assert of.step(counts(5e8), 1.0) is None
    means = of.step(counts(1.5e9), 1.0)
    assert means == pytest.approx({**RATIOS, "sm_clock_mhz": 1000.0})


def test_a_counter_that_could_not_be_read_costs_its_pair_and_the_next() -> None:
    of = trusted()
    assert of.step(None, 1.0) is None
    assert of.step(counts(3e9), 1.0) is None
    assert of.step(counts(4e9), 1.0) is not None


def test_one_failed_check_is_not_the_end_and_no_check_passes_without_a_clock() -> None:
    of = trusted()
    at = 1e9
    for _ in range(9):
        at += 1e9
        means = of.step(counts(at), 1.0)
        assert means is not None
        assert not of.is_check
    for clock, agrees in ((3000.0, False), (None, False), (1000.0, True)):
        at += 1e9
        means = of.step(counts(at), 1.0)
        assert means is not None
        assert of.is_check
        assert of.check(means, RATIOS, clock) is agrees
    assert of.disagreement is None


def test_a_scale_once_found_is_not_changed() -> None:
    of = trusted()
    at = 1e9
    for _ in range(9 + CHECKS_FAILED_MAX):
        at += SMS * 1e9
        means = of.step(counts(at), 1.0)
        assert means is not None
        if of.is_check:
            assert not of.check(means, RATIOS, 1000.0)
    assert of.scale == 1
    assert of.disagreement is not None


def test_a_sample_that_came_late_is_no_other_scale_and_loses_no_cycles() -> None:
    of = Cycles(SMS)
    of.step(counts(0), 1.0)
    means = of.step(counts(1.5e9), 1.0, 1.5)
    assert means is not None
    assert of.check(means, RATIOS, 1000.0)
    assert means["sm_clock_mhz"] == 1500.0  # of the second between the readings


def test_a_card_that_is_not_busy_is_neither_believed_anew_nor_doubted() -> None:
    idle = {"sm_active_ratio": 0.1, "tensor_active_ratio": 0.0}
    of = Cycles(SMS)
    of.step(counts(0), 1.0)
    for at in range(1, 2 * CHECKS_FAILED_MAX):
        means = of.step(counts(at * 1e6), 1.0)  # gated: a thousandth of the clock
        assert means is not None
        assert of.is_check
        assert not of.check(means, idle, 345.0)
    assert of.disagreement is None
    known = trusted()
    means = None
    for at in range(2, 12):
        means = known.step(counts(at * 1e9), 1.0)
    assert means is not None
    assert known.is_check
    assert known.check(means, idle, 345.0)


@pytest.mark.parametrize(("scale", "agrees"), [(SMS, True), (SMS / 2, False), (2, False)])
def test_only_one_sm_or_all_of_them_are_a_scale(scale: float, agrees: bool) -> None:
    of = Cycles(SMS)
    of.step(counts(0), 1.0)
    means = of.step(counts(scale * 1e9), 1.0)
    assert means is not None
    assert of.check(means, RATIOS, 1000.0) is agrees

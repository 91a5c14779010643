"""How many iterations a median needs, and the rates that come of them."""

import math

import pytest

from flopwatch_kernels.statistic import coefficient_of_variation, iterations_needed, rates


@pytest.mark.parametrize(("percent", "iterations"), [(1, 6), (2, 24), (3, 54), (5, 151)])
def test_the_iterations_for_one_percent_follow_the_spread(percent: int, iterations: int) -> None:
    assert iterations_needed(percent / 100, least=1, most=10_000) == iterations


def test_the_iterations_stay_inside_their_bounds() -> None:
    assert iterations_needed(0.0, least=10, most=40) == 10
    assert iterations_needed(1.0, least=10, most=40) == 40
    assert iterations_needed(math.inf, least=10, most=40) == 40


def test_one_duration_shows_no_spread() -> None:
    assert math.isinf(coefficient_of_variation([0.1]))
    assert coefficient_of_variation([0.1, 0.1]) == 0


def test_slow_iterations_are_low_rates() -> None:
    measured = rates([n / 1000 for n in range(1, 102)], flops=1000)
    assert measured.maximum == pytest.approx(1e6)
    assert measured.median == pytest.approx(1000 / 0.051)
    assert measured.p10 == pytest.approx(1000 / 0.091)
    assert measured.p90 == pytest.approx(1000 / 0.011)

"""Bounds that hold what they promise: drawn at random, they hold the truth in 95 of 100 cases."""

from __future__ import annotations

import numpy as np
import pytest

from flopwatch_kernels import uncertainty

_DRAWS = 40_000


def drawn(seed: int, method: str, size: int = _DRAWS) -> np.ndarray:
    """Return what counters would say of a card whose true HFU is 1: the error model, drawn."""
    random = np.random.default_rng(seed)
    return (
        random.normal(1.0, uncertainty.COUNTER, size)
        * random.normal(1.0, uncertainty.CLOCKS[method], size)
        * random.normal(1.0, uncertainty.KAPPA, size)
    )


@pytest.mark.parametrize("method", list(uncertainty.CLOCKS))
def test_the_bounds_of_an_hfu_hold_the_truth_in_95_of_100_cases(method: str) -> None:
    sigma = uncertainty.hardware(method)
    assert sigma is not None
    said = drawn(1, method)
    bounds = [uncertainty.hfu_bounds(value, value, sigma) for value in said]
    held = sum(b.lo <= 1.0 <= b.hi for b in bounds) / _DRAWS
    assert 0.945 <= held <= 0.957  # and no more: bounds that are too wide say nothing


def test_one_sigma_less_would_not_hold() -> None:
    sigma = uncertainty.hardware("gpm")
    assert sigma is not None
    said = drawn(2, "gpm")
    held = np.mean((said * (1 - sigma) <= 1.0) & (said * (1 + sigma) >= 1.0))
    assert held < 0.70


def test_many_cards_of_one_calibration_are_no_surer_than_one() -> None:
    random = np.random.default_rng(3)
    sigma = uncertainty.mixed({"gpm": 512.0})
    assert sigma is not None
    held = 0
    for _ in range(2_000):
        common = random.normal(1.0, uncertainty.KAPPA) * random.normal(1.0, uncertainty.COUNTER)
        own = random.normal(1.0, uncertainty.CLOCKS["gpm"], 512)
        said = float(np.mean(common * own))
        bounds = uncertainty.hfu_bounds(said, said, sigma)
        held += bounds.lo <= 1.0 <= bounds.hi
    assert held / 2_000 >= 0.95


def test_an_undeclared_mfu_lies_within_its_bounds_whatever_was_recomputed() -> None:
    random = np.random.default_rng(4)
    recompute = random.uniform(0.0, 0.25, _DRAWS)
    padding = random.uniform(0.0, 0.04, _DRAWS)
    truth = (1 - recompute) * (1 - padding)
    sigma = uncertainty.hardware("gpm")
    assert sigma is not None
    held = 0
    for said, true in zip(drawn(5, "gpm"), truth, strict=True):
        bounds = uncertainty.mfu_bounds(said, said, sigma)
        held += bounds.lo <= true <= bounds.hi
    assert held / _DRAWS >= 0.95


def test_a_declared_recompute_narrows_the_bounds() -> None:
    random = np.random.default_rng(6)
    sigma = uncertainty.hardware("cycle_counters")
    assert sigma is not None
    tile = random.normal(1.0, uncertainty.TILE, _DRAWS)
    held = 0
    for said, pad in zip(drawn(7, "cycle_counters"), tile, strict=True):
        bounds = uncertainty.mfu_bounds(said, said, sigma, recompute=0.2)
        held += bounds.lo <= 0.8 * pad <= bounds.hi
    assert 0.94 <= held / _DRAWS <= 0.96


def test_a_mixture_is_as_unsure_as_its_parts_and_nothing_counted_is_unknown() -> None:
    cycles, dcgm = (uncertainty.hardware(name) for name in ("cycle_counters", "dcgm"))
    half = uncertainty.mixed({"cycle_counters": 1.0, "dcgm": 1.0, "none": 5.0})
    assert cycles is not None
    assert dcgm is not None
    assert half == pytest.approx((cycles + dcgm) / 2)
    assert uncertainty.mixed({"declared": 3.0}) is None
    assert uncertainty.hardware("none") is None

"""A short campaign of kills on both sides of the wire, and the oracle held against wrong stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.delivery import FRESH_SECONDS_MAX, campaign, judge
from campaign.sender import value

BASE = 1_790_000_000_000
NUMBERS = list(range(1, 41))


def judged(numbers: list[int], *, off: float = 0.0, gaps: int = 0, promised: int = 40) -> list[str]:
    values = [value(number) for number in numbers]
    values[7] += off
    return judge([BASE + n for n in numbers], values, gaps, 40, promised, BASE)


def test_a_store_that_holds_everything_once_is_right() -> None:
    assert judged(NUMBERS) == []


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (judged(NUMBERS[:20] + NUMBERS[21:]), "1 rows are lost, from 21"),
        (judged([*NUMBERS, 9]), "1 rows are doubled"),
        (judged([*NUMBERS, 41]), "1 rows were never produced"),
        (judged(NUMBERS, off=1.0), "1 rows hold another value, from 8"),
        (judged(NUMBERS, gaps=1), "1 gaps"),
        (judged(NUMBERS, promised=44), "forgot rows 41 to 44"),
    ],
)
def test_a_store_with_a_fault_is_found_out(found: list[str], problem: str) -> None:
    assert any(problem in line for line in found)


def test_kills_of_either_side_and_of_both_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    with campaign(tmp_path, seed=3) as running:
        verdict = running.run(["sender", "collector", "both"])
    assert verdict.problems == []
    assert verdict.produced > 0
    assert verdict.fresh_seconds < FRESH_SECONDS_MAX

"""Figures in words, places on the map, shared answers: pure parts and the one that shares."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from flopwatch_collector.web import node_map, sparkline, wording
from flopwatch_collector.web.answers import AnswerBounds, Answers
from flopwatch_proto.errors import RetryableError


@pytest.mark.parametrize(
    ("value", "line", "shown"),
    [
        (0.9596, 0.96, "95.9"),
        (0.95999, 0.96, "95.9"),
        (0.96, 0.96, "96.0"),
        (0.953, 0.96, "95.3"),
        (None, 0.96, "—"),
        (0.0, None, "0.0"),
        (-0.012, None, "−1.2"),
    ],
)
def test_a_figure_never_rounds_onto_its_line(
    value: float | None, line: float | None, shown: str
) -> None:
    assert wording.percent(value, line=line) == shown


@pytest.mark.parametrize(
    ("lo", "hi", "value", "shown"),
    [
        (0.31, 0.43, None, "31–43"),
        (0.41, 0.425, None, "41.0–42.5"),
        (0.36, 0.36, 0.36, "36.0"),
        (None, None, None, "—"),
    ],
)
def test_mfu_has_a_decimal_only_where_it_is_known_that_well(
    lo: float | None, hi: float | None, value: float | None, shown: str
) -> None:
    assert wording.span(lo, hi, value) == shown


def test_amounts_have_three_digits() -> None:
    assert [wording.amount(v) for v in (None, 0.0, 1240.4, 41.26, 0.04126)] == [
        *("—", "0", "1,240", "41.3", "0.0413"),
    ]


def node(name: str, **cards: int) -> dict[str, Any]:
    worst = min(cards, key=["FAILED", "FREE", "ACTIVE"].index)
    return {"node": name, "worst": worst, "cards": cards, "hfu": 0.45, "reports": True}


def test_a_node_stays_where_it_is_when_its_state_changes() -> None:
    before = node_map.layout({"a": [node(f"n{i}", ACTIVE=8) for i in range(500)]}, {})
    after = node_map.layout({"a": [node(f"n{i}", FAILED=8) for i in range(500)]}, {})
    places = [
        [(c["node"], c["x"], c["y"]) for b in of["blocks"] for c in b["cells"]]
        for of in (before, after)
    ]
    assert places[0] == places[1]


def test_a_large_fleet_fits_and_a_mixed_node_shows_its_worst_card() -> None:
    made = node_map.layout({"a": [node(f"n{i}", ACTIVE=8) for i in range(2_500)]}, {})
    assert made["width"] == node_map.WIDTH
    (block,) = node_map.layout({"a": [node("n", ACTIVE=7, FAILED=1)]}, {})["blocks"]
    (cell,) = block["cells"]
    assert (cell["fill"], cell["owner"], cell["notch"]) == ("ramp", "r4", "hardware")


def test_a_line_breaks_where_nothing_is_known() -> None:
    assert sparkline.line([0.5, 0.5, None, 0.5, 0.5], 0, 1).count("M") == 2
    assert sparkline.line([None, None], 0, 1) == ""


async def test_a_question_is_computed_once_for_all_who_ask() -> None:
    clock = [0.0]
    answers = Answers(lambda: clock[0])
    asked: list[int] = []

    def compute() -> int:
        asked.append(1)
        return len(asked)

    assert await asyncio.gather(*(answers.get("q", compute, 10) for _ in range(50))) == [1] * 50
    clock[0] = 9.9
    assert await answers.get("q", compute, 10) == 1
    clock[0] = 10.0
    assert await answers.get("q", compute, 10) == 2


async def test_questions_beyond_the_bound_are_shed_and_the_rest_answered() -> None:
    answers = Answers(lambda: 0.0, AnswerBounds(concurrent=2, waiting_max=1))
    go = threading.Event()
    running = [asyncio.create_task(answers.get(i, go.wait, 10)) for i in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(RetryableError, match="busy"):
        await answers.get("more", go.wait, 10)
    assert answers.shed == 1
    go.set()
    assert await asyncio.gather(*running) == [True] * 3


async def test_a_failure_is_told_to_all_who_asked_and_not_kept() -> None:
    answers = Answers(lambda: 0.0)

    def broken() -> int:
        raise RetryableError("busy")

    with pytest.raises(RetryableError):
        await answers.get("q", broken, 10)
    assert await answers.get("q", lambda: 1, 10) == 1

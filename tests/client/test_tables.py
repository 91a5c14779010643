"""Tables of recorded answers: 80 columns, and figures that never say more than is known."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from flopwatch.cli import number, table

RECORDED = Path(__file__).parent / "recorded"
NOW = datetime(2026, 11, 22, 14, 5, 21, tzinfo=UTC)


@pytest.fixture
def fleet() -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((RECORDED / "fleet.json").read_text(encoding="utf-8"))
    return answer


def render(renderable: RenderableType) -> list[str]:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(renderable)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(len(line) for line in lines) <= 80
    return [" ".join(line.split()) for line in lines]


def test_the_fleet_table_shows_every_figure_in_80_columns(fleet: dict[str, Any]) -> None:
    lines = render(table.fleet_table(fleet))
    assert "fleet · 15 min to 2026-11-22 14:05:10 UTC" in lines[0]
    text = " ".join(lines)
    assert "12,512 95.96 89.6 43.7 31–43 42.0 ▲" in text
    assert "0.5 — — — 41.2–42.5 —" in text


def test_a_figure_below_its_line_never_reads_as_the_line(fleet: dict[str, Any]) -> None:
    text = " ".join(render(table.fleet_table(fleet)))
    assert "59.999" in text
    assert " 60.0 " not in text
    assert "96.0 " not in text


def test_the_waterfall_keeps_signs_and_unknown_steps(fleet: dict[str, Any]) -> None:
    lines = render(table.waterfall_table(fleet["clusters"][0], 900.0))
    assert "missing hardware 6.4 800 710 — —" in lines
    assert "clock facility −0.1 −10 −8.90 12.2 —" in lines
    assert "tile workload — — — — —" in lines
    assert "model_flops output 37.3 4,666.7 4,200 816 1,234,567" in lines


def test_an_outage_says_since_when_and_what_it_loses(fleet: dict[str, Any]) -> None:
    outage = {"cluster": "atlas", **fleet["clusters"][0]["outages"][0]}
    text = " ".join(render(table.outages_table([outage], NOW)))
    assert "atlas allocation firing 23 min 95.96 96.0 FREE 2.4 · MISSING 1.6 · FAILED 0.1" in text


def test_a_nodes_cards_are_listed_with_dashes_for_the_unknown() -> None:
    cards: list[dict[str, Any]] = [
        {"slot": "0000:18:00.0", "bucket": "ACTIVE", "job": "llama-70b", "hfu": {"value": 0.43}},
        {"slot": "0000:2a:00.0", "bucket": "FAILED"},
    ]
    lines = render(table.cards_table("atlas-0003", cards))
    assert "0000:18:00.0 ACTIVE llama-70b 43.0 — — —" in lines
    assert "0000:2a:00.0 FAILED — — — — —" in lines


@pytest.mark.parametrize(
    ("ratio", "line", "text"),
    [
        (None, None, "—"),
        (0.953, None, "95.3"),
        (0.9596, 0.96, "95.96"),
        (0.95999, 0.96, "95.999"),
        (0.9599999, 0.96, "95.9999"),
        (0.96, 0.96, "96.0"),
        (0.9604, 0.96, "96.04"),
        (1.0, 0.96, "100.0"),
        (-0.002, None, "−0.2"),
        (-0.0001, None, "0.0"),
    ],
)
def test_percentages(ratio: float | None, line: float | None, text: str) -> None:
    assert number.percent(ratio, line=line) == text


@pytest.mark.parametrize(
    ("lo", "hi", "text"),
    [
        (None, None, "—"),
        (0.31, 0.43, "31–43"),
        (0.412, 0.425, "41.2–42.5"),
        (0.43, 0.43, "43.0"),
        (0.51, 0.5973, "51–59.7"),
    ],
)
def test_spans(lo: float | None, hi: float | None, text: str) -> None:
    assert number.span(lo, hi, line=0.6) == text

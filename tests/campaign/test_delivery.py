"""A short campaign of kills on both sides of the wire, and the oracles held against wrong stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from campaign import pager
from campaign.delivery import FRESH_SECONDS_MAX, campaign, judge
from campaign.sender import AHEAD, LOSSY, value
from flopwatch_collector.audit import balance
from flopwatch_collector.telemetry.store import TelemetryStore

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


DECIDED = [{"id": f"{a}{n}", "outage": str(n), "action": a} for n in (1, 2) for a in ("t", "r")]
TAKEN = [(p["id"], json.dumps({"outage": p["outage"], "action": p["action"]})) for p in DECIDED]


@pytest.mark.parametrize(
    ("decided", "taken", "problem"),
    [
        (DECIDED, TAKEN[1:], "1 pages never came"),
        (DECIDED[:3], TAKEN, "1 pages came that nobody decided"),
        (DECIDED[1:], TAKEN[1:], "1 pages were decided and forgotten"),
        (DECIDED, [TAKEN[1], TAKEN[0], *TAKEN[2:]], "outage 1 was told as ['r', 't']"),
        ([*DECIDED, {**DECIDED[0], "id": "again"}], TAKEN, "told twice under two keys"),
        (DECIDED, [*TAKEN, (TAKEN[0][0], TAKEN[1][1])], "one key came with two pages"),
    ],
)
def test_pages_with_a_fault_are_found_out(
    decided: list[dict[str, str]], taken: list[tuple[str, str]], problem: str
) -> None:
    ids = [page["id"] for page in DECIDED]
    assert pager.judge(DECIDED, ids, [*TAKEN, TAKEN[0]]) == []
    assert any(problem in line for line in pager.judge(decided, ids, taken))


def test_kills_of_either_side_and_of_both_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    with campaign(tmp_path, seed=3, nodes=("n1", AHEAD, LOSSY)) as running:
        verdict = running.run(["sender", "collector", "both", "sender"])
    assert verdict.problems == []
    assert verdict.produced > 0
    assert verdict.pages > 0
    assert verdict.fresh_seconds < FRESH_SECONDS_MAX
    store = TelemetryStore.open(f"chdb://{tmp_path}/store")
    with store.still() as client:
        client.command(
            "ALTER TABLE interval DELETE WHERE node = 'n1' AND seq = 1 SETTINGS mutations_sync = 1"
        )
    found = {each.node: each for each in balance.read(store, 0)}
    store.close()
    assert {node: each.verdict for node, each in found.items()} == {
        "n1": "missing",
        AHEAD: "balanced",
        LOSSY: "balanced",
    }
    assert found["n1"].missing_rows == 4

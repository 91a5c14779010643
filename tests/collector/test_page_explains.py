"""The page names what was planted. `python -m campaign.explained` plants 200."""

from __future__ import annotations

from collections import Counter

from planted import CAUSES, planted

INCIDENTS = 30
RIGHT_SHARE_MIN = 0.95
SEED = 20_270_115


def test_the_planted_cause_is_named_first() -> None:
    found = [planted(CAUSES[n % len(CAUSES)], SEED + n) for n in range(INCIDENTS)]
    wrong = Counter((one.cause, one.body["cause"]["kind"]) for one in found if not one.right)
    assert wrong.total() <= (1 - RIGHT_SHARE_MIN) * INCIDENTS, wrong
    assert all(len(one.body["summary"]) <= 90 for one in found)
    assert {one.body["owner"] for one in found} == {
        *("hardware", "facility", "scheduling", "demand", "workload"),
    }

"""Spools that were set back, copied, and doubled, a few times; and the oracle held against what swallows."""

from __future__ import annotations

from pathlib import Path

from campaign import rollback
from campaign.nodes import collector
from campaign.sender import value


async def test_no_row_is_swallowed_because_its_number_was_seen_before(tmp_path: Path) -> None:
    with collector(tmp_path) as serving:
        verdict = await rollback.run(tmp_path, serving, 3, 5)
    assert verdict.problems == []
    assert verdict.rounds == {"set back": 1, "cloned": 1, "double": 1}
    assert verdict.rows > 0


def test_a_row_that_is_swallowed_is_found_out(tmp_path: Path) -> None:
    made = rollback.Campaign(tmp_path, "127.0.0.1:1", 1)
    made.must, made._next = {1, 5}, 9
    numbers = [1, 2, 3, 4, 6, 7, 8]
    starts = [made.base_unix_ms + number for number in numbers]
    held = {"rows": {"n1": (starts, [value(n) for n in numbers])}, "quarantined": []}
    assert made.judge(held).problems == ["1 rows are swallowed, from 5"]

"""Crash points of both sides in small, and what they found in the audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from campaign import crashes
from flopwatch_collector.audit import balance

PLACE = {"cluster": "atlas", "node": "n1", "spool_id": "a"}
WORD = {**PLACE, "told": 1, "is_simulated": False, "acked": 9, "handed": 36, "produced": 36}


async def test_crashes_at_named_points_lose_nothing_and_the_audit_balances(tmp_path: Path) -> None:
    kills = ["sender", "collector", "both", "sender", "collector"]
    verdict = await crashes.run(tmp_path, kills, seed=5)
    assert verdict.problems == []
    assert sum(verdict.deaths.values()) >= len(kills)


def test_a_gap_within_a_larger_one_is_not_lost_twice() -> None:
    """Found by a campaign: a spool that was killed merged a gap that the collector had into a larger one."""

    def loss(first_seq: int, last_seq: int, kind: str = "gap") -> dict[str, Any]:
        rows = 4 * (last_seq - first_seq + 1)
        span = {"first_seq": first_seq, "last_seq": last_seq}
        return {**PLACE, **span, "kind": kind, "lost": rows}

    losses = [loss(1, 5), loss(3, 4), loss(5, 5, "quarantine"), loss(8, 8)]
    receipt = {**PLACE, "first": 6, "batches": 3, "total": 12, "before": 20, "twice": 0}
    (found,) = balance.balances([WORD], [receipt], losses, [], [{**PLACE, "total": 12}])
    assert (found.verdict, found.gap_rows, found.quarantined_rows) == ("balanced", 24, 0)

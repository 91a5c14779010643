"""A link between two network namespaces that goes down, at either end, and comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from campaign import cut


async def test_a_link_that_goes_down_is_noticed_by_both_sides_and_loses_nothing(
    tmp_path: Path,
) -> None:
    verdict = cut.Verdict()
    async with cut.fleet(tmp_path, 2, keepalive="2") as (serving, pairs, base):
        await asyncio.gather(
            *(cut.suffer(pair, 0.0, end, verdict) for end, pair in enumerate(pairs))
        )
        await cut.end(serving, pairs, base, verdict)
    assert verdict.problems == []
    assert (len(verdict.noticed["agent"]), len(verdict.noticed["collector"])) == (2, 2)
    assert verdict.rows > 0

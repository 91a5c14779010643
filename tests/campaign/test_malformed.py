"""Malformed messages beside honest nodes, in small; `make campaign` sends 200,000."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from campaign.malformed import campaign

MESSAGES = 1_000
GROWTH_BYTES_MAX = 200 << 20
"""Less than one bomb of the campaign holds, more than an engine takes that is still warming."""


def test_malformed_messages_neither_end_a_collector_nor_fill_its_memory(tmp_path: Path) -> None:
    with campaign(tmp_path, 1) as running:
        verdict = asyncio.run(running.run(MESSAGES, warm_s=2.0))
        status = Path(f"/proc/{running.collector.pid}/status").read_text(encoding="ascii")
    assert verdict.problems == []
    assert verdict.sent >= MESSAGES
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)  # no bomb is missed between samples
    assert found
    assert int(found[1]) * 1024 - verdict.control.rss_bytes < GROWTH_BYTES_MAX

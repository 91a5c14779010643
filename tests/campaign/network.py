"""``python -m campaign.network [CONNECTIONS [SEED]]``: so many under each toxic of `campaign.proxy`.

Agents' spools and streams, a collector's ingest and store, and the proxy between them. After each toxic
everybody must be heard again; at the end everything is stored, once, with its value, and no side took
longer than 35 s to notice a connection that is half open.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from campaign.delivery import FRESH_SECONDS_MAX
from campaign.nodes import Node, collector, held_by, judged
from campaign.proxy import TOXICS, Proxy
from processes import Process

NOTICED_SECONDS_MAX: Final = 35.0


@dataclass
class Verdict:
    """What happened. Attributes: problems: one line each."""

    problems: list[str] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    fresh_seconds: float = 0.0
    client_seconds: float = 0.0
    server_seconds: float = 0.0


async def run(
    home: Path, serving: Process, connections: int, seed: int, *, nodes: int, pace_seconds: float
) -> Verdict:
    """Ill-treat so many connections in each way, and judge."""
    verdict, base_unix_ms = Verdict(), time.time_ns() // 1_000_000 - 3_600_000
    proxy = Proxy(await asyncio.to_thread(serving.line, "listening "), seed)
    target = await proxy.start()
    fleet = [
        Node(f"n{i}", target, home, base_unix_ms, pace_seconds=pace_seconds) for i in range(nodes)
    ]
    for toxic in TOXICS:
        proxy.clear()  # a toxic befalls new connections
        proxy.toxic = toxic
        while proxy.hits.get(toxic, 0) < connections:
            await asyncio.sleep(0.05)
            assert serving.running, serving.said()
        proxy.clear()
        fresh = await asyncio.gather(*(node.fresh_seconds() for node in fleet))
        verdict.fresh_seconds = max(verdict.fresh_seconds, *fresh)
        if max(fresh) > FRESH_SECONDS_MAX:
            verdict.problems.append(f"{toxic}: nothing fresh within {FRESH_SECONDS_MAX} s after it")
    await asyncio.gather(*(node.finish() for node in fleet))
    await proxy.stop()
    held = await held_by(serving)
    produced = {node.name: node.promised for node in fleet}
    verdict.problems += judged(held, produced, base_unix_ms)
    verdict.hits, verdict.rows = proxy.hits, sum(produced.values())
    verdict.client_seconds = max(proxy.noticed_seconds["client"], default=0.0)
    verdict.server_seconds = max(proxy.noticed_seconds["server"], default=0.0)
    return verdict


def main(connections: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch, collector(Path(scratch)) as serving:
        verdict = asyncio.run(
            run(Path(scratch), serving, connections, seed, nodes=20, pace_seconds=1.0)
        )
    for side, seconds in (("agent", verdict.client_seconds), ("collector", verdict.server_seconds)):
        if seconds > NOTICED_SECONDS_MAX:
            verdict.problems.append(f"the {side} noticed a dead connection after {seconds:.1f} s")
    hits = ", ".join(f"{count} {toxic}" for toxic, count in verdict.hits.items())
    sys.stdout.write(
        f"seed {seed}: connections ill-treated: {hits}; {verdict.rows} rows of 20 nodes, "
        f"half-open noticed within {verdict.client_seconds:.1f} s by agents and "
        f"{verdict.server_seconds:.1f} s by the collector, fresh within {verdict.fresh_seconds:.1f} s, "
        f"{len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [100, 1][len(chosen) :])))

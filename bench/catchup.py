"""How fast agents catch up after a cut, and whether the present is seen meanwhile.

    .venv/bin/python bench/catchup.py [--nodes 500] [--minutes 60]

The nodes are those of bench/fleet.py: 8 cards each, and a backlog of one batch per 10 s of the cut. Each
sends as fast as its credits allow, and beside it a Status every 10 s with its newest rows, as agents do. How
long a Status was on its way stands with the agents, as the difference of two clocks that are one here.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil
from fleet import PERIOD_MS, Fleet, Node, grpc_frame, moved
from measure import collecting, costs, machine, write

from flopwatch_agent.session import Window
from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb

VARIANTS: Final = 40
WINDOW: Final = Window()
"""What an agent has in flight at most."""
STATUS_S: Final = 10.0
PUMP_S: Final = 0.01
SAMPLE_S: Final = 1.0
DRAIN_S_MAX: Final = 1_800.0


class Backlog:
    """What every node has in its spool, oldest first; packed when it is first sent."""

    def __init__(self, fleet: Fleet, periods: int) -> None:
        self.periods = periods
        self._messages = fleet.messages[:VARIANTS]
        now = time.time_ns() // 1_000_000 // PERIOD_MS * PERIOD_MS
        self._first_unix_ms = now - periods * PERIOD_MS
        self._packed: dict[tuple[int, int], pb.Batch] = {}

    def batch(self, period: int, node: int) -> pb.Batch:
        """Return the batch of a node for one period."""
        key = period, node % len(self._messages)
        if key not in self._packed:
            rows = moved(self._messages[key[1]], self._first_unix_ms + period * PERIOD_MS)
            self._packed[key] = codec.pack(pb.Payload(intervals=rows))
        return self._packed[key]


async def measure(nodes: int, minutes: int) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        async with collecting(Path(scratch)) as (pid, ingest, _):
            fleet = Fleet(ingest, nodes, 10, None)
            await fleet.connect()
            backlog = Backlog(fleet, minutes * 6)
            reader = RemoteStore(Path(scratch) / "data/read.sock")
            delays: list[int] = []
            began, cpu_s = time.monotonic(), _cpu_s(pid)
            beside = [
                asyncio.create_task(_speak(fleet)),
                asyncio.create_task(_sample(reader, delays)),
            ]
            async with asyncio.timeout(DRAIN_S_MAX):
                await _drain(fleet, backlog)
            lasted = time.monotonic() - began
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            cpu_s = _cpu_s(pid) - cpu_s
            rss = (await asyncio.to_thread(costs, pid, 1.0))[pid].rss_mib
            stored = await asyncio.to_thread(_rows, reader)
            fleet.ending, errors = True, len(fleet.errors)
    sent = nodes * backlog.periods * fleet.rows
    delays.sort()
    return {
        "nodes": nodes,
        "cut_minutes": minutes,
        "drained_s": round(lasted, 1),
        "times_real_time": round(60 * minutes / lasted, 1),
        "batches_per_s": round(nodes * backlog.periods / lasted),
        "rows_sent": sent,
        "rows_stored": stored,
        "status_on_its_way_ms": {
            name: delays[int(share * (len(delays) - 1))] if delays else None
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
        "cpu_s": round(cpu_s, 1),
        "rss_mib": round(rss, 1),
        "errors": errors,
    }


async def _drain(fleet: Fleet, backlog: Backlog) -> None:
    """Send what credits allow until all is acknowledged."""
    next_period = dict.fromkeys(range(len(fleet.nodes)), 0)
    first = {i: node.seq for i, node in enumerate(fleet.nodes)}
    while next_period:
        for i in list(next_period):
            node = fleet.nodes[i]
            while next_period[i] < backlog.periods and node.seq - node.acked < min(
                node.credits, WINDOW.batches_max
            ):
                node.send(backlog.batch(next_period[i], node.number), fleet.rows)
                next_period[i] += 1
            if node.acked - first[i] >= backlog.periods:
                del next_period[i]
        await asyncio.sleep(PUMP_S)


async def _speak(fleet: Fleet) -> None:
    """Let every node tell how it stands now, spread over the period."""
    while True:
        for i, node in enumerate(fleet.nodes):
            _tell(fleet, node)
            if i % 10 == 9:
                await asyncio.sleep(10 * STATUS_S / len(fleet.nodes))


def _tell(fleet: Fleet, node: Node) -> None:
    now = time.time_ns() // 1_000_000
    newest = moved(fleet.messages[node.number % VARIANTS], now // PERIOD_MS * PERIOD_MS - PERIOD_MS)
    status = pb.Status(taken_unix_ms=now, spool_batches=node.seq - node.acked, newest=newest)
    assert node.transport is not None
    node.transport.write(grpc_frame(pb.AgentFrame(status=status)))


async def _sample(reader: RemoteStore, delays: list[int]) -> None:
    """Note how long each node's newest Status was on its way."""
    while True:
        await asyncio.sleep(SAMPLE_S)
        for agent in await asyncio.to_thread(reader.agents):
            if agent["spool_batches"] is not None:
                delays.append(-agent["clock_skew_ms"])


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _rows(reader: RemoteStore) -> int:
    table = reader.query("SELECT count() AS n FROM interval FINAL")
    return int(table["n"][0].as_py())


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--minutes", type=int, default=60)
    given = parser.parse_args()
    on = machine()
    command = f"python bench/catchup.py --nodes {given.nodes} --minutes {given.minutes}"
    write(
        "catchup",
        "Catching up after a cut",
        command,
        on,
        asyncio.run(measure(given.nodes, given.minutes)),
        (
            "A Status is sent every 10 s: the present is as old as that, and what it was on its way.",
            "`rows_stored` are those in the store, each once, when the last batch was acknowledged.",
        ),
    )


if __name__ == "__main__":
    main()

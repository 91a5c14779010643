"""Agents without a driver, many in one process, each with a spool and a stream of its own; and their oracle.

Rows follow from their number, as those of `campaign.sender`; what a spool took counts as promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.delivery import judge
from campaign.sender import SOON, payload
from flopwatch_agent.channel import Channel
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream, StreamIdentity
from processes import Process

ROWS_PER_BATCH = 4


class Node:
    """One of them. Attributes: promised: rows that its spool took."""

    def __init__(
        self,
        name: str,
        target: str,
        directory: Path,
        base_unix_ms: int,
        *,
        channel: Callable[[str], Channel] = Channel,
        pace_seconds: float = 1.0,
    ) -> None:
        self.name = name
        self.promised = 0
        self.spool = Spool.open(directory / name)
        who = StreamIdentity(cluster="atlas", node_id=name, agent_version="0", boot_id="b")
        self.stream = Stream(
            target,
            who,
            self.spool,
            backoff=SOON,
            channel=channel,
            random=random.Random(name),
            idle_status_seconds=5.0,
        )
        self._base = base_unix_ms
        self._pace_seconds = pace_seconds
        self._chance = random.Random(name)
        self._ending = False
        self._tasks = [asyncio.create_task(self.stream.run()), asyncio.create_task(self._produce())]

    async def _produce(self) -> None:
        while not self._ending:
            await self.append()
            await asyncio.sleep(self._chance.uniform(0.0, 2 * self._pace_seconds))

    async def append(self) -> int:
        """Append a batch; return its number."""
        rows = payload(self.promised + 1, ROWS_PER_BATCH, self._base)
        self.promised += ROWS_PER_BATCH
        seq = await self.spool.aside(self.spool.append, rows)
        self.stream.wake()
        return seq

    async def fresh_seconds(self) -> float:
        """Return how long something that is new now takes until it is acknowledged."""
        began, seq = time.monotonic(), self.spool.next_seq
        while self.spool.state.acked_seq < seq:
            assert not any(task.done() for task in self._tasks), self._tasks
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def finish(self) -> None:
        """Append no more, deliver everything, take leave."""
        # Not cancelled: an append that is cut short goes on in its thread, and nobody would count it.
        self._ending = True
        await asyncio.gather(self._tasks[1], return_exceptions=True)
        await self.stream.drained()
        self.promised = self.spool.rows_produced
        await self.stream.goodbye("stop")
        self._tasks[0].cancel()
        self.spool.close()


@contextlib.contextmanager
def collector(
    home: Path, keepalive: str = "", *, module: str = "campaign.serving"
) -> Iterator[Process]:
    """A collector on loopback for the length of a block; ``module``: one that changes it."""
    arguments = ("127.0.0.1:0", str(home / "store"), "", keepalive)
    command = (sys.executable, "-m", module, *arguments)
    process = Process(command, home / "serving.log")
    try:
        yield process
    finally:
        process.end(signal.SIGKILL)


async def held_by(serving: Process) -> dict[str, Any]:
    """End a collector in good order; return what its store holds, as `storing.held_by`."""
    serving.send(signal.SIGTERM)
    said: dict[str, Any] = json.loads(await asyncio.to_thread(serving.line, "held "))
    return said


def judged(held: dict[str, Any], produced: dict[str, int], base_unix_ms: int) -> list[str]:
    """Return what is wrong with what a store holds of the nodes, where nothing had to be given up."""
    problems = [f"quarantined: {aside}" for aside in held["quarantined"]]
    for name, count in produced.items():
        starts, values = held["rows"].get(name, ((), ()))
        gaps = sum(gap["node"] == name for gap in held["gaps"])
        found = judge(starts, values, gaps, count, count, base_unix_ms)
        problems += (f"{name}: {problem}" for problem in found)
    unbalanced = [each for each in held["audit"] if each["verdict"] != "balanced"]
    return problems + [f"the audit says {each}" for each in unbalanced]

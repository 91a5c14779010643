"""An agent's spool and stream, without a driver: a process of `campaign.delivery`.

Appends rows whose start and value follow from their number, and writes each number into a ledger, outside
of the system, when the spool has it on disk. It appends no more than its collector takes: with
`WAITING_MAX` batches in the spool it waits. SIGUSR1: append, and say ``fresh`` when that is acknowledged.
SIGTERM: append no more, deliver everything, say so in a new session, take leave.

`LOSSY` has a spool that is too small for a collector that is away, and does not wait; every 25th batch of
`AHEAD` is of next week, which no collector takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sys
from pathlib import Path
from typing import Final

from campaign import points
from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_proto.codec import IntervalRow, encode_rows
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

SOON: Final = Backoff(base_seconds=0.05, max_seconds=0.4)
ROWS: Final = 4
WAITING_MAX: Final = 40
PACE_SECONDS: Final = 0.3
LOSSY: Final = "lossy"
LOSSY_LIMITS: Final = SpoolLimits(bytes_max=6_000)
AHEAD: Final = "ahead"
AHEAD_EVERY: Final = 25
AHEAD_MS: Final = 7 * 86_400_000


def value(number: int, node: str = "") -> float:
    """Return what row so many must hold: few enough bits for the wire to carry them all."""
    digest = hashlib.sha256(f"{node}{number}".encode()).digest()
    return float(int.from_bytes(digest[:2], "big") % 4096)


def payload(first: int, count: int, base_unix_ms: int, node: str = "") -> pb.Payload:
    """Return rows ``first`` to ``first + count - 1``."""
    rows = [
        IntervalRow(
            slot="s",
            start_unix_ms=base_unix_ms + number,
            duration_ms=1,
            bucket=Bucket.ACTIVE,
            card_times={"card_ms": 1},
            values={"sm_active_ms": value(number, node)},
        )
        for number in range(first, first + count)
    ]
    return pb.Payload(intervals=encode_rows(rows))


def is_ahead(node: str, seq: int) -> bool:
    """Whether that batch is one that no collector takes."""
    return node == AHEAD and seq % AHEAD_EVERY == 0


async def send(node: str, target: str, data: Path, ledger: Path, base_unix_ms: int) -> None:
    """Append and deliver until SIGTERM."""
    loop, ending, asked = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    spool = Spool.open(data, LOSSY_LIMITS if node == LOSSY else None)
    who = StreamIdentity(cluster="atlas", node_id=node, agent_version="0", boot_id="b")
    stream = Stream(target, who, spool, backoff=SOON)
    delivering = asyncio.create_task(stream.run())
    chance = random.Random()
    written = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _say(f"sending to {target}")
    fresh_seq = 0
    while not ending.is_set():
        assert not delivering.done(), delivering
        if node == LOSSY or spool.pending_batches < WAITING_MAX:
            first = spool.rows_produced + 1
            start = base_unix_ms + (AHEAD_MS if is_ahead(node, spool.next_seq) else 0)
            seq = await spool.aside(spool.append, payload(first, ROWS, start, node))
            os.write(written, f"{first + ROWS - 1}\n".encode())
            stream.wake()
            if asked.is_set():
                fresh_seq = fresh_seq or seq
        if fresh_seq and spool.state.acked_seq >= fresh_seq:
            _say(f"fresh {fresh_seq}")
            fresh_seq = 0
            asked.clear()
        await asyncio.sleep(chance.uniform(0.0, 2 * PACE_SECONDS))
    while not spool.is_drained:
        await asyncio.sleep(0.05)
    sessions = stream.counters.sessions
    stream.move()
    while stream.counters.sessions == sessions:
        await asyncio.sleep(0.05)
    await stream.goodbye("stop")
    delivering.cancel()
    state = spool.state
    _say(f"produced {state.produced_rows} {state.dropped_rows}")
    spool.close()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(node: str, target: str, data: str, ledger: str, base: str, point: str) -> None:
    """Run one; ``point``: where it kills itself, as `points.arm` takes it."""
    points.arm(point)
    asyncio.run(send(node, target, Path(data), Path(ledger), int(base)))

"""``python -m campaign.sender TARGET DATA LEDGER``: an agent's spool and stream, without a driver.

Appends rows whose start and value follow from their number, and writes each number into the ledger, outside
of the system, when the spool has it on disk. SIGUSR1: say ``fresh`` and its number when a batch of after
that moment is acknowledged. SIGTERM: append no more, deliver everything, take leave.
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

from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_proto.codec import IntervalRow, encode_rows
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

WHO: Final = StreamIdentity(cluster="atlas", node_id="n1", agent_version="0", boot_id="b")
SOON: Final = Backoff(base_seconds=0.05, max_seconds=1.0)
ROWS: Final = 4


def value(number: int) -> float:
    """Return what row so many must hold: few enough bits for the wire to carry them all."""
    return float(int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:2], "big") % 4096)


def payload(first: int, count: int, base_unix_ms: int) -> pb.Payload:
    """Return rows ``first`` to ``first + count - 1``."""
    rows = [
        IntervalRow(
            slot="s",
            start_unix_ms=base_unix_ms + number,
            duration_ms=1,
            bucket=Bucket.ACTIVE,
            card_times={"card_ms": 1},
            values={"sm_active_ms": value(number)},
        )
        for number in range(first, first + count)
    ]
    return pb.Payload(intervals=encode_rows(rows))


async def send(target: str, data: Path, ledger: Path, base_unix_ms: int) -> None:
    """Append and deliver until SIGTERM."""
    loop, ending, asked = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    spool = Spool.open(data)
    stream = Stream(target, WHO, spool, backoff=SOON)
    delivering = asyncio.create_task(stream.run())
    chance = random.Random()
    written = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fresh_seq = 0
    sys.stdout.write(f"sending to {target}\n")
    sys.stdout.flush()
    while not ending.is_set():
        first = spool.rows_produced + 1
        seq = await spool.aside(spool.append, payload(first, ROWS, base_unix_ms))
        os.write(written, f"{first + ROWS - 1}\n".encode())
        stream.wake()
        if asked.is_set():
            fresh_seq = fresh_seq or seq
            if spool.state.acked_seq >= fresh_seq:
                sys.stdout.write(f"fresh {fresh_seq}\n")
                sys.stdout.flush()
                asked.clear()
        await asyncio.sleep(chance.uniform(0.0, 1.0))  # eight in flight, a commit a second
    while not spool.is_drained:
        await asyncio.sleep(0.05)
    await stream.goodbye("stop")
    delivering.cancel()
    sys.stdout.write(f"produced {spool.rows_produced}\n")
    spool.close()


if __name__ == "__main__":
    asyncio.run(send(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))

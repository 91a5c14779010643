"""A collector that is killed at any moment loses no row that it acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto import codec
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc

NOW_MS = time.time_ns() // 60_000_000_000 * 60_000 - 3_600_000
KILLS = 5
PROGRAM = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry.store import TelemetryStore

class Nobody:
    def add(self, *_): pass
    def roster(self, *_): pass
    def slots(self, *_): pass
    def hello(self, *_): pass
    def status(self, *_): pass
    def goodbye(self, *_): pass

async def main():
    server = IngestServer(TelemetryStore.open(sys.argv[1]), Nobody(), registry=CollectorRegistry())
    print(await server.start("127.0.0.1:0"), flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def batch(seq: int) -> pb.AgentFrame:
    rows = [
        IntervalRow(
            slot=str(card),
            start_unix_ms=NOW_MS + seq * 1000,
            duration_ms=1000,
            bucket=Bucket.ACTIVE,
            card_times={"card_ms": 1000},
            values={"sm_active_ms": float(seq)},
        )
        for card in range(2)
    ]
    packed = codec.pack(pb.Payload(intervals=codec.encode_rows(rows)))
    packed.seq = seq
    return pb.AgentFrame(batch=packed)


async def send_until_killed(port: int, acked_seq: int, process: Any, kill_after: float) -> int:
    """Send from behind the last acknowledgement on; kill a while after the first one that comes.

    Return what is acknowledged by then.
    """
    acknowledged = asyncio.Event()

    async def kill() -> None:
        await acknowledged.wait()
        await asyncio.sleep(kill_after)
        process.kill()

    hello = pb.Hello(protocol_revision=1, cluster="atlas", node_id="n", spool_id="a" * 32)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = telemetry_pb2_grpc.IngestStub(channel)
        call = stub.Stream()
        await call.write(pb.AgentFrame(hello=hello))
        sent_seq = acked_seq
        killing = asyncio.create_task(kill())
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            while True:
                while sent_seq < acked_seq + 8:
                    sent_seq += 1
                    await call.write(batch(sent_seq))
                frame = await call.read()
                if frame.HasField("ack"):
                    acked_seq = max(acked_seq, frame.ack.through_seq)
                    acknowledged.set()
        await killing
    return acked_seq


async def test_five_kills_lose_no_acknowledged_row_and_double_none(tmp_path: Path) -> None:
    dsn = f"chdb://{tmp_path}/telemetry"
    chance = random.Random(7)
    acked_seq = 0
    for _ in range(KILLS):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, dsn, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        before = acked_seq
        acked_seq = await send_until_killed(port, acked_seq, process, chance.uniform(0.0, 1.5))
        await process.wait()
        assert acked_seq > before
    store = TelemetryStore.open(dsn)
    found = store.query(
        "SELECT start_unix_ms, count() AS n, min(sm_active_ms) AS low, max(sm_active_ms) AS high "
        "FROM interval FINAL WHERE start_unix_ms <= {last:Int64} GROUP BY start_unix_ms ORDER BY 1",
        {"last": NOW_MS + acked_seq * 1000},
    ).to_pylist()
    store.close()
    assert [((r["start_unix_ms"] - NOW_MS) // 1000, r["n"]) for r in found] == [
        (seq, 2) for seq in range(1, acked_seq + 1)
    ]
    assert all(r["low"] == r["high"] == (r["start_unix_ms"] - NOW_MS) / 1000 for r in found)

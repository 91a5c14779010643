"""An agent frame by frame, for tests of ingest over a real stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from flopwatch_proto import codec
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc


def row(start_unix_ms: int, *, slot: str = "0", **values: Any) -> IntervalRow:
    return IntervalRow(
        slot=slot,
        start_unix_ms=start_unix_ms,
        duration_ms=10_000,
        bucket=Bucket.ACTIVE,
        texts={"job": "j", "sku": "NVIDIA H100 80GB HBM3"},
        card_times={"card_ms": 10_000, "covered_ms": 10_000},
        values={"sm_active_ms": 9_000.0, "fp64_active_ms": Absence.NOT_SUPPORTED} | values,
    )


def batch(seq: int, rows: Sequence[IntervalRow] = (), **parts: Any) -> pb.AgentFrame:
    packed = codec.pack(pb.Payload(intervals=codec.encode_rows(rows), **parts))
    packed.seq = seq
    return pb.AgentFrame(batch=packed)


def hello(**different: Any) -> pb.AgentFrame:
    words: dict[str, Any] = {
        "protocol_revision": 1,
        "cluster": "atlas",
        "node_id": "n1",
        "spool_id": "5" * 32,
    }
    return pb.AgentFrame(hello=pb.Hello(**(words | different)))


class Agent:
    """One stream to the collector, frame by frame."""

    def __init__(self, port: int, **different: Any) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        stub: Any = telemetry_pb2_grpc.IngestStub(self.channel)
        self.call = stub.Stream()
        self.hello = hello(**different)

    async def send(self, *frames: pb.AgentFrame) -> None:
        for frame in frames:
            await self.call.write(frame)

    async def receive(self, kind: str) -> Any:
        """Return the next frame of a kind, passing over others."""
        async with asyncio.timeout(20):
            while True:
                frame = await self.call.read()
                if frame.WhichOneof("frame") == kind:
                    return getattr(frame, kind)

    async def acked(self, seq: int) -> int:
        """Wait until a seq is acknowledged; return the rows stored on the way."""
        stored = 0
        while True:
            ack = await self.receive("ack")
            stored += int(ack.stored_rows)
            if ack.through_seq >= seq:
                return stored

    async def __aenter__(self) -> Agent:
        await self.send(self.hello)
        self.welcome = await self.receive("welcome")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self.channel.close(None)

"""``python -m campaign.malformed [MESSAGES [SEED]]``: what no agent sends, to a collector that others use.

A sound Hello, batch, gap, status and goodbye are mutated on the wire: bits flipped, bytes cut, doubled
and put in, lengths that lie, messages in messages, payloads that say another size or decompress without
end. Each goes over a real stream; a stream that the collector ends is opened again. Meanwhile an honest node
sends as ever: each of its batches must be acknowledged, and the collector must neither end nor grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import psutil
import zstandard

from campaign.sender import payload
from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc as rpc
from processes import Process

GROWTH_BYTES_MAX: Final = 50 << 20
WARM_MESSAGES: Final = 2_000
FLOODS: Final = 4
STREAM_MESSAGES_MAX: Final = 64
HONEST_S: Final = 0.2
BOMB: Final = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))


@dataclass
class Verdict:
    """What happened. Attributes: problems: one line each; acks_ms: of the honest node, from the start."""

    problems: list[str] = field(default_factory=list)
    sent: int = 0
    streams: int = 0
    grown_bytes: int = 0
    acks_ms: list[float] = field(default_factory=list)


def seeds(base_unix_ms: int) -> list[bytes]:
    """Return sound frames to begin with."""
    batch = codec.pack(payload(1, 8, base_unix_ms))
    batch.seq = 1
    bomb = pb.Batch()
    bomb.CopyFrom(batch)
    bomb.payload = BOMB
    gap = pb.Gap(first_seq=1, last_seq=9, row_count=9, reason="spool_full")
    frames = (
        pb.AgentFrame(hello=hello("f" * 32)),
        pb.AgentFrame(batch=batch),
        pb.AgentFrame(batch=bomb),
        pb.AgentFrame(gap=gap),
        pb.AgentFrame(status=pb.Status(taken_unix_ms=base_unix_ms, spool_batches=3)),
        pb.AgentFrame(goodbye=pb.Goodbye(reason="stop", back_in_ms=1)),
    )
    return [frame.SerializeToString() for frame in frames]


def hello(spool_id: str, node: str = "fuzz") -> pb.Hello:
    """Return a Hello that is taken."""
    return pb.Hello(protocol_revision=1, cluster="atlas", node_id=node, spool_id=spool_id)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one to four mutations."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = chance.randbytes(chance.randrange(1, 16))
            case 3:
                out[at:at] = out[: chance.randrange(64)]
            case 4:  # a length that lies, up to 2^63
                out[at:at] = (
                    bytes([chance.randrange(8) << 3 | 2]) + b"\xff" * chance.randrange(9) + b"\x7f"
                )
            case 5:  # a message in a message
                for _ in range(chance.randrange(40)):
                    out[:] = b"\x12" + bytes([len(out) & 0x7F]) + out
            case _:
                out[:] = chance.randbytes(chance.randrange(200))
    return bytes(out)


class Campaign:
    """A collector, an honest node and those that are not."""

    def __init__(self, home: Path, seed: int) -> None:
        command = (sys.executable, "-m", "campaign.collecting", "127.0.0.1:0", str(home / "store"))
        self.collector = Process(command, home / "collecting.log")
        self._target = self.collector.line("listening ")
        self._seed = seed
        self._base = time.time_ns() // 1_000_000 - 3_600_000
        self._verdict = Verdict()

    async def run(self, messages: int) -> Verdict:
        """Send so many, and judge."""
        verdict, process = self._verdict, psutil.Process(self.collector.pid)
        honest = asyncio.create_task(self._honest())
        await self._flood(min(WARM_MESSAGES, messages // 2))
        before = process.memory_info().rss
        await self._flood(messages - verdict.sent)
        verdict.grown_bytes = process.memory_info().rss - before
        if verdict.grown_bytes > GROWTH_BYTES_MAX:
            verdict.problems.append(f"the collector grew by {verdict.grown_bytes >> 20} MiB")
        acked = len(verdict.acks_ms)
        while len(verdict.acks_ms) <= acked and self.collector.running and not honest.done():
            await asyncio.sleep(HONEST_S)
        if honest.done():
            verdict.problems.append(f"the honest node's stream ended: {honest.exception()}")
        honest.cancel()
        await asyncio.gather(honest, return_exceptions=True)
        if not self.collector.running:
            verdict.problems.append(f"the collector ended: {self.collector.said()[-500:]}")
        return verdict

    async def _flood(self, messages: int) -> None:
        share = -(-messages // FLOODS)
        floods = (self._attack(share, random.Random(f"{self._seed} {i}")) for i in range(FLOODS))
        await asyncio.gather(*floods)

    async def _attack(self, messages: int, chance: random.Random) -> None:
        sound = seeds(self._base)
        while messages > 0 and self.collector.running:
            count = min(messages, chance.randrange(1, STREAM_MESSAGES_MAX))
            first = [sound[0]] if chance.random() < 0.9 else []
            frames = first + [mutated(chance.choice(sound), chance) for _ in range(count)]
            messages -= await self._stream(frames)

    async def _stream(self, frames: list[bytes]) -> int:
        """Send frames until the collector ends the stream; return how many it was sent."""
        sent = 0

        async def written() -> AsyncIterator[bytes]:
            nonlocal sent
            for frame in frames:
                sent += 1
                yield frame

        self._verdict.streams += 1
        async with grpc.aio.insecure_channel(self._target) as channel:
            method = channel.stream_stream(
                "/flopwatch.v1.Ingest/Stream",
                request_serializer=bytes,
                response_deserializer=bytes,
            )
            with contextlib.suppress(grpc.RpcError, TimeoutError):
                async with asyncio.timeout(20):
                    async for _ in method(written()):
                        pass
        self._verdict.sent += sent
        return max(sent, 1)

    async def _honest(self) -> None:
        """Be a node as any other: a batch, its acknowledgement, and so on."""
        async with grpc.aio.insecure_channel(self._target) as channel:
            stub: Any = rpc.IngestStub(channel)
            call = stub.Stream()
            await call.write(pb.AgentFrame(hello=hello("a" * 32, "n1")))
            seq = 0
            while True:
                seq += 1
                batch = codec.pack(payload(seq, 1, self._base))
                batch.seq = seq
                began = time.monotonic()
                await call.write(pb.AgentFrame(batch=batch))
                while (frame := await call.read()).ack.through_seq < seq:
                    if frame.HasField("reject"):
                        raise RuntimeError(f"an honest batch was rejected: {frame.reject.code}")
                self._verdict.acks_ms.append(1000 * (time.monotonic() - began))
                await asyncio.sleep(HONEST_S)


@contextlib.contextmanager
def campaign(home: Path, seed: int) -> Any:
    """A campaign, and no process of it after the block."""
    made = Campaign(home, seed)
    try:
        yield made
    finally:
        made.collector.end()


def main(messages: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch, campaign(Path(scratch), seed) as running:
        verdict: Verdict = asyncio.run(running.run(messages))
    acks = sorted(verdict.acks_ms)
    sys.stdout.write(
        f"seed {seed}: {verdict.sent} malformed messages on {verdict.streams} streams, collector grew by "
        f"{verdict.grown_bytes / (1 << 20):.1f} MiB; honest node: {len(acks)} batches acknowledged, "
        f"median {acks[len(acks) // 2]:.0f} ms, p99 {acks[len(acks) * 99 // 100]:.0f} ms, "
        f"{len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [200_000, 1][len(chosen) :])))

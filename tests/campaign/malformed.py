"""``python -m campaign.malformed [MESSAGES [SEED]]``: what no agent sends, to a collector that others use.

A sound Hello, batch, gap, status and goodbye are mutated on the wire: bits flipped, bytes cut, doubled
and put in, lengths that lie, messages in messages, payloads that say another size or decompress without
end. Each goes over a real stream; a stream that the collector ends is opened again. Meanwhile honest nodes
send as ever: each of their batches must be acknowledged, and the collector must neither end nor grow.

Three phases: honest load until the collector is warm; the control, honest load alone; malformed messages
beside it. What the third adds is held against the second, in memory and in waits for acknowledgements.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
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
WAITS_MAX: Final = 2.0
"""How many times as long as in the control the slowest hundredth of acknowledgements may take."""
WARM_S: Final = 30.0
CONTROL_MESSAGES_PER_S: Final = 2_000
"""The control lasts as long as the malformed phase would at this pace; both lengths are said."""
SAMPLE_S: Final = 0.5
NODES: Final = 4
FLOODS: Final = 4
OWN_CONNECTION: Final = (("grpc.use_local_subchannel_pool", 1),)
"""Else all share one connection, and wait for one of the 4 streams that a collector allows on it."""
COLLECTOR: Final = """
import asyncio, sys
from campaign.collecting import collect
from flopwatch_collector.tuning import tune
tune()  # as the collector does before anything else
asyncio.run(collect(*sys.argv[1:]))
"""
STREAM_MESSAGES_MAX: Final = 64
HONEST_S: Final = 0.2
BOMB: Final = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))


@dataclass
class Phase:
    """What was seen in one phase.

    Attributes:
        seconds: how long it was.
        rss_bytes, peak_bytes: of the collector, at its end and at most.
        acks_ms: waits of honest nodes for an acknowledgement.
    """

    seconds: float = 0.0
    rss_bytes: int = 0
    peak_bytes: int = 0
    acks_ms: list[float] = field(default_factory=list)

    def wait_ms(self, share: float) -> float:
        """Return the wait that this share of acknowledgements did not exceed; NaN without any."""
        waits = sorted(self.acks_ms)
        return waits[int(len(waits) * share)] if waits else float("nan")


@dataclass
class Verdict:
    """What happened. Attributes: problems: one line each; control, malformed: the phases compared."""

    problems: list[str] = field(default_factory=list)
    sent: int = 0
    streams: int = 0
    control: Phase = field(default_factory=Phase)
    malformed: Phase = field(default_factory=Phase)

    @property
    def grown_bytes(self) -> int:
        """What the collector holds more than at the end of the control."""
        return self.malformed.rss_bytes - self.control.rss_bytes


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
    """A collector, honest nodes and those that are not."""

    def __init__(self, home: Path, seed: int) -> None:
        command = (sys.executable, "-c", COLLECTOR, "127.0.0.1:0", str(home / "store"))
        self.collector = Process(command, home / "collecting.log")
        self._target = self.collector.line("listening ")
        self._seed = seed
        self._base = time.time_ns() // 1_000_000 - 3_600_000
        self._verdict = Verdict()
        self._phase = Phase()

    async def run(self, messages: int, warm_s: float = WARM_S) -> Verdict:
        """Send so many; problems are of what ended, memory and waits are for the caller to judge."""
        verdict = self._verdict
        honest = [asyncio.create_task(self._honest(f"n{i + 1}")) for i in range(NODES)]
        await self._during(asyncio.sleep(warm_s))
        control_s = messages / CONTROL_MESSAGES_PER_S
        verdict.control = await self._during(asyncio.sleep(control_s))
        verdict.malformed = await self._during(self._flood(messages))
        # Everything that was sent is handled by the time all of them were acknowledged twice more.
        self._phase = Phase()
        while len(self._phase.acks_ms) < 2 * NODES and self.collector.running:
            if any(task.done() for task in honest):
                break
            await asyncio.sleep(HONEST_S)
        for task in honest:
            if task.done():
                verdict.problems.append(f"an honest node's stream ended: {task.exception()}")
            task.cancel()
        await asyncio.gather(*honest, return_exceptions=True)
        if not self.collector.running:
            verdict.problems.append(f"the collector ended: {self.collector.said()[-500:]}")
        return verdict

    async def _during(self, work: Coroutine[Any, Any, None]) -> Phase:
        """Return what was seen while this was done."""
        phase = self._phase = Phase()
        process, began = psutil.Process(self.collector.pid), time.monotonic()
        doing = asyncio.create_task(work)
        while self.collector.running:
            phase.rss_bytes = process.memory_info().rss
            phase.peak_bytes = max(phase.peak_bytes, phase.rss_bytes)
            done, _ = await asyncio.wait({doing}, timeout=SAMPLE_S)
            if done:
                break
        await doing
        phase.seconds = time.monotonic() - began
        if self.collector.running:
            phase.rss_bytes = process.memory_info().rss
        return phase

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
        async with grpc.aio.insecure_channel(self._target, OWN_CONNECTION) as channel:
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

    async def _honest(self, node: str) -> None:
        """Be a node as any other: a batch, its acknowledgement, and so on."""
        async with grpc.aio.insecure_channel(self._target, OWN_CONNECTION) as channel:
            stub: Any = rpc.IngestStub(channel)
            call = stub.Stream()
            await call.write(pb.AgentFrame(hello=hello(f"{node:a<32}", node)))
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
                self._phase.acks_ms.append(1000 * (time.monotonic() - began))
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
    for name, phase in (("control", verdict.control), ("malformed", verdict.malformed)):
        sys.stdout.write(
            f"{name}: {phase.seconds:.0f} s, memory {phase.rss_bytes / (1 << 20):.1f} MiB at the end, "
            f"{phase.peak_bytes / (1 << 20):.1f} at most; {len(phase.acks_ms)} honest batches "
            f"acknowledged, median {phase.wait_ms(0.5):.0f} ms, p99 {phase.wait_ms(0.99):.0f} ms\n"
        )
    if verdict.grown_bytes > GROWTH_BYTES_MAX:
        verdict.problems.append(f"the collector grew by {verdict.grown_bytes >> 20} MiB")
    if not verdict.malformed.wait_ms(0.99) <= WAITS_MAX * verdict.control.wait_ms(0.99):
        verdict.problems.append("honest nodes waited more than twice as long as in the control")
    sys.stdout.write(
        f"seed {seed}: {verdict.sent} malformed messages on {verdict.streams} streams, grown by "
        f"{verdict.grown_bytes / (1 << 20):.1f} MiB, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [200_000, 1][len(chosen) :])))

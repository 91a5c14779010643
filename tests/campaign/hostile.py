"""``python -m campaign.hostile [CLIENTS [SEED]]``: so many clients of each kind that mean no good.

    silent     a TCP connection that says nothing
    mute       a stream without a Hello, four to a connection
    pinging    a connection that pings twice a second
    headers    a stream with 9 KiB of metadata
    endless    a stream whose metadata never end
    greedy     a stream that sends as fast as TCP takes it, whatever its credits
    deaf       a stream that asks for answers and takes none

The bytes are made by hand: HTTP/2 and gRPC as their specifications have them. All of one kind are there at
one time; meanwhile honest nodes send as ever. Each kind must come to an end by the collector's limits, no
honest batch may be lost, and what the honest nodes append meanwhile must be acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import hpack
import psutil

from campaign.malformed import hello
from campaign.nodes import Node, collector, held_by, judged
from campaign.sender import payload
from flopwatch_agent.channel import BROKEN, Channel, Refusal
from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb
from processes import Process

KINDS: Final = ("silent", "mute", "pinging", "headers", "endless", "greedy", "deaf")
MAY_STAY: Final = ("endless", "greedy", "deaf")
FEW: Final = 50
"""Of those that do more than to be there."""
ENDED_SECONDS_MAX: Final = 60.0
STREAMS_PER_CONNECTION: Final = 4
AT_ONCE: Final = 200

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 6, 7, 9
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CALL: Final = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/flopwatch.v1.Ingest/Stream"),
    (":authority", "collector"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


def frame(kind: int, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Return a frame of HTTP/2."""
    return (
        struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body
    )


def opening(streams: int, *, window: int = 65_535, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return a preface, settings, and the heads of so many calls."""
    settings = struct.pack(">HI", 4, window)
    heads = (
        frame(_HEADERS, 2 * i + 1, hpack.Encoder().encode((*_CALL, *more)), 4)
        for i in range(streams)
    )
    return _PREFACE + frame(_SETTINGS, 0, settings) + b"".join(heads)


def message(sent: pb.AgentFrame, stream: int = 1) -> bytes:
    """Return a message of gRPC in frames of HTTP/2."""
    body = sent.SerializeToString()
    whole = b"\0" + struct.pack(">I", len(body)) + body
    parts = (whole[i : i + 16_384] for i in range(0, len(whole), 16_384))
    return b"".join(frame(_DATA, stream, part) for part in parts)


@dataclass
class Verdict:
    """What happened. Attributes: problems: one line each; ended: of each kind; rss_mib: the most, by kind."""

    problems: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    rss_mib: dict[str, int] = field(default_factory=dict)
    fresh_seconds: dict[str, float] = field(default_factory=dict)
    rows: int = 0


class Client:
    """One connection. Attributes: ended: whether the collector ended it, or its stream."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._place = host, int(port)
        self.ended = False

    async def run(self, first: bytes, more: Callable[[Client], Awaitable[None]] | None) -> None:
        """Say the first bytes and then more; listen until the collector ends it."""
        self.reader, self.writer = await asyncio.open_connection(*self._place, limit=4_096)
        telling: asyncio.Task[None] | None = None
        try:
            self.writer.write(first)
            if more is not None:
                telling = asyncio.create_task(self._tell(more))
            while not self.ended:
                head = await self.reader.readexactly(9)
                left = int.from_bytes(head[:3], "big")
                body = await self.reader.readexactly(left)
                if head[3] in (_SETTINGS, _PING) and not head[4] & 1:
                    self.writer.write(frame(head[3], 0, body if head[3] == _PING else b"", 1))
                trailers = head[3] == _HEADERS and head[4] & 1
                self.ended = head[3] in (_RST, _GOAWAY) or bool(trailers)
        except (OSError, asyncio.IncompleteReadError):
            self.ended = True
        finally:
            if telling is not None:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
            self.writer.transport.abort()

    async def _tell(self, more: Callable[[Client], Awaitable[None]]) -> None:
        with contextlib.suppress(OSError):
            await more(self)


async def ping(client: Client) -> None:
    """Ping for ever."""
    while True:
        client.writer.write(frame(_PING, 0, bytes(8)))
        await client.writer.drain()
        await asyncio.sleep(0.5)


async def head_without_end(client: Client) -> None:
    """Send metadata for ever."""
    while True:
        client.writer.write(frame(_CONTINUATION, 1, bytes(8_192)))
        await client.writer.drain()


def plan(
    kind: str, number: int, chance: random.Random
) -> tuple[bytes, Callable[[Client], Awaitable[None]] | None]:
    """Return what such a client says first, and what then."""
    name = f"{kind}{number}"
    speaks = message(pb.AgentFrame(hello=hello(f"{chance.getrandbits(128):032x}", name)))
    match kind:
        case "silent":
            return b"", None
        case "mute":
            return opening(STREAMS_PER_CONNECTION), None
        case "pinging":
            return opening(0), ping
        case "headers":
            return opening(1, more=(("x", "y" * 9_000),)), None
        case "endless":
            unended = frame(_HEADERS, 1, hpack.Encoder().encode(_CALL))
            return opening(0) + unended, head_without_end
        case "deaf":
            return opening(1, window=0) + speaks, None
    raise ValueError(kind)


async def greed(name: str, target: str, base_unix_ms: int) -> None:
    """Send batches as fast as they go, whatever the collector says."""
    channel = Channel(target)
    try:
        call = await channel.stream()
        await call.write(pb.AgentFrame(hello=hello(name.ljust(32, "0"), name)))
        for seq in range(1, 1_000_000):
            batch = codec.pack(payload(8 * seq, 8, base_unix_ms))
            batch.seq = seq
            await call.write(pb.AgentFrame(batch=batch))
    except (Refusal, *BROKEN):
        pass
    finally:
        channel.close()


async def suffer(
    kind: str, clients: int, seed: int, target: str, base_unix_ms: int, process: psutil.Process
) -> tuple[int, int, int]:
    """Let them all be there; return how many there were, how many ended, and the most memory in MiB."""
    chance, gate = random.Random(f"{seed} {kind}"), asyncio.Semaphore(AT_ONCE)
    count = {
        "mute": -(-clients // STREAMS_PER_CONNECTION),
        **dict.fromkeys(("endless", "greedy"), min(clients, FEW)),
    }
    each = [Client(target) for _ in range(count.get(kind, clients))]

    async def come(number: int, client: Client) -> None:
        async with gate:
            await asyncio.sleep(0.01)
        if kind == "greedy":
            await greed(f"greedy{number}", target, base_unix_ms)
            client.ended = True
        else:
            await client.run(*plan(kind, number, chance))

    tasks = [asyncio.create_task(come(number, client)) for number, client in enumerate(each)]
    rss, give_up = 0, time.monotonic() + ENDED_SECONDS_MAX
    while time.monotonic() < give_up and not all(task.done() for task in tasks):
        rss = max(rss, process.memory_info().rss)
        await asyncio.sleep(0.25)
        # These may stay as long as they harm nobody.
        if kind in MAY_STAY and time.monotonic() > give_up - ENDED_SECONDS_MAX * 0.75:
            break
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return len(each), sum(client.ended for client in each), rss >> 20


async def run(
    home: Path, serving: Process, clients: int, seed: int, kinds: tuple[str, ...]
) -> Verdict:
    """Let each kind come, and judge."""
    verdict, base_unix_ms = Verdict(), time.time_ns() // 1_000_000 - 3_600_000
    target = await asyncio.to_thread(serving.line, "listening ")
    process = psutil.Process(serving.pid)
    fleet = [Node(f"n{i}", target, home, base_unix_ms) for i in range(3)]
    for node in fleet:
        await node.fresh_seconds()
    verdict.rss_mib["before"] = process.memory_info().rss >> 20
    for kind in kinds:
        suffering = asyncio.create_task(suffer(kind, clients, seed, target, base_unix_ms, process))
        longest = 0.0
        while not suffering.done():
            longest = max(longest, await fleet[0].fresh_seconds())
            assert serving.running, serving.said()
        count, ended, verdict.rss_mib[kind] = suffering.result()
        verdict.ended[kind], verdict.fresh_seconds[kind] = ended, longest
        if ended < count and kind not in MAY_STAY:
            verdict.problems.append(
                f"{kind}: {count - ended} of {count} were still there after {ENDED_SECONDS_MAX} s"
            )
        sys.stdout.write(
            f"{kind}: {ended} of {count} ended, {verdict.rss_mib[kind]} MiB, {longest:.1f} s\n"
        )
        sys.stdout.flush()
    for node in fleet:
        await node.finish()
    held = await held_by(serving)
    held["audit"] = [each for each in held["audit"] if each["node"].startswith("n")]
    produced = {node.name: node.promised for node in fleet}
    verdict.problems += judged(held, produced, base_unix_ms)
    verdict.rows = sum(produced.values())
    return verdict


def main(clients: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch, collector(Path(scratch)) as serving:
        verdict = asyncio.run(run(Path(scratch), serving, clients, seed, KINDS))
    sys.stdout.write(
        f"seed {seed}: {clients} clients of each kind; ended by the collector {verdict.ended}; its memory in "
        f"MiB {verdict.rss_mib}; longest wait of an honest batch in s "
        f"{ {kind: round(seconds, 1) for kind, seconds in verdict.fresh_seconds.items()} }; "
        f"{verdict.rows} honest rows, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [10_000, 1][len(chosen) :])))

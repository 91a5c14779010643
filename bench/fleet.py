"""A fleet on one core: agents' streams as bytes, without the agents. What a collector sees is the same.

    .venv/bin/python bench/fleet.py HOST:PORT [--nodes 10000] [--resolution 10] [--seconds 60] [--tls DIR]

Each node is a connection of its own with a Hello, its slots and a batch of 8 cards every 10 s at its own
offset; HTTP/2 and gRPC frames are written as they are on the wire. Rows are those of simulated nodes: a few
hundred different ones, shared by the nodes. Acknowledgements are timed from the write of a batch. With --tls,
DIR holds ca.pem, and NODE.pem with the certificate and key of each. Prints JSON: once all streams stand,
after each line on stdin (what happened since the last one), and at the end. A line that holds a number sets
the share of nodes whose cards are free from the next interval on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import Final

from hpack import Encoder

from flopwatch.simulate import scenario
from flopwatch.simulate.backfill import new_fold, payload_of
from flopwatch.simulate.player import NodePlayer
from flopwatch_proto import codec
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.v1 import telemetry_pb2 as pb

CLUSTER: Final = "bench"
CARDS: Final = 8
PERIOD_MS: Final = 10_000
SPREAD: Final = 0.95
CONNECTS_AT_ONCE: Final = 100
SCENARIO: Final = """
[scenario]
seed = 1
duration = "endless"
interval = "{resolution}s"

[[cluster]]
name = "bench"
sku = "NVIDIA H100 80GB HBM3"
nodes = {nodes}
cards_per_node = 8

[[cluster.phase]]
state = "active"
nodes = "*"
job = "llama-70b"
team = "pretraining"
sm_active = 0.92
tensor_active = 0.46
dram_active = 0.35
power_watts = 610
throttle = {{ power = 0.08 }}
declared_mfu = 0.36
noise = 0.02
"""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0, 1, 4, 6, 7


def messages(variants: int, resolution: int) -> list[pb.IntervalRows]:
    """Return rows of 10 s of that many nodes, as messages of columns whose first row starts at 0."""
    played = scenario.parse(SCENARIO.format(nodes=variants, resolution=resolution))
    (cluster,) = played.clusters
    made = []
    for node in range(variants):
        player = NodePlayer(
            played, cluster, node, start_unix_ms=0, make_fold=lambda: new_fold(played, cluster)
        )
        found: list[IntervalRow] = []
        while len(found) < CARDS * 10 // resolution:
            found += player.step().rows
        payload = payload_of(found, [])
        assert payload is not None
        made.append(payload.intervals)
    return made


def moved(message: pb.IntervalRows, to_unix_ms: int) -> pb.IntervalRows:
    """Return rows whose first starts at that time."""
    first = min(message.start_unix_ms)
    copy = pb.IntervalRows()
    copy.CopyFrom(message)
    copy.start_unix_ms[:] = [start - first + to_unix_ms for start in message.start_unix_ms]
    return copy


def freed(message: pb.IntervalRows) -> pb.IntervalRows:
    """Return the same rows of cards that nobody uses."""
    message.bucket[:] = [pb.BUCKET_FREE] * len(message.bucket)
    return message


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def grpc_frame(frame: pb.AgentFrame) -> bytes:
    """Return a message as it is on the wire: gRPC's frame in one of HTTP/2."""
    body = frame.SerializeToString()
    return _frame(_DATA, 0, 1, struct.pack(">BI", 0, len(body)) + body)


def node_name(number: int) -> str:
    """Return the name of a node by its number."""
    return f"bench-n{number:05d}"


class Node(asyncio.Protocol):
    """One agent's connection."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet, self.number = fleet, number
        self.name = node_name(number)
        self.welcomed = asyncio.get_running_loop().create_future()
        self.seq = 0
        self.acked = 0
        self.credits = 0
        self.sent_at: dict[int, float] = {}
        self._bytes = b""
        self._messages = b""
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the stream and say hello."""
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        hello = pb.Hello(
            protocol_revision=1,
            agent_version="bench",
            cluster=CLUSTER,
            node_id=self.name,
            simulated=True,
            spool_id=f"{self.number:08x}{time.time_ns():024x}",
            next_seq=1,
            wall_unix_ns=time.time_ns(),
        )
        transport.write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, 4, 1, self.fleet.headers)
            + grpc_frame(pb.AgentFrame(hello=hello))
        )

    def send(self, batch: pb.Batch, rows: int) -> None:
        """Send a batch under the next number."""
        assert self.transport is not None
        batch.rows_before = rows * max(0, self.seq - 1)
        self.seq += 1
        batch.seq = self.seq
        self.sent_at[self.seq] = time.monotonic()
        data = grpc_frame(pb.AgentFrame(batch=batch))
        self.fleet.sent_bytes += len(data)
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Take frames: acknowledgements are timed, settings and pings answered."""
        self._bytes += data
        while len(self._bytes) >= 9:
            size = int.from_bytes(self._bytes[:3], "big")
            if len(self._bytes) < 9 + size:
                return
            kind, flags = self._bytes[3], self._bytes[4]
            body, self._bytes = self._bytes[9 : 9 + size], self._bytes[9 + size :]
            if kind == _DATA:
                self._take(body)
            elif kind in (_SETTINGS, _PING) and not flags & 1:
                assert self.transport is not None
                self.transport.write(_frame(kind, 1, 0, body if kind == _PING else b""))
            elif kind == _GOAWAY:
                self.fleet.errors.append(repr(body[:200]))

    def _take(self, body: bytes) -> None:
        self._messages += body
        while len(self._messages) >= 5:
            size = int.from_bytes(self._messages[1:5], "big")
            if len(self._messages) < 5 + size:
                return
            frame = pb.CollectorFrame.FromString(self._messages[5 : 5 + size])
            self._messages = self._messages[5 + size :]
            if frame.HasField("welcome") and not self.welcomed.done():
                self.credits = frame.welcome.credit_batches
                self.welcomed.set_result(None)
            elif frame.HasField("ack"):
                now = time.monotonic()
                self.credits = frame.ack.credit_batches
                for seq in range(self.acked + 1, frame.ack.through_seq + 1):
                    self.fleet.acks_ms.append(1000 * (now - self.sent_at.pop(seq)))
                self.acked = max(self.acked, frame.ack.through_seq)
            elif frame.HasField("reject"):
                self.fleet.errors.append(frame.reject.message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it, where the fleet did not end it."""
        if not self.fleet.ending:
            self.fleet.errors.append(f"lost: {exc}")
        if not self.welcomed.done():
            self.welcomed.set_result(None)


class Fleet:
    """All nodes. Attributes: acks_ms: of batches since the last `report`."""

    def __init__(self, target: str, nodes: int, resolution: int, tls: Path | None) -> None:
        self.host, _, port = target.rpartition(":")
        self.port = int(port)
        self.tls = tls
        self.resolution = resolution
        self.messages = messages(min(nodes, 400 if resolution == 10 else 100), resolution)
        self.rows = len(self.messages[0].slot)
        self.count = nodes
        self.nodes: list[Node] = []
        self.acks_ms: list[float] = []
        self.errors: list[str] = []
        self.sent_bytes = 0
        self.ending = False
        self.free_share = 0.0
        self.free_from_unix_ms: int | None = None
        scheme = "https" if tls else "http"
        self.headers = Encoder().encode(
            [
                (":method", "POST"),
                (":scheme", scheme),
                (":path", "/flopwatch.v1.Ingest/Stream"),
                (":authority", target),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ]
        )

    async def connect(self) -> None:
        """Open every stream and declare the slots."""
        turns = asyncio.Semaphore(CONNECTS_AT_ONCE)

        async def one(number: int) -> None:
            async with turns:
                _, node = await asyncio.get_running_loop().create_connection(
                    lambda: Node(self, number),
                    self.host,
                    self.port,
                    ssl=tls_of(self.tls, node_name(number)),
                    server_hostname="localhost" if self.tls else None,
                )
                await node.welcomed
                node.send(codec.pack(pb.Payload(slots=_slots(node.name))), self.rows)
                self.nodes.append(node)

        await asyncio.gather(*(one(number) for number in range(self.count)))

    async def play(self, seconds: float) -> None:
        """Send every node's batch of each period at its own offset."""
        period = time.time_ns() // 1_000_000 // PERIOD_MS + 1
        end = time.time() + seconds
        while True:
            start_unix_ms = (period - 1) * PERIOD_MS
            batches = [
                codec.pack(pb.Payload(intervals=moved(message, start_unix_ms)))
                for message in self.messages
            ]
            free = [
                codec.pack(pb.Payload(intervals=freed(moved(message, start_unix_ms))))
                for message in (self.messages if self.free_share else ())
            ]
            freed_nodes = self.free_share * len(self.nodes)
            if not free:
                self.free_from_unix_ms = None
            elif self.free_from_unix_ms is None:
                self.free_from_unix_ms = start_unix_ms
            for i, node in enumerate(self.nodes):
                at = (period * PERIOD_MS + SPREAD * PERIOD_MS * i / len(self.nodes)) / 1000
                if at > end:
                    return
                wait = at - time.time()
                if wait > 0.005:
                    await asyncio.sleep(wait)
                elif i % 20 == 0:
                    await asyncio.sleep(0)
                said = free if i < freed_nodes else batches
                node.send(said[i % len(said)], self.rows)
            period += 1

    def report(self) -> dict[str, object]:
        """Return what happened since the last time."""
        acks, self.acks_ms = sorted(self.acks_ms), []
        sent, self.sent_bytes = self.sent_bytes, 0
        return {
            "acks": len(acks),
            "rows_per_batch": self.rows,
            "unacked": sum(len(node.sent_at) for node in self.nodes),
            "ack_ms": {
                name: round(acks[min(len(acks) - 1, int(share * len(acks)))], 1) if acks else None
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
            "sent_bytes": sent,
            "free_from_unix_ms": self.free_from_unix_ms,
            "errors": self.errors[:5],
            "error_count": len(self.errors),
        }


def _slots(node: str) -> list[pb.SlotDeclaration]:
    buses = ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db")
    return [
        pb.SlotDeclaration(
            node=node,
            slot=f"0000:{bus}:00.0",
            sku="NVIDIA H100 80GB HBM3",
            device_kind="gpu",
            dtype="bf16",
            state=pb.SLOT_STATE_IN_SERVICE,
            from_unix_ms=time.time_ns() // 1_000_000 // PERIOD_MS * PERIOD_MS,
        )
        for bus in buses
    ]


def tls_of(directory: Path | None, node: str) -> ssl.SSLContext | None:
    """Return the context of a node that shows its own certificate."""
    if directory is None:
        return None
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / f"{node}.pem")
    context.set_alpn_protocols(["h2"])
    return context


async def run(given: argparse.Namespace) -> None:
    """Connect, say so, play, and report when asked."""
    fleet = Fleet(given.target, given.nodes, given.resolution, given.tls)
    began = time.monotonic()
    await fleet.connect()
    sys.stdout.write(json.dumps({"connect_s": round(time.monotonic() - began, 1)}) + "\n")
    sys.stdout.flush()
    playing = asyncio.create_task(fleet.play(given.seconds))
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, lambda: _asked(fleet))
    await playing
    await asyncio.sleep(3)
    loop.remove_reader(sys.stdin)
    _tell(fleet.report())
    fleet.ending = True


def _asked(fleet: Fleet) -> None:
    if line := sys.stdin.readline():
        if share := line.strip():
            fleet.free_share = float(share)
        _tell(fleet.report())
    else:
        asyncio.get_running_loop().remove_reader(sys.stdin)


def _tell(report: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Play a fleet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--resolution", type=int, choices=(1, 10), default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tls", type=Path)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()

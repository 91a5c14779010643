"""The simulator against a collector that only counts: what arrives, and what happens without one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from flopwatch.simulate import scenario
from flopwatch.simulate.backfill import Backfill
from flopwatch.simulate.live import Live
from flopwatch.simulate.lost import CollectorLostError, Patience
from flopwatch_agent.clock import SystemClock
from flopwatch_proto import codec
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc as rpc

START = 1_790_000_000_000

SMALL = """
[scenario]
duration = "10m"
[[cluster]]
name = "a"
sku = "NVIDIA H100 80GB HBM3"
nodes = 3
cards_per_node = 2
[[cluster.phase]]
nodes = "0-1"
sm_active = 0.9
job = "j"
[[cluster.phase]]
nodes = "1"
from = "2m"
to = "4m"
state = "silent"
[[cluster.xid]]
at = "5m"
node = 0
card = 1
code = 79
"""


class Counting(rpc.IngestServicer):
    """Acknowledges everything and counts it. Attributes: refuse: of the first batch, a Reject's code."""

    def __init__(self) -> None:
        self.card_ms: Counter[int] = Counter()
        self.frames: Counter[str] = Counter()
        self.slots: list[pb.SlotDeclaration] = []
        self.rosters: list[pb.Roster] = []
        self.events: list[pb.Event] = []
        self.goodbyes: list[str] = []
        self.hellos: list[pb.Hello] = []
        self.refuse = ""

    async def Stream(
        self, request_iterator: AsyncIterator[pb.AgentFrame], context: Any
    ) -> AsyncIterator[pb.CollectorFrame]:
        async for frame in request_iterator:
            kind = frame.WhichOneof("frame") or ""
            self.frames[kind] += 1
            if kind == "hello":
                self.hellos.append(frame.hello)
                welcome = pb.Welcome(session="s", credit_batches=8, credit_bytes=1 << 20)
                yield pb.CollectorFrame(welcome=welcome)
            elif kind == "batch" and self.refuse:
                code, self.refuse = self.refuse, ""
                reject = pb.Reject(seq=frame.batch.seq, code=code, permanent=True)
                yield pb.CollectorFrame(reject=reject)
            elif kind == "batch":
                self._take(codec.unpack(frame.batch))
                ack = pb.Ack(
                    through_seq=frame.batch.seq,
                    stored_rows=frame.batch.row_count,
                    credit_batches=8,
                )
                yield pb.CollectorFrame(ack=ack)
            elif kind == "goodbye":
                self.goodbyes.append(frame.goodbye.reason)

    def _take(self, payload: pb.Payload) -> None:
        rows = payload.intervals
        for bucket, card_ms in zip(rows.bucket, rows.card_ms, strict=True):
            self.card_ms[bucket] += card_ms
        self.slots += payload.slots
        self.rosters += payload.rosters
        self.events += payload.events


@pytest.fixture
async def collector() -> AsyncIterator[tuple[str, Counting]]:
    counting = Counting()
    server = grpc.aio.server()
    rpc.add_IngestServicer_to_server(counting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", counting
    await server.stop(None)


async def backfill(target: str, played: list[int]) -> Backfill:
    run = Backfill(
        target,
        scenario.parse(SMALL),
        start_unix_ms=START,
        clock=SystemClock(),
        on_played=played.append,
    )
    await run.run()
    return run


async def test_a_backfill_delivers_the_whole_scenario_once(
    collector: tuple[str, Counting],
) -> None:
    target, counting = collector
    played: list[int] = []
    run = await backfill(target, played)
    assert not run.refused
    assert sum(played) == 3 * 60
    assert counting.card_ms == {
        Bucket.ACTIVE: 4 * 600_000 - 2 * 120_000 - 300_000,
        Bucket.FAILED: 300_000,
        Bucket.FREE: 2 * 600_000,
    }
    assert {(d.node, d.from_unix_ms, d.to_unix_ms) for d in counting.slots} == {
        (f"a-000{i}", START, START + 600_000) for i in range(3)
    }
    edges = {0, 120_000, 240_000, 300_000}
    assert edges <= {r.taken_unix_ms - START for r in counting.rosters}
    assert [(e.kind, e.code) for e in counting.events] == [("xid", 79)]
    assert counting.goodbyes == ["scenario_end"] * 4
    assert all(hello.simulated and hello.cluster == "a" for hello in counting.hellos)
    assert {hello.node_id for hello in counting.hellos} == {
        *(f"a-000{i}" for i in range(3)),
        "a-scheduler",
    }


async def test_many_intervals_travel_in_one_batch(collector: tuple[str, Counting]) -> None:
    target, counting = collector
    await backfill(target, [])
    rosters_and_slots = len(counting.rosters) + 1
    assert counting.frames["batch"] - rosters_and_slots <= 3 * 3


async def test_what_the_collector_refuses_is_told(collector: tuple[str, Counting]) -> None:
    target, counting = collector
    counting.refuse = "bad_rows"
    run = await backfill(target, [])
    assert run.refused == {"bad_rows": 1}


async def test_a_live_run_ends_with_goodbyes_and_slots_out_of_service(
    collector: tuple[str, Counting],
) -> None:
    target, counting = collector
    stop = asyncio.Event()
    live = Live(target, scenario.parse(SMALL), clock=SystemClock())
    running = asyncio.create_task(live.run(stop))
    while not counting.rosters or not counting.slots:
        await asyncio.sleep(0.02)
    stop.set()
    await running
    assert counting.goodbyes == ["stop"] * 4
    started = {d.from_unix_ms for d in counting.slots}
    ended = max(d.to_unix_ms for d in counting.slots[-6:])
    assert len(started) == 1
    lived_ms = ended - started.pop()
    assert sum(counting.card_ms.values()) == 6 * lived_ms


def test_an_absent_collector_is_given_up_after_a_minute() -> None:
    patience = Patience(target="h:1", since_seconds=0.0)
    patience.check(59.9, connected=False)
    with pytest.raises(CollectorLostError, match=r"cannot reach a collector at h:1"):
        patience.check(60.0, connected=False, error="refused")


def test_a_lost_collector_is_given_up_after_ten_minutes() -> None:
    patience = Patience(target="h:1", since_seconds=0.0)
    patience.check(50.0, connected=True)
    patience.check(649.0, connected=False)
    with pytest.raises(CollectorLostError, match=r"lost the collector at h:1"):
        patience.check(650.0, connected=False)

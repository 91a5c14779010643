"""Ingest over a real gRPC stream into a real store: what is acknowledged, refused, and kept."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pyarrow as pa
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from flopwatch_collector import listen
from flopwatch_collector.ingest import Sink
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry.dirty import dirty_minutes
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto import codec
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import RetryableError, UsageError
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb
from wire_agent import Agent, batch, row

NOW_MS = time.time_ns() // 60_000_000_000 * 60_000  # the store drops rows that are too old
MINUTE_MS = 60_000


@dataclass(slots=True)
class Heard:
    """A Sink that remembers."""

    rows: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def add_many(
        self, cluster: str, simulated: bool, columns: pa.Table, stored_unix_ms: int
    ) -> None:
        self.calls.append("add")
        self.rows.extend(columns["start_unix_ms"].to_pylist())

    def roster(self, cluster: str, simulated: bool, columns: Columns) -> None:
        self.calls.append("roster")

    def slots(self, cluster: str, simulated: bool, columns: Columns) -> None:
        self.calls.append("slots")

    def hello(self, hello: pb.Hello, now_unix_ms: int) -> None:
        pass

    def status(
        self,
        cluster: str,
        node: str,
        simulated: bool,
        status: pb.Status,
        columns: Columns,
        now_unix_ms: int,
    ) -> None:
        self.calls.append(f"status {len(columns['slot'])}")

    def goodbye(self, cluster: str, node: str, back_in_ms: int, now_unix_ms: int) -> None:
        self.calls.append(f"goodbye {back_in_ms}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    port: int
    heard: Heard
    registry: CollectorRegistry

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"flopwatch_ingest_{name}", labels) or 0.0


@pytest.fixture
async def served(store: TelemetryStore) -> AsyncIterator[Served]:
    heard = Heard()
    sink: Sink = heard
    registry = CollectorRegistry()
    server = IngestServer(store, sink, registry=registry)
    yield Served(port=await server.start("127.0.0.1:0"), heard=heard, registry=registry)
    await server.stop(5.0)


def one(store: TelemetryStore, sql: str) -> Any:
    """Return the one row of an answer, or its one value."""
    [found] = store.query(f"SELECT {sql}").to_pylist()
    values = tuple(found.values())
    return values if len(values) > 1 else values[0]


async def test_rows_can_be_read_when_they_are_acknowledged(
    served: Served, store: TelemetryStore
) -> None:
    async with Agent(served.port) as agent:
        await agent.send(
            batch(7, [row(NOW_MS), row(NOW_MS, slot="1", sm_active_ms=Absence.FAILED)])
        )
        assert await agent.acked(7) == 2
    found = store.query("SELECT * FROM interval FINAL ORDER BY slot").to_pylist()
    assert [r["sm_active_ms"] for r in found] == [9_000.0, None]
    assert [(r["failed"], r["not_supported"]) for r in found] == [
        ([], ["fp64_active_ms"]),
        (["sm_active_ms"], ["fp64_active_ms"]),
    ]
    assert [(r["cluster"], r["node"], r["job"], r["team"], r["seq"]) for r in found] == [
        ("atlas", "n1", "j", "", 7)
    ] * 2
    assert served.heard.rows == [NOW_MS, NOW_MS]
    assert dirty_minutes(store, "atlas") == [("atlas", NOW_MS)]
    assert one(store, "seq, rows FROM receipt") == (7, 2)


async def test_a_batch_that_is_resent_changes_nothing(
    served: Served, store: TelemetryStore
) -> None:
    for _ in range(3):
        async with Agent(served.port) as agent:
            await agent.send(batch(1, [row(NOW_MS), row(NOW_MS + 10_000)]))
            assert await agent.acked(1) == 2
    assert one(store, "count() FROM interval FINAL") == 2
    assert one(store, "count() FROM receipt FINAL") == 1


async def test_every_part_of_a_payload_is_stored(served: Served, store: TelemetryStore) -> None:
    roster = pb.Roster(
        source="slurm",
        taken_unix_ms=NOW_MS,
        valid_until_unix_ms=NOW_MS + 5 * MINUTE_MS,
        strings=["", "n1", "0", "j"],
        node=[1],
        slot=[2],
        bucket=[pb.BUCKET_ALLOCATED],
        job=[3],
        weight=[0.5],
        pending_jobs=4,
    )
    async with Agent(served.port) as agent:
        await agent.send(
            batch(
                1,
                hosts=pb.HostRows(
                    start_unix_ms=[NOW_MS, NOW_MS + 10_000],
                    duration_ms=[10_000, 10_000],
                    cpu_count=[8.0, 0.0],
                    absences=[pb.AbsenceColumn(column="cpu_count", absences=b"\0\3")],
                ),
                rosters=[roster],
                slots=[
                    pb.SlotDeclaration(
                        slot="0", state=pb.SLOT_STATE_IN_SERVICE, from_unix_ms=NOW_MS - MINUTE_MS
                    )
                ],
                events=[pb.Event(slot="0", time_unix_ms=NOW_MS, kind="xid", code=79)],
                probes=[pb.Probe(slot="0", start_unix_ms=NOW_MS, kind="gemm", seconds=1.5)],
            )
        )
        await agent.acked(1)
    assert one(store, "groupArray(cpu_count) FROM host FINAL") == [8.0]
    assert store.query(
        "SELECT node, slot, job, weight, pending_jobs FROM roster ORDER BY node"
    ).to_pylist() == [
        {"node": "", "slot": "", "job": "", "weight": 0.0, "pending_jobs": 4},
        {"node": "n1", "slot": "0", "job": "j", "weight": 0.5, "pending_jobs": 4},
    ]
    assert one(store, "node, slot, state FROM slot") == ("n1", "0", 3)
    assert one(store, "node, kind, code FROM event") == ("n1", "xid", 79)
    assert one(store, "kind, seconds FROM probe") == ("gemm", 1.5)
    assert [(m - NOW_MS) // MINUTE_MS for _, m in dirty_minutes(store)] == [-1, 0, 1, 2, 3, 4]
    assert served.heard.calls == ["slots", "roster"]


def _damaged(seq: int) -> pb.AgentFrame:
    frame = batch(seq, [row(NOW_MS)])
    frame.batch.sha256_16 = b"x" * 16
    return frame


def _slot(**different: Any) -> pb.SlotDeclaration:
    words: dict[str, Any] = {"slot": "0", "state": 3, "from_unix_ms": NOW_MS}
    return pb.SlotDeclaration(**(words | different))


@pytest.mark.parametrize(
    ("poison", "code"),
    [
        (_damaged(2), "bad_hash"),
        (pb.AgentFrame(batch=pb.Batch(seq=2, payload=b"?", raw_bytes=9)), "bad_payload"),
        (batch(2, [row(NOW_MS, sm_active_ms=float("nan"))]), "bad_rows"),
        (batch(2, [row(NOW_MS + 3_600_000)]), "future"),
        (batch(2, slots=[_slot(state=300)]), "bad_rows"),
    ],
)
async def test_a_poisonous_batch_is_set_aside_and_blocks_nothing(
    served: Served, store: TelemetryStore, poison: pb.AgentFrame, code: str
) -> None:
    async with Agent(served.port) as agent:
        await agent.send(batch(1, [row(NOW_MS)]), poison, batch(3, [row(NOW_MS + 10_000)]))
        reject = await agent.receive("reject")
        assert (reject.seq, reject.code, reject.permanent) == (2, code, True)
        assert await agent.acked(3) == 2
    assert one(store, "seq, code, payload != '' FROM quarantine") == (2, code, True)
    assert one(store, "count() FROM interval FINAL") == 2
    assert served.count("quarantined_total") == 1
    assert served.count("rejects_total", code=code) == 1


async def test_rows_that_are_too_old_become_a_gap(served: Served, store: TelemetryStore) -> None:
    async with Agent(served.port) as agent:
        old = agent.welcome.oldest_start_unix_ms - 1
        await agent.send(batch(4, [row(old)]))
        assert (await agent.receive("reject")).code == "too_old"
        await agent.acked(4)
    assert one(store, "first_seq, last_seq, rows, reason FROM gap") == (4, 4, 1, "too_old")


async def test_a_gap_is_stored_and_consumes_its_numbers(
    served: Served, store: TelemetryStore
) -> None:
    gap = pb.Gap(first_seq=2, last_seq=9, row_count=64, bytes=4096, reason="spool_full")
    async with Agent(served.port) as agent:
        await agent.send(batch(1, [row(NOW_MS)]), pb.AgentFrame(gap=gap), batch(10, [row(NOW_MS)]))
        await agent.acked(10)
    assert one(store, "first_seq, last_seq, rows, reason FROM gap") == (2, 9, 64, "spool_full")
    assert served.count("gaps_total") == 1


async def test_a_hole_in_the_numbers_ends_the_stream(served: Served) -> None:
    async with Agent(served.port) as agent:
        await agent.send(batch(1, [row(NOW_MS)]), batch(3, [row(NOW_MS)]))
        with pytest.raises(grpc.aio.AioRpcError, match=r"seq 3\.\.3 after 1: every seq must come"):
            await agent.receive("drain")


async def test_status_is_handed_on_unstored_and_goodbye_follows_the_rows_before_it(
    served: Served, store: TelemetryStore
) -> None:
    status = pb.Status(taken_unix_ms=NOW_MS, newest=codec.encode_rows([row(NOW_MS)]))
    goodbye = pb.Goodbye(reason="upgrade", back_in_ms=5_000)
    async with Agent(served.port) as agent:
        await agent.send(
            batch(1, [row(NOW_MS)]), pb.AgentFrame(status=status), pb.AgentFrame(goodbye=goodbye)
        )
        await agent.acked(1)
    assert served.heard.calls == ["status 1", "add", "goodbye 5000"]


@pytest.mark.parametrize(
    ("different", "code", "text"),
    [
        ({"cluster": ""}, grpc.StatusCode.INVALID_ARGUMENT, "cluster must have 1 to 253"),
        ({"node_id": "n\n1"}, grpc.StatusCode.INVALID_ARGUMENT, "node_id must have 1 to 253"),
        ({"node_id": "n" * 254}, grpc.StatusCode.INVALID_ARGUMENT, "node_id must have 1 to 253"),
        ({"protocol_revision": 9}, grpc.StatusCode.INVALID_ARGUMENT, "protocol revision 9"),
        ({"simulated": True}, grpc.StatusCode.FAILED_PRECONDITION, "'atlas' holds real nodes"),
    ],
)
async def test_a_hello_that_makes_no_sense_is_refused_with_the_reason(
    served: Served, different: dict[str, Any], code: grpc.StatusCode, text: str
) -> None:
    async with Agent(served.port):
        pass
    agent = Agent(served.port, **different)
    await agent.send(agent.hello)
    with pytest.raises(grpc.aio.AioRpcError, match=text):
        await agent.receive("welcome")
    assert await agent.call.code() is code
    await agent.channel.close(None)


async def test_a_cluster_stays_what_it_was_when_the_collector_starts_again(
    store: TelemetryStore,
) -> None:
    first = IngestServer(store, Heard(), registry=CollectorRegistry())
    async with Agent(await first.start("127.0.0.1:0"), simulated=True) as agent:
        await agent.send(batch(1, [row(NOW_MS)]))
        await agent.acked(1)
    await first.stop()
    second = IngestServer(store, Heard(), registry=CollectorRegistry())
    agent = Agent(await second.start("127.0.0.1:0"))
    await agent.send(agent.hello)
    with pytest.raises(
        grpc.aio.AioRpcError, match="'atlas' holds simulated nodes and 'n1' is real"
    ):
        await agent.receive("welcome")
    await agent.channel.close(None)
    await second.stop()


async def test_a_store_that_fails_gets_the_same_rows_again_and_nothing_is_acknowledged_before(
    served: Served, store: TelemetryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = store.append
    failing = True

    def sometimes(table: str, columns: Columns) -> int:
        if failing and table == "receipt":
            raise RetryableError("no space left")
        return append(table, columns)

    monkeypatch.setattr(store, "append", sometimes)
    async with (
        Agent(served.port) as agent,
        grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        await agent.send(batch(1, [row(NOW_MS)]))
        ack = await agent.receive("ack")
        assert (ack.through_seq, ack.credit_batches, ack.retry_after_ms) == (0, 0, 500)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="flopwatch.v1.Ingest"))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        failing = False
        assert await agent.acked(1) == 1
        answer = await health.Check(health_pb2.HealthCheckRequest(service="flopwatch.v1.Ingest"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert one(store, "count() FROM interval FINAL") == 1


async def test_a_stop_stores_and_acknowledges_what_came_and_sends_agents_away(
    store: TelemetryStore,
) -> None:
    server = IngestServer(store, Heard(), registry=CollectorRegistry())
    async with Agent(await server.start("127.0.0.1:0")) as agent:
        await agent.send(batch(1, [row(NOW_MS)]), pb.AgentFrame(status=pb.Status()))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(server.stop())
        drain = await agent.receive("drain")
        assert 0 <= drain.reconnect_after_ms < 1_000
        assert await agent.acked(1) == 1
        await stopping


async def test_an_agent_that_stays_reads_a_plain_end_and_leaves_no_task_behind(
    store: TelemetryStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listen, "LEAVE_SECONDS", 0.2)
    server = IngestServer(store, Heard(), registry=CollectorRegistry())
    async with Agent(await server.start("127.0.0.1:0")) as agent:
        await agent.send(batch(1, [row(NOW_MS)]))
        assert await agent.acked(1) == 1
        stopping = asyncio.create_task(server.stop())
        await agent.receive("drain")
        while await agent.call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass
        assert await agent.call.code() is grpc.StatusCode.OK
        await stopping
    assert not [task for task in asyncio.all_tasks() if "_schedule_rpc_coro" in repr(task)]
    assert "Traceback" not in capfd.readouterr().err


async def test_a_hello_that_comes_while_agents_are_sent_away_is_refused(
    store: TelemetryStore,
) -> None:
    server = IngestServer(store, Heard(), registry=CollectorRegistry())
    port = await server.start("127.0.0.1:0")
    late = Agent(port, node_id="n2")
    async with Agent(port) as stays:
        await asyncio.sleep(0.2)  # where its stream stands only later it is refused as well
        stopping = asyncio.create_task(server.stop())
        await stays.receive("drain")
        await late.send(late.hello)
        with pytest.raises(grpc.aio.AioRpcError, match="the collector is stopping"):
            await late.receive("drain")  # none comes
    await late.channel.close(None)
    await stopping


async def test_a_busy_port_is_a_usage_error_that_names_address_and_flag(
    served: Served, store: TelemetryStore
) -> None:
    other = IngestServer(store, Heard(), registry=CollectorRegistry())
    with pytest.raises(UsageError, match=rf"--grpc: cannot listen on 127.0.0.1:{served.port}"):
        await other.start(f"127.0.0.1:{served.port}")


async def test_a_picture_of_now_that_fails_does_not_keep_rows_from_being_acknowledged(
    served: Served, store: TelemetryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Heard, "add_many", fail)
    async with Agent(served.port) as agent:
        await agent.send(batch(1, [row(NOW_MS)]))
        assert await agent.acked(1) == 1
        await agent.send(batch(2, [row(NOW_MS + 10_000)]))
        assert await agent.acked(2) == 1


@pytest.mark.parametrize("table", ["dirty", "interval", "receipt"])  # marks, rows, receipts
async def test_a_store_that_stalls_holds_up_no_other_stream(
    served: Served, store: TelemetryStore, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    append, asked, moves = store.append, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def stalled(name: str, columns: Any) -> int:
        if name == table:
            loop.call_soon_threadsafe(asked.set)
            if not moves.wait(20):  # whoever should let the store move waits for it
                moves.set()
        return append(name, columns)

    monkeypatch.setattr(store, "append", stalled)
    async with Agent(served.port) as agent:
        await agent.send(batch(1, [row(NOW_MS)]))
        await asked.wait()
        async with Agent(served.port, node_id="n2") as other:
            await other.send(pb.AgentFrame(status=pb.Status(driver_state="ok")))
            while "status 0" not in served.heard.calls:
                await asyncio.sleep(0.01)
        assert not moves.is_set()
        moves.set()
        assert await agent.acked(1) == 1

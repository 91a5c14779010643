"""Limits and identities of ingest over real streams: credits, clones, clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from flopwatch_collector import ingest_commit
from flopwatch_collector.audit import clones
from flopwatch_collector.audit.skew import Skew
from flopwatch_collector.ingest_commit import Sink
from flopwatch_collector.ingest_limits import CREDIT_BATCHES, LARGE_FLEET, Bucket
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry import group
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.v1 import telemetry_pb2 as pb
from wire_agent import Agent, batch, row

NOW_MS = time.time_ns() // 60_000_000_000 * 60_000
OTHER = "6" * 32


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TelemetryStore]:
    """One store for the module: each test has a cluster of its own."""
    opened = TelemetryStore.open(f"chdb://{tmp_path_factory.mktemp('delivery')}/telemetry")
    yield opened
    opened.close()


class Deaf:
    """A sink that takes everything and keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@dataclass(slots=True, kw_only=True)
class Served:
    """A collector's ingest whose wall clock tests move."""

    store: TelemetryStore
    server: IngestServer
    port: int = 0
    registry: CollectorRegistry
    ahead_ms: list[int] = field(default_factory=lambda: [0])

    def count(self, name: str) -> float:
        return self.registry.get_sample_value(f"flopwatch_ingest_{name}_total") or 0.0

    async def events(self, cluster: str) -> list[dict[str, Any]]:
        """Return what was told of a cluster, once it is stored."""
        await asyncio.to_thread(self.server._ingest.keeper.flush)
        found = self.store.query(
            "SELECT node, kind, severity, text FROM event FINAL WHERE cluster = {c:String} "
            "ORDER BY time_unix_ms",
            {"c": cluster},
        )
        return list(found.to_pylist())


@pytest.fixture
async def served(module_store: TelemetryStore) -> AsyncIterator[Served]:
    ahead_ms, registry, sink = [0], CollectorRegistry(), Deaf()
    taker: Sink = sink
    server = IngestServer(
        module_store,
        taker,
        registry=registry,
        now_unix_ns=lambda: time.time_ns() + ahead_ms[0] * 1_000_000,
    )
    made = Served(store=module_store, server=server, registry=registry, ahead_ms=ahead_ms)
    made.port = await server.start("127.0.0.1:0")
    yield made
    await server.stop(5.0)


async def ended(agent: Agent) -> tuple[grpc.StatusCode, str]:
    """Return how the collector ended a stream."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await agent.receive("drain")
    return raised.value.code(), raised.value.details() or ""


async def test_the_newest_session_of_a_node_stands_and_a_clone_is_told_when_the_other_comes_back(
    served: Served,
) -> None:
    async with Agent(served.port, cluster="clones") as first:
        async with Agent(served.port, cluster="clones", spool_id=OTHER) as second:
            code, why = await ended(first)
            assert code is grpc.StatusCode.ABORTED
            assert "a newer session of 'n1' stands, with spool 66666666, which is not yours" in why
            assert await served.events("clones") == []  # it may have been installed anew
            async with Agent(served.port, cluster="clones") as again:
                assert (await ended(second))[0] is grpc.StatusCode.ABORTED
                await again.send(batch(1, [row(NOW_MS)]))
                assert await again.acked(1) == 1
        [event] = await served.events("clones")
    assert (event["node"], event["kind"], event["severity"]) == (
        "n1",
        "duplicate_node_identity",
        "error",
    )
    assert served.count("superseded") == 2


async def test_a_session_that_comes_back_with_its_own_spool_is_no_clone(served: Served) -> None:
    async with Agent(served.port, cluster="back") as first, Agent(served.port, cluster="back"):
        assert "stands, with your spool" in (await ended(first))[1]
    assert await served.events("back") == []


async def test_one_number_with_two_contents_is_found_in_the_receipts(served: Served) -> None:
    since = time.time_ns() // 1_000_000 - 60_000
    for start in (NOW_MS, NOW_MS + 10_000):
        async with Agent(served.port, cluster="copied") as agent:
            await agent.send(batch(7, [row(start)]))
            await agent.acked(7)
    found = [c for c in clones.stored_clones(served.store, since) if c.cluster == "copied"]
    assert [c.node for c in found] == ["n1"]
    assert "1 batches of spool 55555555 came with two contents, from seq 7 on" in found[0].text


async def test_two_spools_that_send_in_turns_are_found_in_the_receipts_and_one_after_the_other_not(
    served: Served,
) -> None:
    now = time.time_ns() // 1_000_000

    def stored(cluster: str, *turns: tuple[str, int]) -> None:
        columns: dict[str, list[Any]] = {
            "cluster": [cluster] * len(turns),
            "node": ["n1"] * len(turns),
            "spool_id": [spool for spool, _ in turns],
            "seq": list(range(1, len(turns) + 1)),
            "stored_unix_ms": [now + at for _, at in turns],
        }
        served.store.append("receipt", columns)

    stored("turns", ("a", 0), ("b", 1_000), ("a", 2_000), ("b", 3_000))
    stored("reinstalled", ("a", 0), ("a", 1_000), ("b", 2_000), ("b", 3_000))
    found = {c.cluster for c in clones.stored_clones(served.store, now - 1)}
    assert "turns" in found
    assert "reinstalled" not in found


async def test_a_clock_that_is_off_is_stored_with_each_batch_and_told_once(served: Served) -> None:
    served.ahead_ms[0] = 40_000
    taken = pb.AgentFrame(status=pb.Status(taken_unix_ms=time.time_ns() // 1_000_000))
    async with Agent(served.port, cluster="late", wall_unix_ns=time.time_ns()) as agent:
        await agent.send(taken, taken, taken, batch(1, [row(NOW_MS)]))
        await agent.acked(1)
    [skew_ms] = served.store.query(
        "SELECT skew_ms FROM receipt FINAL WHERE cluster = 'late'"
    ).column("skew_ms")
    assert -60_000 < skew_ms.as_py() <= -39_000
    [event] = await served.events("late")
    assert (event["kind"], event["severity"]) == ("clock_skew", "error")
    assert "behind the collector's" in event["text"]


def test_one_word_that_came_late_is_no_skew_and_a_clock_that_comes_back_is_told() -> None:
    clock = Skew()
    heard = [clock.hear(now + off, now) for now, off in enumerate((0, -9_000, 0, 0), 1)]
    assert heard == [None] * 4
    heard = [clock.hear(now + off, now) for now, off in enumerate((3_000, 3_000, 0), 5)]
    assert heard == [None, "warning", ""]
    assert clock.ms == 0


def test_a_bucket_gives_no_credit_when_it_is_empty_and_holds_who_goes_on() -> None:
    bucket = Bucket(rate=LARGE_FLEET)
    waits = [bucket.take(4096, 100.0) for _ in range(45)]
    assert waits[:40] == [0.0] * 40  # a burst, and what was credited before
    assert waits[-1] == pytest.approx(5 / LARGE_FLEET.batches_per_second)
    assert bucket.credit(100.0)[0] == 0
    assert bucket.credit(100.0 + 12.5 + 2.0)[0] == 4
    assert bucket.credit(1_000.0)[0] == 20
    big = Bucket(rate=LARGE_FLEET)
    assert [big.take(512 * 1024, 0.0) for _ in range(2)] == [0.0, 0.0]
    assert big.credit(0.0)[0] == 0  # by its bytes


async def test_a_node_of_a_large_fleet_that_sends_too_much_has_no_credit_for_a_while(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_commit, "SMALL_FLEET_STREAMS", 0)
    async with Agent(served.port, cluster="fast") as agent:
        await agent.send(*(batch(seq, [row(NOW_MS + 10_000 * seq)]) for seq in range(1, 26)))
        acks = [await agent.receive("ack")]
        while acks[-1].credit_batches > 0:
            acks.append(await agent.receive("ack"))
        while acks[-1].credit_batches == 0:  # said without asking, as soon as there is credit again
            acks.append(await agent.receive("ack"))
        assert acks[-1].credit_batches >= 1
        assert acks[-1].through_seq == 25


async def test_frames_that_wait_take_credits_from_everybody_until_they_are_stored(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "UNACKED_BYTES_MAX", 300)
    monkeypatch.setattr(group, "COMMIT_SECONDS_MAX", 3.0)
    async with Agent(served.port, cluster="full") as agent:
        assert agent.welcome.credit_batches == CREDIT_BATCHES
        await agent.send(batch(1, [row(NOW_MS + 10_000 * n) for n in range(30)]))
        commits = served.server._ingest._commits
        async with asyncio.timeout(20):
            while not commits.group.crowded:
                await asyncio.sleep(0.01)
        async with Agent(served.port, cluster="full", node_id="n2") as other:
            assert other.welcome.credit_batches == 0
            assert await agent.acked(1) == 30
            assert (await other.receive("ack")).credit_batches == CREDIT_BATCHES

"""Limits of the port that agents connect to, by what they do to who passes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from flopwatch_collector.listen import IngestServer
from flopwatch_collector.live import Live
from flopwatch_collector.rules.registry import RULES, settings_of
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc

STREAMS_MAX = 5
"""With a fifth more, six calls are served at once."""


class Caller:
    """A connection of its own, with as many streams as it can get."""

    def __init__(self, port: int) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._opened = 0

    async def opens(self, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        """Return a new call that has said Hello."""
        self._opened += 1
        stub: Any = telemetry_pb2_grpc.IngestStub(self.channel)
        call = stub.Stream(metadata=metadata)
        hello = pb.Hello(
            protocol_revision=1,
            cluster="atlas",
            node_id=f"n{id(self)}-{self._opened}",
            spool_id="5" * 32,
        )
        await call.write(pb.AgentFrame(hello=hello))
        return call


async def welcomed(call: Any) -> bool:
    frame = await call.read()
    return isinstance(frame, pb.CollectorFrame) and frame.HasField("welcome")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def port(store: TelemetryStore, registry: CollectorRegistry) -> AsyncIterator[int]:
    mfu = next(rule for rule in RULES if rule.name == "mfu")
    live = Live(0, lambda cluster: settings_of(mfu, cluster, RulesConfig()))
    server = IngestServer(store, live, registry=registry, streams_max=STREAMS_MAX)
    yield await server.start("127.0.0.1:0")
    await server.stop(1.0)


async def test_streams_have_a_bound_per_connection_and_over_all(
    port: int, registry: CollectorRegistry
) -> None:
    first, second, third = (Caller(port) for _ in range(3))
    held = [await first.opens() for _ in range(4)]
    assert [await welcomed(call) for call in held] == [True] * 4
    # The fifth of one connection waits at the client, until another one goes.
    fifth = asyncio.create_task(first.opens())
    others = [await second.opens() for _ in range(2)]
    assert [await welcomed(call) for call in others] == [True] * 2
    assert not fifth.done()
    # The seventh over all is refused at once.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (await third.opens()).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in others:
        call.cancel()
    async with asyncio.timeout(30):
        while registry.get_sample_value("flopwatch_ingest_streams") != 4:
            await asyncio.sleep(0.01)
        held[0].cancel()
        assert await welcomed(await fifth)
    for caller in (first, second, third):
        await caller.channel.close(None)


async def test_what_is_too_large_ends_its_stream_and_nobody_elses(port: int) -> None:
    honest, hostile = Caller(port), Caller(port)
    good = await honest.opens()
    assert await welcomed(good)
    bad = await hostile.opens()
    assert await welcomed(bad)
    await bad.write(pb.AgentFrame(batch=pb.Batch(seq=1, payload=bytes(1024**2))))
    assert await bad.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (await hostile.opens((("x", "y" * 9_000),))).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await good.write(pb.AgentFrame(goodbye=pb.Goodbye(reason="stop")))
    await good.done_writing()
    assert await good.code() is grpc.StatusCode.OK
    for caller in (honest, hostile):
        await caller.channel.close(None)

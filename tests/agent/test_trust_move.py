"""A certificate that is changed while batches flow: the stream moves, and nothing is lost or stays behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from grpc_health.v1 import health, health_pb2_grpc

from fake_collector import FakeCollector
from flopwatch_agent.certificates import IdentityConfig
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_agent.trust import Trust
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc as rpc
from pki import Pki

ROTATIONS = 4


class Impatient(SystemClock):
    """Looks at files a thousand times as often; other waits are what they are."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 1_000 if seconds == 10.0 else seconds)


class Secured(FakeCollector):
    """Asks for certificates. Attributes: serials: of those that streams showed, in their order."""

    def __init__(self, credentials: grpc.ServerCredentials) -> None:
        super().__init__()
        self._credentials = credentials
        self.serials: list[int] = []

    async def start(self) -> None:
        self._server = grpc.aio.server()
        rpc.add_IngestServicer_to_server(self, self._server)
        servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        self.port = self._server.add_secure_port("127.0.0.1:0", self._credentials)
        await self._server.start()

    async def Stream(
        self, request_iterator: AsyncIterator[pb.AgentFrame], context: Any
    ) -> AsyncIterator[pb.CollectorFrame]:
        (shown,) = context.auth_context()["x509_pem_cert"]
        self.serials.append(x509.load_pem_x509_certificate(shown).serial_number)
        async for frame in super().Stream(request_iterator, context):
            yield frame


def lay(directory: Path, pki: Pki) -> int:
    """Write a newer certificate as one file and return its serial."""
    pair = pki.node("atlas", "n1")
    new = directory / "node.new"
    new.write_bytes(pair.certificate + pair.key)
    new.rename(directory / "node.pem")
    return x509.load_pem_x509_certificate(pair.certificate).serial_number


async def test_nothing_is_lost_while_certificates_change(tmp_path: Path) -> None:
    pki = Pki()
    (tmp_path / "authority.pem").write_bytes(pki.authority)
    serials = [lay(tmp_path, pki)]
    node = str(tmp_path / "node.pem")
    authority = str(tmp_path / "authority.pem")
    identity = IdentityConfig(certificate=node, key=node, authority=authority)
    config = AgentConfig(cluster="atlas", node="n1", data=tmp_path, identity=identity)
    trust = Trust(config, Impatient())
    collector, spool = Secured(pki.server_credentials()), Spool.open(None)
    await collector.start()
    who = StreamIdentity(cluster="atlas", node_id="n1", agent_version="0")
    backoff = Backoff(base_seconds=30.0)  # whoever waits for it fails the test
    stream = Stream(
        collector.target,
        who,
        spool,
        channel=trust.channel,
        random=random.Random(2),
        backoff=backoff,
    )
    rows = pb.IntervalRows(slot=[1], start_unix_ms=[1], duration_ms=[1])
    tasks = [asyncio.create_task(stream.run()), asyncio.create_task(trust.run([stream]))]

    async def flow(batches: int) -> None:
        for _ in range(batches):
            spool.append(pb.Payload(intervals=rows))
            stream.wake()
            await asyncio.sleep(0.001)

    await flow(50)
    for _ in range(ROTATIONS):
        serials.append(lay(tmp_path, pki))
        await flow(50)
        await collector.until(lambda: collector.serials[-1:] == serials[-1:])
    await asyncio.wait_for(stream.drained(), 30)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await collector.kill()
    assert collector.serials == serials
    assert list(collector.stored) == list(range(1, 50 * (ROTATIONS + 1) + 1))
    assert stream.counters.sessions == ROTATIONS + 1

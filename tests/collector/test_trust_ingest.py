"""Ingest on a listener that asks for certificates: who may open a stream, and for how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from flopwatch_agent.channel import BROKEN, Call, Channel, Refusal
from flopwatch_collector import listen
from flopwatch_collector.config import CollectorConfig
from flopwatch_collector.control import operations
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.live import Live
from flopwatch_collector.rules.registry import RULES, settings_of
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.tls import TlsConfig
from flopwatch_collector.trust import denylist
from flopwatch_collector.trust.denylist import Denied
from flopwatch_collector.trust.service import Trust
from flopwatch_proto.errors import UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc
from pki import Pair, Pki


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Secured:
    """A whole ingest on mTLS, and the authority that its nodes are by. Attributes: call: the newest one."""

    pki: Pki
    control: ControlStore
    trust: Trust
    ingest: IngestServer
    channels: list[Channel] = field(default_factory=list)
    call: Call | None = None

    async def opens(self, pair: Pair, node: str = "n1", cluster: str = "atlas") -> str:
        """Return what a node hears that opens a stream under a name: its session, or why not."""
        channel = Channel(f"127.0.0.1:{self.ingest.port}", self.pki.context(pair))
        self.channels.append(channel)
        hello = pb.Hello(protocol_revision=1, cluster=cluster, node_id=node, spool_id="5" * 32)
        try:
            self.call = await channel.stream()
            await self.call.write(pb.AgentFrame(hello=hello))
            frame = await self.call.read()
        except Refusal as exc:
            return f"{exc.status.name}: {exc.message}"
        assert frame is not None
        return frame.WhichOneof("frame") or ""


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections live for two seconds, instead of an hour."""
    short = {"grpc.max_connection_age_ms": 2_000, "grpc.max_connection_age_grace_ms": 500}
    options = tuple((name, short.get(name, value)) for name, value in listen.SERVER_OPTIONS)
    monkeypatch.setattr(listen, "SERVER_OPTIONS", options)


@pytest.fixture
async def secured(store: TelemetryStore, tmp_path: Path) -> AsyncIterator[Secured]:
    pki = Pki()
    certificate, key = pki.server().write(tmp_path / "server")
    authority = tmp_path / "authority.pem"
    authority.write_bytes(pki.authority)
    tls = TlsConfig(certificate=str(certificate), key=str(key), authority=str(authority))
    control = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    registry = CollectorRegistry()
    config = CollectorConfig(data=str(tmp_path), tls=tls)
    trust = Trust.of(config, control, registry, unix_ms)
    await trust.start("")
    mfu = next(rule for rule in RULES if rule.name == "mfu")
    live = Live(unix_ms(), lambda cluster: settings_of(mfu, cluster, RulesConfig()))
    ingest = IngestServer(store, live, registry=registry, trust=trust)
    await ingest.start("127.0.0.1:0")
    made = Secured(pki, control, trust, ingest)
    yield made
    for channel in made.channels:
        channel.close()
    await ingest.stop(1.0)
    await trust.stop()
    control.close()


async def test_a_stream_is_of_the_node_that_its_certificate_names(secured: Secured) -> None:
    pki = secured.pki
    n1 = pki.node("atlas", "n1")
    assert await secured.opens(n1) == "welcome"
    wrong = await secured.opens(n1, "n2")
    assert wrong.startswith("PERMISSION_DENIED: the certificate is of 'n1' of 'atlas'")
    assert "says 'n2' of 'atlas'" in wrong
    assert "says 'n1' of 'borg'" in await secured.opens(n1, cluster="borg")
    two = [f"spiffe://flopwatch/flopwatch/cluster/atlas/node/{n}" for n in ("n1", "n2")]
    assert "2 URI names" in await secured.opens(pki.node("atlas", "n1", uris=two))
    stranger = pki.node("atlas", "n1", domain="elsewhere")
    assert "trust domain 'elsewhere'" in await secured.opens(stranger)
    assert await secured.opens(n1) == "welcome"
    standing = secured.call
    denied = Denied(
        cluster="atlas",
        node="n1",
        denied_unix_ms=unix_ms(),
        issued_before_unix_ms=None,
        by="ops",
        why="stolen",
    )
    denylist.deny(secured.control, denied)
    await asyncio.to_thread(secured.trust._refresh)
    assert await secured.opens(n1) == "PERMISSION_DENIED: n1 of atlas is denied: stolen"
    assert standing is not None
    secured.ingest._ingest._check_identities()
    with pytest.raises(Refusal, match="is denied: stolen"):
        await standing.read()
    told = sorted((e["what"], e["subject"]) for e in operations.audit(secured.control))
    # One row a minute of one host, however often it comes again.
    assert told[:2] == [("node_denied", "atlas/n1"), ("stream_refused", "atlas/n1")]


async def test_a_certificate_that_expires_mid_stream_ends_with_its_connection(
    short_lived: None, secured: Secured
) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=8)  # it must open before
    pair = secured.pki.node("atlas", "n1", ends=ends)
    assert await secured.opens(pair) == "welcome"
    assert secured.call is not None
    with pytest.raises((Refusal, *BROKEN)):
        await secured.call.read()
    while datetime.now(UTC) <= ends:
        await asyncio.sleep(0.1)
    with pytest.raises(BROKEN, match="certificates that it does not believe"):
        await secured.opens(pair)


async def test_clear_text_is_for_loopback_alone(store: TelemetryStore) -> None:
    mfu = next(rule for rule in RULES if rule.name == "mfu")
    live = Live(unix_ms(), lambda cluster: settings_of(mfu, cluster, RulesConfig()))
    ingest = IngestServer(store, live, registry=CollectorRegistry())
    with pytest.raises(UsageError, match="flopwatch trust init"):
        await ingest.start("0.0.0.0:0")
    pki = Pki()
    secure = IngestServer(
        store, live, registry=CollectorRegistry(), credentials=pki.server_credentials()
    )
    await secure.start("0.0.0.0:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{secure.port}") as clear:
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await telemetry_pb2_grpc.RenewalStub(clear).Renew(pb.RenewRequest())
    await secure.stop(1.0)

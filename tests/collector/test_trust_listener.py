"""Certificates over the wire: the agent's own enrolment and renewal against the collector's listeners."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry

from flopwatch_agent import enrollment
from flopwatch_agent.certificates import Files, client_context, load
from flopwatch_agent.channel import BROKEN, Refusal, ask_once
from flopwatch_collector.config import CollectorConfig, ListenConfig
from flopwatch_collector.control import operations
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.listen import SERVER_OPTIONS
from flopwatch_collector.tls import TlsConfig
from flopwatch_collector.trust import denylist, tokens
from flopwatch_collector.trust.authority import Authorities
from flopwatch_collector.trust.denylist import Denied
from flopwatch_collector.trust.service import Trust
from flopwatch_proto.errors import PermanentError, RetryableError, UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb
from pki import Pair, Pki

LOOPBACK = "127.0.0.1:0"
SOON_SECONDS = 30


@dataclass
class Listeners:
    """Those of ingest and enrolment, without a store behind them."""

    directory: Path
    control: ControlStore
    tls: TlsConfig = field(default_factory=TlsConfig)
    later_ms: int = 0
    servers: list[Any] = field(default_factory=list)

    def now_unix_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.later_ms

    async def start(self, *, enrolls: bool = True) -> None:
        enroll = LOOPBACK if enrolls else ""
        config = CollectorConfig(
            data=str(self.directory), tls=self.tls, listen=ListenConfig(enroll=enroll)
        )
        self.trust = Trust.of(config, self.control, CollectorRegistry(), self.now_unix_ms)
        await self.trust.start(enroll)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        self.trust.serve_on(server)
        credentials = self.trust.server_credentials()
        assert credentials is not None
        self.port = server.add_secure_port(LOOPBACK, credentials)
        self.target, self.door = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.trust.port}"
        await server.start()
        self.servers.append(server)

    async def stop(self) -> None:
        await self.trust.stop()
        for server in self.servers:
            await server.stop(0)

    @property
    def authorities(self) -> Authorities:
        return Authorities(self.directory / "trust")

    def token(self, nodes: str = "*") -> str:
        now = self.now_unix_ms()
        token = tokens.Token(
            id="",
            cluster="atlas",
            nodes=nodes,
            replaces=True,
            uses_left=9,
            created_unix_ms=now,
            expires_unix_ms=now + 3_600_000,
            by="ops",
        )
        return tokens.create(self.control, token, self.authorities.authority().certificate)

    async def enroll(self, data: Path, node: str) -> Files:
        await enrollment.enroll(self.door, self.token(), data, "atlas", node)
        return Files.enrolled(data)

    async def refresh(self) -> None:
        await asyncio.to_thread(self.trust._refresh)

    async def renewal_of(self, pair: Pair, pki: Pki) -> str:
        """What the renewal says to who shows a certificate: a status, or nothing at all."""
        request = pb.RenewRequest(signing_request_der=b"")
        method = "/flopwatch.v1.Renewal/Renew"
        try:
            await ask_once(
                self.target, method, request, pb.Issued, pki.context(pair), seconds_max=20
            )
        except Refusal as exc:
            return f"{exc.status.name}: {exc.message}"
        except BROKEN:
            return ""
        return "OK"


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path_factory.mktemp('trust')}/control.db")
    yield opened
    opened.close()


@pytest.fixture
async def ours(tmp_path: Path, control: ControlStore) -> AsyncIterator[Listeners]:
    """Listeners with an authority of their own."""
    made = Listeners(tmp_path / "collector", control)
    made.directory.mkdir()
    made.authorities.init(made.now_unix_ms())
    await made.start()
    yield made
    await made.stop()


def bring(directory: Path, pki: Pki, pair: Pair | None = None) -> TlsConfig:
    """Write a server's certificate as Vault's agent or SPIRE would."""
    certificate, key = (pair or pki.server()).write(directory)
    authority = directory / "authority.pem"
    authority.write_bytes(pki.authority)
    return TlsConfig(certificate=str(certificate), key=str(key), authority=str(authority))


@pytest.fixture
async def brought(tmp_path: Path, control: ControlStore) -> AsyncIterator[tuple[Listeners, Pki]]:
    """Listeners whose certificates somebody else writes."""
    pki = Pki()
    made = Listeners(tmp_path / "collector", control, bring(tmp_path / "brought", pki))
    await made.start(enrolls=False)
    yield made, pki
    await made.stop()


def serial(files: Files) -> int:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number


async def test_a_token_becomes_a_certificate_and_that_one_the_next(
    ours: Listeners, tmp_path: Path
) -> None:
    files = await ours.enroll(tmp_path / "n1", "n1")
    assert load(files).name.uri == "spiffe://flopwatch/flopwatch/cluster/atlas/node/n1"
    assert files.certificate.stat().st_mode & 0o777 == 0o600
    first = serial(files)
    await enrollment.renew(ours.target, files)
    assert serial(files) != first
    assert load(files).name.node == "n1"
    assert {p.name for p in files.certificate.parent.iterdir()} == {"node.pem", "authorities.pem"}


async def test_a_refusal_is_told_to_the_node_and_kept_for_the_audit(
    ours: Listeners, tmp_path: Path
) -> None:
    word = ours.token("gpu-*")
    with pytest.raises(PermanentError, match="is for nodes 'gpu-\\*', and this one is 'n2'"):
        await enrollment.enroll(ours.door, word, tmp_path / "n2", "atlas", "n2")
    await ours.refresh()
    newest = operations.audit(ours.control, 1)[0]
    assert (newest["what"], newest["subject"]) == ("enrollment_refused", "atlas/n2")
    assert newest["origin"].startswith("ipv4:127.0.0.1:")


async def test_the_token_is_not_told_to_somebody_else(ours: Listeners, tmp_path: Path) -> None:
    version, id_, secret, _ = ours.token().split(".")
    word = ".".join((version, id_, secret, "0" * 32))
    with pytest.raises(PermanentError, match="is not the collector that the token is of"):
        await enrollment.enroll(ours.door, word, tmp_path / "n3", "atlas", "n3")
    assert tokens.tokens(ours.control)[0].uses_left == 9


async def test_nobody_there_is_no_refusal(ours: Listeners, tmp_path: Path) -> None:
    word = ours.token()
    await ours.trust.stop()
    with pytest.raises(RetryableError, match="does not answer"):
        await enrollment.enroll(ours.door, word, tmp_path / "n4", "atlas", "n4")


async def test_a_denied_node_gets_no_newer_certificate(ours: Listeners, tmp_path: Path) -> None:
    files = await ours.enroll(tmp_path / "n5", "n5")
    denied = Denied(
        cluster="atlas",
        node="n5",
        denied_unix_ms=ours.now_unix_ms(),
        issued_before_unix_ms=None,
        by="ops",
        why="stolen",
    )
    denylist.deny(ours.control, denied)
    await ours.refresh()
    with pytest.raises(PermanentError, match="n5 of atlas is denied: stolen"):
        await enrollment.renew(ours.target, files)


async def test_an_authority_is_changed_both_ways_while_a_node_renews(
    ours: Listeners, tmp_path: Path
) -> None:
    files = await ours.enroll(tmp_path / "n6", "n6")
    with pytest.raises(UsageError, match="there is no older authority"):
        ours.authorities.drop(ours.now_unix_ms(), 0)
    assert ours.authorities.add(ours.now_unix_ms()) == 2
    with pytest.raises(UsageError, match=r"switch: too early, .* 168 h"):
        ours.authorities.switch(ours.now_unix_ms(), 7 * 24 * 3_600)
    await enrollment.renew(ours.target, files)  # learns of the second
    ours.authorities.switch(ours.now_unix_ms(), 0)
    await ours.refresh()
    await enrollment.renew(ours.target, files)  # by the first, from a listener of the second
    ours.authorities.drop(ours.now_unix_ms(), 0)
    await ours.refresh()
    await enrollment.renew(ours.target, files)
    assert files.authority.read_bytes().count(b"BEGIN CERTIFICATE") == 1
    (left,) = ours.authorities.facts()
    assert (left["authority"], left["signs"]) == (2, True)


async def test_who_missed_the_change_is_told_that_it_does_not_know_the_collector(
    ours: Listeners, tmp_path: Path
) -> None:
    files = await ours.enroll(tmp_path / "n7", "n7")
    ours.authorities.add(ours.now_unix_ms())
    ours.authorities.switch(ours.now_unix_ms(), 0)
    await ours.refresh()
    with pytest.raises(PermanentError, match="unable to get local issuer certificate"):
        await enrollment.renew(ours.target, files)


async def test_the_listener_renews_its_own_certificate(ours: Listeners) -> None:
    def shown() -> bytes:
        return ssl.get_server_certificate(("127.0.0.1", ours.trust.port)).encode()

    first = await asyncio.to_thread(shown)
    ours.later_ms = round(7 * 24 * 3_600_000 * 0.5)
    await ours.refresh()
    assert await asyncio.to_thread(shown) == first
    ours.later_ms = round(7 * 24 * 3_600_000 * 0.67)
    await ours.refresh()
    newer = x509.load_pem_x509_certificate(await asyncio.to_thread(shown))
    assert newer.public_bytes(serialization.Encoding.PEM) != first


async def test_brought_files_are_followed_and_a_pair_that_does_not_fit_changes_nothing(
    brought: tuple[Listeners, Pki], tmp_path: Path
) -> None:
    listeners, pki = brought
    other = Pki("other")
    assert "certificates are not issued" in await listeners.renewal_of(pki.node("a", "n"), pki)
    bring(tmp_path / "brought", other)
    Path(listeners.tls.key).write_bytes(other.server().key)
    await listeners.refresh()
    assert "certificates are not issued" in await listeners.renewal_of(pki.node("a", "n"), pki)
    assert listeners.trust._metrics.unread._value.get() == 1
    bring(tmp_path / "brought", other)
    await listeners.refresh()
    assert "certificates are not issued" in await listeners.renewal_of(other.node("a", "n"), other)
    assert await listeners.renewal_of(pki.node("a", "n"), pki) == ""


async def test_certificates_that_the_library_refuses(brought: tuple[Listeners, Pki]) -> None:
    listeners, pki = brought
    now, minute = datetime.now(UTC), timedelta(minutes=1)
    bad = {
        "expired": pki.node("a", "n", ends=now - minute),
        "not yet": pki.node("a", "n", starts=now + 60 * minute),
        "of another authority": Pki("other").node("a", "n"),
        "a server's": pki.server(),
    }
    assert {what: await listeners.renewal_of(pair, pki) for what, pair in bad.items()} == (
        dict.fromkeys(bad, "")
    )


@pytest.mark.parametrize(
    ("uris", "why"),
    [
        (
            ["spiffe://d/flopwatch/cluster/a/node/n", "spiffe://d/flopwatch/cluster/a/node/m"],
            "2 URI",
        ),
        (["spiffe://d/flopwatch/cluster/a/node/n/extra"], "is not spiffe://DOMAIN"),
        (["https://d/flopwatch/cluster/a/node/n"], "is not spiffe://DOMAIN"),
        ([], "has no subjectAltName"),
    ],
)
async def test_names_that_are_no_nodes(
    brought: tuple[Listeners, Pki], uris: list[str], why: str
) -> None:
    listeners, pki = brought
    said = await listeners.renewal_of(pki.node("a", "n", uris=uris), pki)
    assert said.startswith("PERMISSION_DENIED")
    assert why in said


async def test_a_certificate_for_no_purpose_and_an_older_tls(
    brought: tuple[Listeners, Pki],
) -> None:
    listeners, pki = brought
    said = await listeners.renewal_of(pki.node("a", "n", usage=()), pki)
    assert "has no extendedKeyUsage" in said
    older = pki.context(pki.node("a", "n"))
    older.minimum_version = older.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(Refusal, match=r"TLS 1\.3 is needed"):
        await ask_once(
            listeners.target,
            "/flopwatch.v1.Renewal/Renew",
            pb.RenewRequest(),
            pb.Issued,
            older,
            seconds_max=20,
        )


async def test_an_enrolment_that_could_sign_nothing_is_refused(
    tmp_path: Path, control: ControlStore
) -> None:
    for tls, why in (
        (TlsConfig(), "trust init"),
        (bring(tmp_path / "b", Pki()), "leave listen.enroll"),
    ):
        listeners = Listeners(tmp_path / "collector", control, tls)
        with pytest.raises(UsageError, match=why):
            await listeners.start()


async def test_a_connection_that_says_nothing_is_closed(ours: Listeners) -> None:
    silent = socket.create_connection(("127.0.0.1", ours.port))
    silent.settimeout(SOON_SECONDS)  # the library's own limit is two minutes
    with silent:
        assert await asyncio.to_thread(silent.recv, 1) == b""


async def test_what_is_too_large_is_refused(ours: Listeners, tmp_path: Path) -> None:
    context = client_context(await ours.enroll(tmp_path / "n8", "n8"))
    large = pb.RenewRequest(signing_request_der=os.urandom(2 * 1024**2))
    with pytest.raises(Refusal, match=r"larger than max"):
        await ask_once(
            ours.target,
            "/flopwatch.v1.Renewal/Renew",
            large,
            pb.Issued,
            context,
            seconds_max=20,
        )

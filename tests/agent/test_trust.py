"""The certificate of a running agent: in clear text or not at all, changed over, and renewed in time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from flopwatch_agent.certificates import Files, IdentityConfig
from flopwatch_agent.channel import BROKEN
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.trust import (
    RENEWED_FROM,
    RENEWED_TO,
    Trust,
    TrustGauges,
    renewal_ratio,
    renewed_by_child,
)
from pki import CLIENT, SERVER, Pair, Pki


class Hands:
    """A clock that a test moves: sleeping lets others run and takes no time."""

    def __init__(self) -> None:
        self.seconds = datetime.now(UTC).timestamp()

    def wall_unix_ns(self) -> int:
        return round(self.seconds * 1e9)

    def boottime_ns(self) -> int:
        return round(self.seconds * 1e9)

    def monotonic_seconds(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.001)


class Moved:
    """A stream that only counts how often it is moved."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.times = 0

    def move(self) -> None:
        self.times += 1


def lay(directory: Path, pair: Pair, pki: Pki) -> IdentityConfig:
    """Put certificate, key and authority into place, each as a whole."""
    directory.mkdir(exist_ok=True)
    contents = {"n.pem": pair.certificate, "n.key": pair.key, "a.pem": pki.authority}
    for name, content in contents.items():
        new = directory / f"{name}.new"
        new.write_bytes(content)
        new.rename(directory / name)
    certificate, key, authority = (str(directory / name) for name in contents)
    return IdentityConfig(certificate=certificate, key=key, authority=authority)


def lay_enrolled(data: Path, pair: Pair, pki: Pki) -> None:
    """Put what `flopwatch enroll` would have written into place."""
    files = Files.enrolled(data)
    files.certificate.parent.mkdir(parents=True, exist_ok=True)
    files.authority.write_bytes(pki.authority)
    new = files.certificate.with_suffix(".new")
    new.write_bytes(pair.certificate + pair.key)
    new.rename(files.certificate)


@pytest.fixture
async def serving() -> AsyncIterator[tuple[str, Pki]]:
    """A listener that asks for certificates, with health and nothing else."""
    pki, server = Pki(), grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # type: ignore[attr-defined]
    port = server.add_secure_port("127.0.0.1:0", pki.server_credentials())
    await server.start()
    yield f"127.0.0.1:{port}", pki
    await server.stop(0)


@contextlib.asynccontextmanager
async def watched(trust: Trust, target: str) -> AsyncIterator[Moved]:
    moved = Moved(target)
    task = asyncio.create_task(trust.run([moved]))
    await asyncio.sleep(0.02)
    yield moved
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def shown(trust: Trust) -> dict[str, float]:
    return {
        sample.labels.get("state", sample.name): sample.value
        for metric in TrustGauges(trust).collect()
        for sample in metric.samples
        if sample.value
    }


async def test_without_a_certificate_only_loopback_is_spoken_to(tmp_path: Path) -> None:
    trust = Trust(AgentConfig(data=tmp_path), Hands())
    trust.channel("127.0.0.1:1").close()
    assert shown(trust) == {"plain": 1.0}
    closed = trust.channel("10.0.0.1:9751")
    with pytest.raises(BROKEN, match="enrol this node"):
        await closed.stream()
    closed.close()
    assert shown(trust) == {"absent": 1.0}


async def test_a_newer_certificate_moves_the_stream_and_one_that_is_refused_does_not(
    tmp_path: Path, serving: tuple[str, Pki]
) -> None:
    target, pki = serving
    identity = lay(tmp_path / "brought", pki.node("atlas", "n1"), pki)
    config = AgentConfig(cluster="atlas", node="n1", data=tmp_path, identity=identity)
    trust = Trust(config, Hands())
    async with watched(trust, target) as moved:
        assert (moved.times, trust.state) == (0, "ok")
        lay(tmp_path / "brought", pki.node("atlas", "n1"), pki)
        await until(lambda: moved.times == 1)
        lay(tmp_path / "brought", pki.node("atlas", "n2"), pki)
        await until(lambda: trust.state == "wrong_name")
        stranger = Pki("stranger")
        lay(tmp_path / "brought", stranger.node("atlas", "n1"), stranger)
        await until(lambda: "does not let the new certificate in" in trust._told)
        assert moved.times == 1
        lay(tmp_path / "brought", pki.node("atlas", "n1"), pki)
        await until(lambda: moved.times == 2)
    assert shown(trust).keys() == {"ok", "flopwatch_agent_cert_expires_seconds"}


async def test_files_that_others_write_are_taken_when_they_fit(
    tmp_path: Path, serving: tuple[str, Pki]
) -> None:
    """As SPIRE's helper lays them (three files, one after the other, in place), and as mounted volumes do
    (a symlink to a directory, swapped)."""
    target, pki = serving
    names = ("svid.pem", "svid_key.pem", "svid_bundle.pem")
    home = tmp_path / "spire"
    home.mkdir()

    def svid() -> tuple[bytes, bytes, bytes]:
        pair = pki.node("atlas", "n1", usage=(*SERVER, *CLIENT))
        return pair.certificate, pair.key, pki.authority

    def mount(version: str) -> None:
        (home / version).mkdir()
        for name, content in zip(names, svid(), strict=True):
            (home / version / name).write_bytes(content)
        (home / "..new").symlink_to(version)
        (home / "..new").rename(home / "..data")

    mount("..1")
    for name in names:
        (home / name).symlink_to(f"..data/{name}")
    certificate, key, authority = (str(home / name) for name in names)
    identity = IdentityConfig(certificate=certificate, key=key, authority=authority)
    trust = Trust(
        AgentConfig(cluster="atlas", node="n1", data=tmp_path, identity=identity), Hands()
    )
    async with watched(trust, target) as moved:
        mount("..2")
        await until(lambda: moved.times == 1)
        chain, private, _ = svid()
        (home / names[0]).write_bytes(chain[: len(chain) // 2])
        await until(lambda: trust.state == "unreadable")
        (home / names[0]).write_bytes(chain)
        await until(lambda: "MISMATCH" in str(trust.failure))
        assert moved.times == 1
        (home / names[1]).write_bytes(private)
        await until(lambda: moved.times == 2)
        assert trust.state == "ok"


async def test_a_node_that_is_enrolled_while_its_agent_runs_is_heard(
    tmp_path: Path, serving: tuple[str, Pki]
) -> None:
    target, pki = serving
    config = AgentConfig(cluster="atlas", node="n1", data=tmp_path)
    trust = Trust(config, Hands())
    async with watched(trust, target) as moved:
        assert trust.state == "plain"
        lay_enrolled(tmp_path, pki.node("atlas", "n1"), pki)
        await until(lambda: moved.times == 1)
    assert trust.state == "ok"


async def test_a_certificate_is_renewed_in_time_and_again_later_where_that_fails(
    tmp_path: Path, serving: tuple[str, Pki]
) -> None:
    target, pki = serving
    clock = Hands()
    starts = datetime.fromtimestamp(clock.seconds, UTC)
    ends = starts + timedelta(days=9)
    lay_enrolled(tmp_path, pki.node("atlas", "n1", starts=starts, ends=ends), pki)
    asked: list[float] = []

    async def renew(data: Path, to: str) -> None:
        asked.append((clock.seconds - starts.timestamp()) / 86_400)
        assert (data, to) == (tmp_path, target)
        if len(asked) < 2:
            raise OSError("nobody there")
        lay_enrolled(tmp_path, pki.node("atlas", "n1", ends=ends + timedelta(days=9)), pki)

    config = AgentConfig(cluster="atlas", node="n1", data=tmp_path)
    trust = Trust(config, clock, renew=renew, random=random.Random(1))
    async with watched(trust, target) as moved:
        clock.seconds += 9 * 86_400 * RENEWED_FROM - 1
        await asyncio.sleep(0.05)
        assert asked == []
        clock.seconds += 9 * 86_400 * (RENEWED_TO - RENEWED_FROM) + 2
        await until(lambda: len(asked) == 1)
        await asyncio.sleep(0.05)
        assert len(asked) == 1
        clock.seconds += 901
        await until(lambda: moved.times == 1)
    assert (trust.renewals, trust.renewal_failures) == (2, 1)


def test_nodes_renew_at_moments_of_their_own_around_two_thirds() -> None:
    ratios = {renewal_ratio(f"n{i}") for i in range(100)}
    assert len(ratios) == 100
    assert RENEWED_FROM <= min(ratios) < 0.64
    assert 0.68 < max(ratios) <= RENEWED_TO


async def test_a_child_that_cannot_renew_says_why(tmp_path: Path, serving: tuple[str, Pki]) -> None:
    target, pki = serving
    lay_enrolled(tmp_path, pki.node("atlas", "n1"), pki)
    with pytest.raises(OSError, match="Method not found"):
        await renewed_by_child(tmp_path, target)
    assert {p.name for p in (tmp_path / "identity").iterdir()} == {"node.pem", "authorities.pem"}

"""A collector with an authority of its own, and nodes that enrolled with it, for `campaign.certificates`."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from prometheus_client import CollectorRegistry

from campaign.collecting import Nobody
from campaign.delivery import FRESH_SECONDS_MAX
from campaign.nodes import Node, judged
from campaign.storing import held_by
from flopwatch_agent import enrollment
from flopwatch_agent.channel import BROKEN, Channel, Refusal
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.trust import LOOK_SECONDS
from flopwatch_agent.trust import Trust as AgentTrust
from flopwatch_collector.config import CollectorConfig, ListenConfig
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.trust import tokens
from flopwatch_collector.trust.authority import Authorities
from flopwatch_collector.trust.records import refused
from flopwatch_collector.trust.service import Trust
from flopwatch_proto.v1 import telemetry_pb2 as pb
from pki import Pair, Pki
from processes import SECONDS_MAX, done

HONEST: Final = ("n1", "n2")
HOUR_MS: Final = 3_600_000


class Impatient(SystemClock):
    """Looks at files a hundred times as often; other waits are what they are."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 100 if seconds == LOOK_SECONDS else seconds)


class Ours(Pki):
    """Signs with an authority of the collector, whatever it is told to."""

    def __init__(self, authorities: Authorities) -> None:
        made = authorities.authority()
        self._key, self._name = made.key, made.certificate.subject
        self.certificate, self.authority = made.certificate, authorities.bundle()


@dataclass
class Verdict:
    """Attributes: problems: one line each; cases: by kind; refusals: in the audit log."""

    problems: list[str] = field(default_factory=list)
    cases: dict[str, int] = field(default_factory=dict)
    refusals: int = 0
    rows: int = 0
    fresh_seconds: float = 0.0


class Sender:
    """A node with a certificate, that sends. Attributes: data: the agent's directory."""

    def __init__(self, scene: Scene, name: str, *, renews: bool = True) -> None:
        self.data = scene.home / name
        config = AgentConfig(cluster="atlas", node=name, data=self.data)
        trust = AgentTrust(config, Impatient(), renew=None if renews else _no_renewal)
        self.node = Node(
            name,
            scene.target,
            scene.home / "spools",
            scene.base_unix_ms,
            channel=trust.channel,
            pace_seconds=0.2,
        )
        self._watching = asyncio.create_task(trust.run([self.node.stream]))

    async def finish(self) -> None:
        await self.node.finish()
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)


async def _no_renewal(data: Path, target: str) -> None:
    raise OSError("no renewal in this case")


class Scene:
    """A collector with an authority of its own, and who sends to it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.base_unix_ms = time.time_ns() // 1_000_000 - 6 * HOUR_MS
        self.later_ms = self.case_unix_ms = 0
        self.directory = home / "collector"
        self.directory.mkdir()
        self.authorities = Authorities(self.directory / "trust")
        self.authorities.init(self.now_unix_ms())
        self.control = ControlStore.open(f"sqlite:///{self.directory}/control.db")
        self.produced: dict[str, int] = {}
        self.verdict = Verdict()

    def now_unix_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.later_ms

    async def open(self) -> None:
        """Start the listeners, and the honest nodes."""
        config = CollectorConfig(
            data=str(self.directory), listen=ListenConfig(enroll="127.0.0.1:0")
        )
        registry = CollectorRegistry()
        self.trust = Trust.of(config, self.control, registry, self.now_unix_ms)
        self.door = f"127.0.0.1:{await self.trust.start('127.0.0.1:0')}"
        self.store = TelemetryStore.open(f"chdb://{self.directory}/telemetry")
        sink = cast(Any, Nobody())
        self.ingest = IngestServer(self.store, sink, registry=registry, trust=self.trust)
        self.target = f"127.0.0.1:{await self.ingest.start('127.0.0.1:0')}"
        self.honest = [await self.enrolled(name) for name in HONEST]

    async def refresh(self) -> None:
        """What the collector does every ten seconds, and what its streams ask every minute."""
        await asyncio.to_thread(self.trust._refresh)
        self.ingest._ingest._check_identities()

    def token(self, nodes: str = "*", uses: int = 9) -> str:
        now = self.now_unix_ms()
        token = tokens.Token(
            id="",
            cluster="atlas",
            nodes=nodes,
            replaces=True,
            uses_left=uses,
            created_unix_ms=now,
            expires_unix_ms=now + HOUR_MS,
            by="ops",
        )
        return tokens.create(self.control, token, self.authorities.authority().certificate)

    async def enroll(self, name: str, token: str) -> None:
        await enrollment.enroll(self.door, token, self.home / name, "atlas", name)

    async def enrolled(self, name: str) -> Sender:
        await self.enroll(name, self.token())
        sender = Sender(self, name)
        await self.fresh(sender)
        return sender

    async def fresh(self, *senders: Sender) -> None:
        """Wait until something new of each is acknowledged."""
        seconds = await asyncio.gather(*(sender.node.fresh_seconds() for sender in senders))
        self.verdict.fresh_seconds = max(self.verdict.fresh_seconds, *seconds)

    async def finish(self, *senders: Sender) -> None:
        for sender in senders:
            await sender.finish()
            self.produced[sender.node.name] = sender.node.promised

    async def opens(self, pair: Pair, node: str) -> str:
        """Return what a host hears that opens a stream under a name."""
        channel = Channel(self.target, Ours(self.authorities).context(pair))
        hello = pb.Hello(protocol_revision=1, cluster="atlas", node_id=node, spool_id="5" * 32)
        try:
            call = await channel.stream()
            await call.write(pb.AgentFrame(hello=hello))
            frame = await call.read()
        except Refusal as exc:
            return exc.message or exc.status.name
        except BROKEN as exc:
            return f"connection: {exc}"
        finally:
            channel.close()
        return "" if frame is None else frame.WhichOneof("frame") or ""

    async def told(self, what: str, why: str) -> None:
        """Wait until the audit log has a refusal of this case."""
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                await self.refresh()
                entries = refused(self.control, self.case_unix_ms)
                if any(e["what"] == what and why in e["why"] for e in entries):
                    return
                await asyncio.sleep(0.1)

    async def close(self) -> Verdict:
        """End all in good order, and judge."""
        await self.finish(*self.honest)
        verdict = self.verdict
        verdict.rows = sum(self.produced.values())
        await self.ingest.stop()
        await self.trust.stop()
        verdict.problems += judged(held_by(self.store), self.produced, self.base_unix_ms)
        self.store.close()
        shown = done("trust", "refused", "--data", str(self.directory), "--json")
        verdict.refusals = len(refused(self.control))
        if shown.returncode or len(json.loads(shown.stdout)) != verdict.refusals:
            verdict.problems.append(f"flopwatch trust refused: {shown.stdout} {shown.stderr}")
        self.control.close()
        if verdict.fresh_seconds > FRESH_SECONDS_MAX:
            verdict.problems.append(f"something new waited {verdict.fresh_seconds:.1f} s")
        return verdict

"""Which agents report: what each said of itself when it came, and of its driver and spool since. In memory.

A collector that starts again knows its agents as soon as they are back: each opens a stream with a Hello.
What several collectors hear they tell each other by `presence`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from flopwatch_proto.v1 import telemetry_pb2 as pb

FORGET_MS: Final = 7 * 24 * 3_600_000
AGENTS_MAX: Final = 100_000
TOLD_MS: Final = 150_000
"""How long what an agent told of itself is taken for now: it tells every minute, one may be lost."""
_TOLD: Final = ("driver_state", "spool_batches", "spool_bytes", "rows_dropped")


@dataclass(slots=True, kw_only=True)
class Agent:
    """One agent.

    Attributes:
        version: of the agent; protocol: revision that it speaks.
        hello_unix_ms: when it opened its newest stream; heard_unix_ms: its last word of any kind.
        clock_skew_ms: its clock less ours at its last word that carried one, the way here included.
        told_unix_ms: when it last told the following.
        driver_state, spool_batches, spool_bytes, rows_dropped: None: not told lately.
        left: it took leave.
    """

    cluster: str
    node: str
    version: str = ""
    protocol: int = 0
    simulated: bool = False
    hello_unix_ms: int = 0
    heard_unix_ms: int = 0
    clock_skew_ms: int | None = None
    told_unix_ms: int = 0
    driver_state: str | None = None
    spool_batches: int | None = None
    spool_bytes: int | None = None
    rows_dropped: int | None = None
    left: bool = False


_FIELDS: Final = tuple(entry.name for entry in fields(Agent))


@dataclass(slots=True)
class Agents:
    """What is known of every agent that was heard in the last week.

    Attributes:
        certificate_of: from when and until when the certificate holds that a node of a cluster showed last.
        collector: the name of the one that hears them; empty where it is alone.
        hellos: streams that were opened.
    """

    certificate_of: Callable[[str, str], tuple[int, int] | None] = lambda cluster, node: None
    collector: str = ""
    hellos: int = 0
    _known: dict[tuple[str, str], Agent] = field(default_factory=dict)

    def hello(self, hello: pb.Hello, now_unix_ms: int) -> None:
        """Take who opened a stream."""
        if len(self._known) >= AGENTS_MAX:
            self._forget(now_unix_ms)
        self.hellos += 1
        place = hello.cluster, hello.node_id
        agent = self._known.setdefault(place, Agent(cluster=place[0], node=place[1]))
        agent.version, agent.protocol = hello.agent_version, hello.protocol_revision
        agent.simulated, agent.left = hello.simulated, False
        agent.hello_unix_ms = agent.heard_unix_ms = now_unix_ms
        agent.clock_skew_ms = hello.wall_unix_ns // 1_000_000 - now_unix_ms

    def heard(self, cluster: str, node: str, now_unix_ms: int, *, leaves: bool = False) -> None:
        """Take that a node said something, or its leave; of nodes without a Hello nothing is kept."""
        agent = self._known.get((cluster, node))
        if agent is not None:
            agent.heard_unix_ms = max(agent.heard_unix_ms, now_unix_ms)
            agent.left = leaves

    def status(self, cluster: str, node: str, status: pb.Status, now_unix_ms: int) -> None:
        """Take a node's picture of itself."""
        self.heard(cluster, node, now_unix_ms)
        agent = self._known.get((cluster, node))
        if agent is not None:
            agent.told_unix_ms = now_unix_ms
            agent.clock_skew_ms = status.taken_unix_ms - now_unix_ms
            agent.driver_state = status.driver_state or None
            agent.spool_batches, agent.spool_bytes = status.spool_batches, status.spool_bytes
            agent.rows_dropped = status.rows_dropped

    def word(self, cluster: str, node: str) -> int:
        """Return when a node's agent was heard last; 0: it never was."""
        agent = self._known.get((cluster, node))
        return 0 if agent is None else agent.heard_unix_ms

    def listed(self, now_unix_ms: int) -> list[dict[str, Any]]:
        """Return every agent as a record, by cluster and node. Called by any thread."""
        self._forget(now_unix_ms)
        listed = []
        for _, agent in sorted(self._known.items()):
            record = {name: getattr(agent, name) for name in _FIELDS}
            if now_unix_ms - record.pop("told_unix_ms") > TOLD_MS:
                record |= dict.fromkeys(_TOLD)
            starts, expires = self.certificate_of(agent.cluster, agent.node) or (None, None)
            record |= {"certificate_starts_unix_ms": starts, "certificate_expires_unix_ms": expires}
            listed.append(record | {"collector": self.collector})
        return listed

    def _forget(self, now_unix_ms: int) -> None:
        """Drop agents that were not heard for a week; at the bound, the longest silent tenth as well."""
        old = now_unix_ms - FORGET_MS
        if len(self._known) >= AGENTS_MAX:
            words = sorted(a.heard_unix_ms for a in list(self._known.values()))
            old = max(old, words[AGENTS_MAX // 10])
        for place in [p for p, a in list(self._known.items()) if a.heard_unix_ms <= old]:
            self._known.pop(place, None)

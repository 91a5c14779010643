"""Several collectors, one control store: each tells the others which agents it hears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import func, select

from flopwatch_collector import presence
from flopwatch_collector.agents import FORGET_MS, Agents
from flopwatch_collector.control.schema import PRESENCE
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.presence import COLLECTORS_MAX, TELL_MS, Presence
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_proto.v1 import telemetry_pb2 as pb
from postgres import Postgres

NOW = 1_800_000_000_000


def hello(node: str) -> pb.Hello:
    return pb.Hello(cluster="atlas", node_id=node, agent_version="0.1.0", protocol_revision=1)


@dataclass
class Several:
    """Collectors that share a control store, and the time it is."""

    control: ControlStore
    now_ms: int = NOW
    agents: dict[str, Agents] = field(default_factory=dict)
    tellers: dict[str, Presence] = field(default_factory=dict)

    def hears(self, collector: str, node: str) -> None:
        if collector not in self.agents:
            agents = self.agents[collector] = Agents(collector=collector)
            metrics = SharedMetrics(CollectorRegistry())
            self.tellers[collector] = Presence(self.control, agents, metrics, lambda: self.now_ms)
        self.agents[collector].hello(hello(node), self.now_ms)

    def listed(self, asked: str) -> dict[str, Any]:
        """What one of them answers: node → who hears it, and when it did."""
        own = self.agents[asked].listed(self.now_ms)
        found = presence.merged([*own, *presence.told(self.control)])
        return {r["node"]: (r["collector"], r["heard_unix_ms"] - NOW) for r in found}


@pytest.fixture(scope="module")
def control(postgresql: Postgres) -> Iterator[ControlStore]:
    opened = ControlStore.open(postgresql.database())
    yield opened
    opened.close()


@pytest.fixture
def several(control: ControlStore) -> Several:
    with control.writing() as connection:
        connection.execute(PRESENCE.delete())
    return Several(control)


def test_each_lists_the_agents_of_all_and_says_whose_they_are(several: Several) -> None:
    several.hears("a", "n0")
    several.hears("b", "n1")
    assert several.listed("a") == {"n0": ("a", 0)}
    for teller in several.tellers.values():
        assert teller.tell()
    assert several.listed("a") == several.listed("b") == {"n0": ("a", 0), "n1": ("b", 0)}


def test_an_agent_that_moved_is_its_newest_collectors_whoever_reads_its_rows(
    several: Several,
) -> None:
    several.hears("a", "n0")
    several.tellers["a"].tell()
    several.now_ms += 5_000
    several.hears("b", "n0")
    several.tellers["b"].tell()
    # The holder of the pager's lease reads rows that the other one stored.
    several.agents["a"].heard("atlas", "n0", several.now_ms + 9_000)
    assert several.listed("a") == {"n0": ("b", 14_000)}
    assert several.listed("b") == {"n0": ("b", 5_000)}


def test_it_is_told_at_once_who_came_and_now_and_then_who_is_there(several: Several) -> None:
    several.hears("a", "n0")
    a = several.tellers["a"]
    assert [a.tell(), a.tell()] == [True, False]
    several.hears("a", "n1")
    assert [a.tell(), a.tell()] == [True, False]
    several.now_ms += TELL_MS - 1
    assert a.tell() is False
    several.now_ms += 1
    assert a.tell() is True


def test_what_is_gone_is_forgotten_by_time_and_by_number(several: Several) -> None:
    several.hears("old", "n0")
    several.tellers["old"].tell()
    several.now_ms += FORGET_MS - 1
    several.hears("a", "n1")
    several.tellers["a"].tell()
    assert set(several.listed("a")) == {"n0", "n1"}
    several.now_ms += TELL_MS
    several.tellers["a"].tell()
    assert set(several.listed("a")) == {"n1"}
    for i in range(COLLECTORS_MAX + 3):
        several.now_ms += 1
        several.hears(f"c{i}", f"n{i}")
        several.tellers[f"c{i}"].tell()
    with several.control.reading() as connection:
        count = connection.execute(select(func.count()).select_from(PRESENCE)).scalar()
    assert count == COLLECTORS_MAX

"""A scenario in real time: every node is read when its moment comes.

One loop and one heap of moments serve all nodes. What a node read at an interval's boundary is sent with
an offset of its own, so that a thousand nodes are no wave. The cluster's scheduler renews a lease on its
slots: a simulator that is killed takes them out of service within ten minutes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from flopwatch.simulate import scheduler
from flopwatch.simulate.backfill import new_fold, payload_of
from flopwatch.simulate.link import Link
from flopwatch.simulate.player import NodePlayer
from flopwatch.simulate.scenario import Cluster, Scenario
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_proto.v1 import telemetry_pb2 as pb

LEASE_MS: Final = 600_000
LEASE_EVERY_MS: Final = 60_000
DRAIN_SECONDS_MAX: Final = 30.0
_SPREAD_FEW_MS: Final = 1_000
_FEW_NODES: Final = 100
_SLEEP_SECONDS_MAX: Final = 1.0
_GOODBYES_AT_ONCE: Final = 64


@dataclass(slots=True, kw_only=True)
class _Node:
    """A node that plays. Attributes: offset_ms: how long after its moment it speaks."""

    player: NodePlayer
    link: Link
    offset_ms: int

    def speak(self) -> int | None:
        """Play the next moment; return when the one after that is due, since the start."""
        played = self.player.step()
        payload = payload_of(played.rows, played.events)
        if payload is not None:
            self.link.append(payload)
        following = self.player.next_ms
        return None if following is None else following + self.offset_ms


@dataclass(slots=True, kw_only=True)
class _Scheduler:
    """A cluster's scheduler: rosters at their moments, a lease every minute."""

    scenario: Scenario
    cluster: Cluster
    link: Link
    start_unix_ms: int
    times_ms: Iterator[int] = field(init=False)
    roster_ms: int | None = field(init=False)
    lease_ms: int = 0

    def __post_init__(self) -> None:
        self.times_ms = scheduler.roster_times_ms(self.scenario, self.cluster)
        self.roster_ms = next(self.times_ms, None)

    def speak(self) -> int | None:
        """Say what is due first; return when the next is due, since the start."""
        if self.lease_ms <= (self.lease_ms if self.roster_ms is None else self.roster_ms):
            self.declare(min(self.lease_ms + LEASE_MS, self.scenario.duration_ms))
            self.lease_ms += LEASE_EVERY_MS
        else:
            at_ms = self.roster_ms or 0
            said = scheduler.roster(
                self.scenario, self.cluster, at_ms=at_ms, start_unix_ms=self.start_unix_ms
            )
            self.link.append(pb.Payload(rosters=[said]))
            self.roster_ms = next(self.times_ms, None)
        due = [self.lease_ms] if self.roster_ms is None else [self.lease_ms, self.roster_ms]
        following = min(due)
        return following if following < self.scenario.duration_ms else None

    def declare(self, to_ms: int) -> None:
        """Say that the slots are in service up to that moment."""
        for portion in scheduler.declarations(
            self.cluster,
            from_unix_ms=self.start_unix_ms,
            to_unix_ms=self.start_unix_ms + to_ms,
        ):
            self.link.append(pb.Payload(slots=portion))


class Live:
    """One run. Args: target: HOST:PORT of the collector's ingest."""

    def __init__(self, target: str, scenario: Scenario, *, clock: Clock) -> None:
        self._target = target
        self._scenario = scenario
        self._clock = clock
        self._start_unix_ms = wall_unix_ms(clock)
        self._nodes: list[_Node] = []
        self._schedulers: list[_Scheduler] = []
        for cluster in scenario.clusters:
            self._add(cluster)

    async def run(self, stop: asyncio.Event) -> None:
        """Play until the scenario's end or until `stop` is set; then say goodbye."""
        order = itertools.count()
        due: list[tuple[int, int, _Node | _Scheduler]] = []
        for head in self._schedulers:
            head.link.start()
            due.append((0, next(order), head))
        for node in self._nodes:
            node.link.start()
            due.append(((node.player.next_ms or 0) + node.offset_ms, next(order), node))
        heapq.heapify(due)
        while due and not stop.is_set():
            now_ms = wall_unix_ms(self._clock) - self._start_unix_ms
            while due and due[0][0] <= now_ms and not stop.is_set():
                each = heapq.heappop(due)[2]
                following = each.speak()
                if following is not None:
                    heapq.heappush(due, (following, next(order), each))
                await asyncio.sleep(0)
            if due:
                wait = min(_SLEEP_SECONDS_MAX, max(0.0, (due[0][0] - now_ms) / 1000))
                await _either(stop, wait)
        await self._end(stopped=stop.is_set())

    def _add(self, cluster: Cluster) -> None:
        self._schedulers.append(
            _Scheduler(
                scenario=self._scenario,
                cluster=cluster,
                link=self._link(cluster, scheduler.node_name(cluster)),
                start_unix_ms=self._start_unix_ms,
            )
        )
        few = cluster.nodes < _FEW_NODES
        spread_ms = _SPREAD_FEW_MS if few else self._scenario.interval_ms * 8 // 10
        for node in range(cluster.nodes):
            player = NodePlayer(
                self._scenario,
                cluster,
                node,
                start_unix_ms=self._start_unix_ms,
                make_fold=lambda: new_fold(self._scenario, cluster),
            )
            link = self._link(cluster, player.name)
            offset_ms = spread_ms * node // cluster.nodes
            self._nodes.append(_Node(player=player, link=link, offset_ms=offset_ms))

    def _link(self, cluster: Cluster, node: str) -> Link:
        return Link(
            self._target,
            cluster=cluster.name,
            node=node,
            interval_ms=self._scenario.interval_ms,
        )

    async def _end(self, *, stopped: bool) -> None:
        """Close the rows, take the slots out of service, drain, say goodbye."""
        now_ms = wall_unix_ms(self._clock) - self._start_unix_ms
        if stopped and now_ms < self._scenario.duration_ms:
            for node in self._nodes:
                last = node.player.stop(now_ms)
                payload = payload_of(last.rows, last.events)
                if payload is not None:
                    node.link.append(payload)
            for each in self._schedulers:
                each.declare(now_ms)
        turns = asyncio.Semaphore(_GOODBYES_AT_ONCE)
        links = [node.link for node in self._nodes] + [each.link for each in self._schedulers]
        reason = "stop" if stopped else "scenario_end"
        try:
            async with asyncio.timeout(DRAIN_SECONDS_MAX / (3 if stopped else 1)):
                await asyncio.gather(*(_leave(link, reason, turns) for link in links))
        except TimeoutError:
            pass  # the collector is away: the leases end by themselves


async def _leave(link: Link, reason: str, turns: asyncio.Semaphore) -> None:
    await link.drained()
    async with turns:
        await link.close(reason)


async def _either(stop: asyncio.Event, seconds: float) -> None:
    """Return after that time, or at once when told to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass

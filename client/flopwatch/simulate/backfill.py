"""A whole scenario as fast as the collector acknowledges it.

Every node plays `INTERVALS_PER_BATCH` intervals, hands them to its stream as one payload and goes on
when they are acknowledged: so memory is bound by what is in flight, and a slow collector slows us.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from flopwatch.simulate import scheduler
from flopwatch.simulate.link import Link
from flopwatch.simulate.lost import Patience
from flopwatch.simulate.player import NodePlayer
from flopwatch.simulate.scenario import Cluster, Scenario
from flopwatch_agent.clock import Clock
from flopwatch_agent.interval import Fold
from flopwatch_proto.codec import IntervalRow, encode_rows
from flopwatch_proto.v1 import telemetry_pb2 as pb

INTERVALS_PER_BATCH: Final = 30
NODES_AT_ONCE: Final = 256
_LOOK_SECONDS: Final = 0.5
_CLOSE_SECONDS_MAX: Final = 10.0


class Backfill:
    """One run.

    Args:
        target: HOST:PORT of the collector's ingest.
        start_unix_ms: where the scenario's time begins.
        on_played: called with the node-intervals that were played and acknowledged.

    Attributes:
        refused: what the collector would not take: reason → count; empty when all is stored.
    """

    def __init__(
        self,
        target: str,
        scenario: Scenario,
        *,
        start_unix_ms: int,
        clock: Clock,
        on_played: Callable[[int], None],
    ) -> None:
        self._target = target
        self._scenario = scenario
        self._start_unix_ms = start_unix_ms
        self._clock = clock
        self._on_played = on_played
        self._open: set[Link] = set()
        self.refused: Counter[str] = Counter()

    async def run(self) -> None:
        """Return when all of the scenario is acknowledged.

        Raises:
            CollectorLostError: the collector was absent or lost for too long.
        """
        patience = Patience(target=self._target, since_seconds=self._clock.monotonic_seconds())
        playing = asyncio.create_task(self._play())
        try:
            while not playing.done():
                await asyncio.wait((playing,), timeout=_LOOK_SECONDS)
                connected = not self._open or any(link.connected for link in self._open)
                error = next((link.error for link in self._open if link.error), "")
                patience.check(self._clock.monotonic_seconds(), connected=connected, error=error)
            await playing
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            await self._close()

    async def _play(self) -> None:
        """Slots first, then what the scheduler says, then the nodes."""
        for cluster in self._scenario.clusters:
            await self._play_scheduler(cluster)
        turns = asyncio.Semaphore(NODES_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for cluster in self._scenario.clusters:
                for node in range(cluster.nodes):
                    group.create_task(self._play_node(cluster, node, turns))

    async def _play_scheduler(self, cluster: Cluster) -> None:
        link = self._link(cluster, scheduler.node_name(cluster))
        end_unix_ms = self._start_unix_ms + self._scenario.duration_ms
        for portion in scheduler.declarations(
            cluster, from_unix_ms=self._start_unix_ms, to_unix_ms=end_unix_ms
        ):
            link.append(pb.Payload(slots=portion))
        await link.drained()
        for at_ms in scheduler.roster_times_ms(self._scenario, cluster):
            said = scheduler.roster(
                self._scenario, cluster, at_ms=at_ms, start_unix_ms=self._start_unix_ms
            )
            link.append(pb.Payload(rosters=[said]))
            await asyncio.sleep(0)
        await link.drained()
        await self._leave(link)

    async def _play_node(self, cluster: Cluster, node: int, turns: asyncio.Semaphore) -> None:
        async with turns:
            player = NodePlayer(
                self._scenario,
                cluster,
                node,
                start_unix_ms=self._start_unix_ms,
                make_fold=lambda: new_fold(self._scenario, cluster),
            )
            link = self._link(cluster, player.name)
            played_ms = 0
            while player.next_ms is not None:
                payload, until_ms = _portion(player, self._scenario.interval_ms)
                if payload is not None:
                    link.append(payload)
                    await link.drained()
                self._on_played((until_ms - played_ms) // self._scenario.interval_ms)
                played_ms = until_ms
                await asyncio.sleep(0)
            await self._leave(link)

    def _link(self, cluster: Cluster, node: str) -> Link:
        link = Link(
            self._target,
            cluster=cluster.name,
            node=node,
            interval_ms=self._scenario.interval_ms,
        )
        self._open.add(link)
        link.start()
        return link

    async def _leave(self, link: Link) -> None:
        self.refused.update(link.refused)
        await link.close("scenario_end")
        self._open.discard(link)

    async def _close(self) -> None:
        async with asyncio.timeout(_CLOSE_SECONDS_MAX):
            await asyncio.gather(
                *(link.close("stop") for link in self._open), return_exceptions=True
            )


def new_fold(scenario: Scenario, cluster: Cluster) -> Fold:
    """The agent's fold, as a node of this cluster would set it up."""
    return Fold(
        interval_ms=scenario.interval_ms,
        dtype=cluster.dtype,
        gap_ms_max=3 * scenario.interval_ms,
    )


def payload_of(rows: list[IntervalRow], events: list[pb.Event]) -> pb.Payload | None:
    """What a node has to say; None where that is nothing."""
    if not rows and not events:
        return None
    return pb.Payload(intervals=encode_rows(rows) if rows else None, events=events)


def _portion(player: NodePlayer, interval_ms: int) -> tuple[pb.Payload | None, int]:
    """The next intervals of a node as one payload, and the moment up to which they reach."""
    rows: list[IntervalRow] = []
    events: list[pb.Event] = []
    first_ms = at_ms = player.next_ms or 0
    while player.next_ms is not None and at_ms - first_ms < (INTERVALS_PER_BATCH - 1) * interval_ms:
        played = player.step()
        rows += played.rows
        events += played.events
        at_ms = played.at_ms
    return payload_of(rows, events), at_ms

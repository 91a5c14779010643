"""What changed just before an outage: events of nodes, drains and leaves, agents that came back or anew.

Events of one kind are one change, so a rack's hundred Xids are a line. The store is asked through handles of
its own and for two seconds at most: a page does not wait for a store that is busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import pyarrow as pa

from flopwatch_collector.control.past import Past
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.live import Live
from flopwatch_collector.paging.background import Backgrounds, Change
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import FlopwatchError, RetryableError

SECONDS_MAX: Final = 2.0
BOUNDS: Final = {"max_execution_time": 2, "max_memory_usage": 256 * 1024**2}
REFUSED_MS: Final = 60_000
CHANGES_MAX: Final = 20
NODES_MAX: Final = 4
HELLOS_MIN: Final = 3
"""Fewer agents that connect anew are an everyday matter."""
_WORDS: Final = {
    "xid": "Xid {code}",
    "sxid": "NVSwitch SXid {code}",
    "goodbye": "agents took leave",
    "card_lost": "card fell off the bus",
    "throttled": "throttled",
}
_SQL: Final = (
    "SELECT kind, if(kind IN ('xid', 'sxid'), code, 0) AS number, max(time_unix_ms) AS at, count() AS times, "
    f"arraySort(groupUniqArray({NODES_MAX})(node)) AS nodes FROM event "
    "WHERE cluster = {cluster:String} AND time_unix_ms >= {since:Int64} "
    "AND time_unix_ms < {until:Int64} GROUP BY kind, number "
    f"ORDER BY at DESC LIMIT {CHANGES_MAX}"
)


@contextmanager
def backgrounds(
    store: TelemetryStore, control: ControlStore, live: Live, prices: Mapping[str, float]
) -> Iterator[Backgrounds]:
    """Give what finds the background of pages, with handles of the store that no reader has."""
    asked = store.bounded(BOUNDS, 1)
    try:
        yield Backgrounds(
            kept=Past(control),
            tallies=live.tallies,
            changes=Changes(asked, live.agents.listed),
            prices=prices,
        )
    finally:
        asked.close()


class Asked(Protocol):
    """Handles of the telemetry store."""

    def query(
        self, sql: str, parameters: Mapping[str, Any], *, seconds_max: float | None = None
    ) -> pa.Table:
        """Return the answer; raises RetryableError where it takes too long."""


class Changes:
    """Asks for what changed.

    Args:
        asked: handles of nobody else's.
        agents: every agent that is known, as a record (`agents.Agents.listed`), at a moment.
    """

    def __init__(self, asked: Asked, agents: Callable[[int], Sequence[Mapping[str, Any]]]) -> None:
        self._asked = asked
        self._agents = agents
        self._refused_until_ms = 0

    def __call__(self, cluster: str, since_unix_ms: int, until_unix_ms: int) -> Sequence[Change]:
        """Return what changed in a cluster between two moments, the newest first.

        Raises:
            RetryableError, PermanentError: the store did not answer in time, or failed.
        """
        if until_unix_ms < self._refused_until_ms:
            raise RetryableError("the store did not answer in time just now")
        asked = {"cluster": cluster, "since": since_unix_ms, "until": until_unix_ms}
        try:
            events = self._asked.query(_SQL, asked, seconds_max=SECONDS_MAX).to_pylist()
        except FlopwatchError:
            # Every cluster may page at once: they wait for a store in trouble once, not each.
            self._refused_until_ms = until_unix_ms + REFUSED_MS
            raise
        agents = (a for a in self._agents(until_unix_ms) if a["cluster"] == cluster)
        found = [*map(of_events, events), *of_agents(agents, since_unix_ms, until_unix_ms)]
        return sorted(found, key=lambda change: -change.unix_ms)


def of_events(record: Mapping[str, Any]) -> Change:
    """Return events of one kind as a change."""
    words = _WORDS.get(record["kind"], record["kind"].replace("_", " "))
    return Change(
        unix_ms=record["at"],
        what=words.format(code=record["number"]),
        count=record["times"],
        nodes=tuple(record["nodes"]),
    )


def of_agents(
    agents: Iterable[Mapping[str, Any]], since_unix_ms: int, until_unix_ms: int
) -> list[Change]:
    """Return agents that connected anew, by version: a rollout, a restart, a network that came back."""
    came: dict[str, list[tuple[int, str]]] = {}
    for agent in agents:
        if since_unix_ms <= agent["hello_unix_ms"] < until_unix_ms:
            words = (agent["hello_unix_ms"], agent["node"])
            came.setdefault(agent["version"], []).append(words)
    return [
        Change(
            unix_ms=max(came_of)[0],
            what=f"agents connected anew, version {version}",
            count=len(came_of),
            nodes=tuple(sorted(node for _, node in came_of)[:NODES_MAX]),
        )
        for version, came_of in came.items()
        if len(came_of) >= HELLOS_MIN
    ]

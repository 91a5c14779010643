"""Agents that are unwell, and nodes' certificates that end: from what agents told of themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from flopwatch_collector.agents import TOLD_MS
from flopwatch_collector.signals import Answer, Found
from flopwatch_collector.trust.records import LIFE_LEFT_MIN

SPOOL_BATCHES_MAX: Final = 360
"""An hour of batches. An agent that reports drains its spool at ten times that pace."""
SKEW_MS_MAX: Final = 30_000
SILENT_MS: Final = 15 * 60_000
_DRIVER: Final = {"unresponsive": "driver hangs", "mismatch": "driver does not match"}

Record = Mapping[str, Any]


class AgentSignal:
    """Reads the agents of every collector."""

    name = "agents"
    every_s = 60.0

    def __init__(self, listed: Callable[[int], Iterable[Record]]) -> None:
        """listed: every agent once at a moment, as `presence.merged` tells them."""
        self._listed = listed
        self._dropped: dict[tuple[str, str], int] = {}
        self._unwell: set[tuple[str, str]] = set()

    def read(self, now_unix_ms: int) -> Answer:
        """Return both rules of each cluster that has agents."""
        by_cluster: dict[str, list[Record]] = {}
        for record in self._listed(now_unix_ms):
            by_cluster.setdefault(record["cluster"], []).append(record)
        before, self._dropped = self._dropped, {}
        were, self._unwell = self._unwell, set()
        answer: dict[tuple[str, str], Found] = {}
        for cluster, records in by_cluster.items():
            reporting = [r for r in records if _silent_ms(r, now_unix_ms) <= TOLD_MS]
            wrong: dict[str, float] = {}
            for record in reporting:
                place = cluster, record["node"]
                if record["rows_dropped"] is not None:
                    self._dropped[place] = record["rows_dropped"]
                if why := unwell(record, before.get(place)):
                    wrong[f"{record['node']}: {why}"] = 0.0
                    self._unwell.add(place)
            # One that fell silent did not get well by it, until silence is the verdict on it.
            silent = {
                (cluster, r["node"])
                for r in records
                if TOLD_MS < _silent_ms(r, now_unix_ms) < SILENT_MS
            }
            unseen = were & silent
            self._unwell |= unseen
            answer[cluster, "agent_unhealthy"] = Found(
                count=len(wrong),
                whole=len(reporting) + len(unseen),
                unseen=len(unseen),
                kind="agent",
                cards=wrong,
            )
            answer[cluster, "certificate_ending"] = _ending(records, now_unix_ms)
        return answer


def _ending(records: Iterable[Record], now_unix_ms: int) -> Found:
    lives = {r["node"]: left for r in records if (left := life_left(r, now_unix_ms)) is not None}
    ending = {node: 0.0 for node, left in lives.items() if left <= LIFE_LEFT_MIN}
    return Found(count=len(ending), whole=len(lives), kind="node", cards=ending)


def unwell(record: Record, dropped_before: int | None) -> str:
    """What is wrong with an agent that reports; empty where nothing is. Pure.

    Args:
        record: of `agents.Agents.listed`.
        dropped_before: rows that it had dropped at the reading before; None: not known.
    """
    if (why := _DRIVER.get(record["driver_state"] or "")) is not None:
        return why
    dropped = record["rows_dropped"]
    if dropped is not None and dropped_before is not None and dropped > dropped_before:
        return "spool drops rows"
    if (record["spool_batches"] or 0) > SPOOL_BATCHES_MAX:
        return "spool fills"
    if abs(record["clock_skew_ms"] or 0) >= SKEW_MS_MAX:
        return "clock is off"
    return ""


def life_left(record: Record, now_unix_ms: int) -> float | None:
    """Which share of its certificate's life a node has left; None: it showed none, or it is gone. Pure."""
    starts, ends = (record.get(f"certificate_{end}_unix_ms") for end in ("starts", "expires"))
    if starts is None or ends is None or ends <= starts or record["left"]:
        return None
    return float(max(0, ends - now_unix_ms) / (ends - starts))


def _silent_ms(record: Record, now_unix_ms: int) -> float:
    """How long an agent is silent; for ever where it took leave."""
    return math.inf if record["left"] else now_unix_ms - int(record["heard_unix_ms"])

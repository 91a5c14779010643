"""What ingest notes beside the rows: words of spools, events about clocks and clones. Stored by the way.

Nothing here is acknowledged and nothing waits for it: a word that a crash takes along is said again by the
agent within a minute, and an old word stays true (see `balance`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from flopwatch_collector.audit import clones
from flopwatch_collector.audit.clones import Clone
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import FlopwatchError
from flopwatch_proto.v1 import telemetry_pb2 as pb

FLUSH_SECONDS: Final = 15.0
LOOK_MS: Final = 5 * 60_000
WORDS_MAX: Final = 200_000
EVENTS_MAX: Final = 10_000

log = structlog.get_logger()

Spool = tuple[str, str, str]


class Keeper:
    """Attributes: lost: words and events that found no room, or that the store would not have."""

    def __init__(self, store: TelemetryStore, now_unix_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_unix_ms = now_unix_ms
        self._words: dict[Spool, dict[str, Any]] = {}
        self._events: deque[dict[str, Any]] = deque()
        self._told: dict[tuple[str, str], int] = {}
        self._looked_unix_ms = now_unix_ms()
        self.lost = 0

    def word(
        self, cluster: str, node: str, simulated: bool, spool_id: str, totals: pb.SpoolTotals
    ) -> None:
        """Take what a spool says of itself; the newest word of each is stored."""
        place = cluster, node, spool_id
        if place not in self._words and len(self._words) >= WORDS_MAX:
            self.lost += 1
            return
        self._words[place] = {
            "cluster": cluster,
            "node": node,
            "spool_id": spool_id,
            "simulated": simulated,
            "told_unix_ms": self._now_unix_ms(),
            "next_seq": totals.next_seq,
            "acked_seq": totals.acked_seq,
            "acked_rows": totals.acked_rows,
            "produced_rows": totals.produced_rows,
            "dropped_rows": totals.dropped_rows,
        }

    def cloned(self, clone: Clone) -> None:
        """Take a node that is two; it is told once in ten minutes."""
        now, place = self._now_unix_ms(), (clone.cluster, clone.node)
        if now - self._told.get(place, 0) >= clones.TOLD_EVERY_MS:
            self._told = {p: t for p, t in self._told.items() if now - t < clones.TOLD_EVERY_MS}
            self._told[place] = now
            log.warning("duplicate_node_identity", node=clone.node, text=clone.text)
            self._event(clones.event_of(clone, now))

    def skewed(self, cluster: str, node: str, simulated: bool, skew_ms: int, severity: str) -> None:
        """Take a clock that went astray, or (without severity) came back."""
        side = "ahead of" if skew_ms > 0 else "behind"
        self._event(
            {
                "cluster": cluster,
                "node": node,
                "slot": "",
                "time_unix_ms": self._now_unix_ms(),
                "kind": "clock_skew",
                "code": skew_ms,
                "severity": severity or "info",
                "text": f"its clock is {abs(skew_ms) / 1000:.1f} s {side} the collector's",
                "action": "look at the node's time service (chronyc tracking)" if severity else "",
                "simulated": simulated,
            }
        )

    def _event(self, event: dict[str, Any]) -> None:
        if len(self._events) >= EVENTS_MAX:
            self.lost += 1
        else:
            self._events.append(event)

    async def run(self) -> None:
        """Store what was noted, every quarter of a minute, for ever."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Store what was noted; where the store fails it is kept for the next time."""
        now = self._now_unix_ms()
        try:
            if now - self._looked_unix_ms >= LOOK_MS:
                self._looked_unix_ms = now
                for clone in clones.stored_clones(self._store, now - clones.LOOKED_BACK_MS):
                    self.cloned(clone)
            words, self._words = self._words, {}
            try:
                self._append("spool", list(words.values()), now)
            except FlopwatchError:
                self._words = {**words, **self._words}
                raise
            events = [self._events.popleft() for _ in range(len(self._events))]
            try:
                self._append("event", events, now)
            except FlopwatchError:
                self._events.extendleft(reversed(events))
                raise
        except FlopwatchError as exc:
            log.warning("words_not_stored", error=str(exc))

    def _append(self, table: str, records: list[dict[str, Any]], now_unix_ms: int) -> None:
        if records:
            columns = {name: [r[name] for r in records] for name in records[0]}
            self._store.append(table, {**columns, "stored_unix_ms": [now_unix_ms] * len(records)})

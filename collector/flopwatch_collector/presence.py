"""Which agents each of several collectors hears: one row per collector in the control store.

A collector writes all of its agents in one row, packed (20 bytes an agent), every 30 s, and sooner where
streams were opened meanwhile. The row of a collector that is gone stays for a week: its agents are shown as
late until another one hears them. Who an agent is connected to says its newest Hello. Its last word does not:
the holder of the pager's lease reads words of agents that are another's.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from flopwatch_collector.agents import AGENTS_MAX, FORGET_MS, Agents
from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.schema import PRESENCE
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_proto.errors import FlopwatchError

LOOK_S: Final = 5.0
TELL_MS: Final = 30_000
COLLECTORS_MAX: Final = 64
"""Rows that are kept: a collector has a new name at every start."""
UNPACKED_BYTES_MAX: Final = 1024 * AGENTS_MAX

log = structlog.get_logger()

Record = dict[str, Any]


class Presence:
    """Tells the control store which agents a collector hears."""

    def __init__(
        self,
        control: ControlStore,
        agents: Agents,
        metrics: SharedMetrics,
        now_unix_ms: Callable[[], int],
    ) -> None:
        """agents: their ``collector`` is the name under which they are told."""
        self._control = control
        self._agents = agents
        self._metrics = metrics
        self._now_unix_ms = now_unix_ms
        self._told_unix_ms = 0
        self._told_hellos = 0

    async def run(self) -> None:
        """Tell for ever; ends when cancelled."""
        aside = Aside("presence")
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                try:
                    await aside(self.tell)
                except FlopwatchError as exc:
                    self._metrics.presence_failures.inc()
                    log.warning("presence_not_told", reason=str(exc))
        finally:
            await aside.end()

    def tell(self) -> bool:
        """Write which agents are heard, where it is time; return whether it was.

        Raises:
            RetryableError: the control store does not answer.
        """
        now, hellos = self._now_unix_ms(), self._agents.hellos
        if hellos == self._told_hellos and now - self._told_unix_ms < TELL_MS:
            return False
        packed = zlib.compress(msgspec.msgpack.encode(self._agents.listed(now)), 1)
        row = {"collector": self._agents.collector, "told_unix_ms": now, "agents": packed}
        with self._control.writing() as connection:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            fresh = dialect.insert(PRESENCE).values(row)
            connection.execute(
                fresh.on_conflict_do_update(index_elements=[PRESENCE.c.collector], set_=row)
            )
            newest = select(PRESENCE.c.collector).order_by(PRESENCE.c.told_unix_ms.desc())
            kept = list(connection.execute(newest.limit(COLLECTORS_MAX)).scalars())
            over = PRESENCE.c.collector.not_in(kept) | (PRESENCE.c.told_unix_ms <= now - FORGET_MS)
            connection.execute(delete(PRESENCE).where(over))
        self._told_unix_ms, self._told_hellos = now, hellos
        return True


def told(control: ControlStore) -> list[Record]:
    """Return the agents that every collector told of.

    Raises:
        RetryableError: the control store does not answer.
    """
    with control.reading() as connection:
        rows = list(connection.execute(select(PRESENCE.c.agents).limit(COLLECTORS_MAX)).scalars())
    return [record for packed in rows for record in _unpacked(packed)]


def merged(records: Iterable[Record]) -> list[Record]:
    """Return each agent once, as the collector says to whom it opened its newest stream. Pure."""
    newest: dict[tuple[str, str], Record] = {}
    heard: dict[tuple[str, str], int] = {}
    for record in records:
        place = record["cluster"], record["node"]
        heard[place] = max(heard.get(place, 0), record["heard_unix_ms"])
        if place not in newest or _hello(record) > _hello(newest[place]):
            newest[place] = record
    return [record | {"heard_unix_ms": heard[place]} for place, record in sorted(newest.items())]


def _hello(record: Record) -> int:
    return int(record.get("hello_unix_ms", 0))


def _unpacked(packed: bytes) -> list[Record]:
    content = zlib.decompressobj().decompress(packed, UNPACKED_BYTES_MAX)
    return msgspec.msgpack.decode(content, type=list[Record])

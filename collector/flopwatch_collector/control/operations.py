"""What people do in the control store: silence, plan, audit. Of a single outage: `response`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select, update

from flopwatch_collector.control.engine import AUDIT_LOCK, one_at_a_time
from flopwatch_collector.control.schema import (
    AUDIT,
    INVENTORY_SLOT,
    MAINTENANCE,
    SILENCE,
)
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.inventory import Slot
from flopwatch_proto.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Pages held for a while. Attributes: matchers: field (cluster, rule) → shell pattern; all must
    match; starts, ends: Unix ms, half open; origin: where it was made, if not here; id: 0 before it is
    stored."""

    matchers: Mapping[str, str]
    starts_unix_ms: int
    ends_unix_ms: int
    by: str
    why: str
    origin: str = ""
    id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintenance:
    """A planned window on nodes of a cluster. Attributes: nodes: a shell pattern, ``*`` for all."""

    cluster: str
    nodes: str
    starts_unix_ms: int
    ends_unix_ms: int
    by: str
    why: str
    id: int = 0


def add_silence(store: ControlStore, silence: Silence) -> int:
    """Store a silence; its id. Raises: UsageError when its window or matchers say nothing."""
    unknown = sorted(set(silence.matchers) - {"cluster", "rule"})
    if unknown or not silence.matchers:
        raise UsageError(f"silence: matchers know cluster and rule, not {unknown or 'nothing'}")
    return _add_window(store, SILENCE, silence)


def add_maintenance(store: ControlStore, window: Maintenance) -> int:
    """Store a maintenance window; its id. Raises: UsageError when it ends before it starts."""
    return _add_window(store, MAINTENANCE, window)


def end_window(store: ControlStore, kind: str, window_id: int, now_unix_ms: int) -> None:
    """End a ``silence`` or ``maintenance`` window now. Raises: UsageError when it is not there."""
    table = {"silence": SILENCE, "maintenance": MAINTENANCE}[kind]
    with store.writing() as connection:
        ended = connection.execute(
            update(table).where(table.c.id == window_id).values(ends_unix_ms=now_unix_ms)
        )
    if ended.rowcount == 0:
        raise UsageError(f"{kind} {window_id} is unknown")


def silences(store: ControlStore, at_unix_ms: int | None = None) -> list[Silence]:
    """All silences, or those that hold at a moment."""
    return [Silence(**columns) for columns in _windows(store, SILENCE, at_unix_ms)]


def maintenances(store: ControlStore, at_unix_ms: int | None = None) -> list[Maintenance]:
    """All maintenance windows, or those that hold at a moment."""
    return [Maintenance(**columns) for columns in _windows(store, MAINTENANCE, at_unix_ms)]


def resting(store: ControlStore, cluster: str, at_unix_ms: int) -> list[str]:
    """Shell patterns of the nodes of a cluster that are in maintenance at a moment."""
    return [
        window.nodes
        for window in maintenances(store, at_unix_ms)
        if fnmatchcase(cluster, window.cluster)
    ]


def _add_window(store: ControlStore, table: Table, window: Silence | Maintenance) -> int:
    if window.ends_unix_ms <= window.starts_unix_ms:
        raise UsageError(f"{table.name}: its end must come after its start")
    columns = asdict(window)
    del columns["id"]
    with store.writing() as connection:
        key = connection.execute(insert(table).values(**columns)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _windows(store: ControlStore, table: Table, at_unix_ms: int | None) -> list[dict[str, Any]]:
    query = select(table).order_by(table.c.id)
    if at_unix_ms is not None:
        query = query.where(table.c.starts_unix_ms <= at_unix_ms, table.c.ends_unix_ms > at_unix_ms)
    with store.reading() as connection:
        return [found._asdict() for found in connection.execute(query)]


# ---- audit


def record(
    store: ControlStore,
    at_unix_ms: int,
    who: str,
    what: str,
    subject: str,
    *,
    origin: str = "",
    before: object = None,
    after: object = None,
) -> None:
    """Append to the audit log. Args: who: the person or token; origin: the address it came from."""
    entry = {
        "at_unix_ms": at_unix_ms,
        "who": who,
        "origin": origin,
        "what": what,
        "subject": subject,
        "before": before,
        "after": after,
    }
    with store.writing() as connection:
        one_at_a_time(connection, AUDIT_LOCK)
        entry["hash"] = _chained(_newest_hash(connection), entry)
        connection.execute(insert(AUDIT).values(**entry))


def audit(store: ControlStore, rows_max: int = 1000) -> list[dict[str, Any]]:
    """The newest entries, newest first."""
    with store.reading() as connection:
        found = connection.execute(select(AUDIT).order_by(AUDIT.c.id.desc()).limit(rows_max))
        return [row._asdict() for row in found]


def audit_is_whole(store: ControlStore) -> bool:
    """Whether every entry's hash fits the entry and the one before it."""
    previous = ""
    with store.reading() as connection:
        for row in connection.execute(select(AUDIT).order_by(AUDIT.c.id)):
            entry = row._asdict()
            stored = entry.pop("hash")
            del entry["id"]
            if _chained(previous, entry) != stored:
                return False
            previous = stored
    return True


def _newest_hash(connection: Connection) -> str:
    query = select(AUDIT.c.hash).order_by(AUDIT.c.id.desc()).limit(1)
    return connection.execute(query).scalar() or ""


def _chained(previous: str, entry: Mapping[str, object]) -> str:
    text = previous + json.dumps(entry, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- inventory of record


def replace_inventory(store: ControlStore, slots: Sequence[Slot]) -> None:
    """Make the given slots the whole inventory of record."""
    with store.writing() as connection:
        connection.execute(delete(INVENTORY_SLOT))
        if slots:
            connection.execute(insert(INVENTORY_SLOT), [_slot_columns(slot) for slot in slots])


def inventory(store: ControlStore, cluster: str | None = None) -> list[Slot]:
    """The slots of record, of all clusters or of one."""
    key = (INVENTORY_SLOT.c.cluster, INVENTORY_SLOT.c.node, INVENTORY_SLOT.c.slot)
    query = select(INVENTORY_SLOT).order_by(*key, INVENTORY_SLOT.c.from_unix_ms)
    if cluster is not None:
        query = query.where(INVENTORY_SLOT.c.cluster == cluster)
    with store.reading() as connection:
        return [Slot.from_columns(found._asdict()) for found in connection.execute(query)]


def _slot_columns(slot: Slot) -> dict[str, Any]:
    return asdict(slot) | {"state": slot.state.name.lower()}

"""Captures in the control store: who was asked for readings of which window, and who answered.

One row per slot. Whoever asks writes the rows; the collector whose stream leads to the node sends the
request and notes the answers. Every change may be repeated: an id asked twice stays as it was, and a row
that is answered or expired never changes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, and_, case, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from flopwatch_collector.control.schema import CAPTURE_REQUEST, EPISODE
from flopwatch_collector.control.store import ControlStore

ASKED: Final = "asked"
SENT: Final = "sent"
ANSWERED: Final = "answered"
EXPIRED: Final = "expired"
OPEN: Final = (ASKED, SENT)
OPEN_MS_MAX: Final = 3_600_000
"""A node that does not answer within an hour is not asked any more."""
OPEN_ROWS_MAX: Final = 50_000
LISTED_MAX: Final = 1_000

_T: Final = CAPTURE_REQUEST.c
Place = tuple[str, str, str, str]
"""(id, cluster, node, slot): the key of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureAsk:
    """What is asked of some slots of one cluster.

    Attributes:
        slots: (node, slot) of each.
        job: whose ranks they are; empty where nodes were named.
        readings_per_second: 0: as often as agents read anyway.
        asked_by: a person, or ``outage RULE/CLUSTER/EPISODE``.
    """

    id: str
    cluster: str
    slots: Sequence[tuple[str, str]]
    from_unix_ms: int
    to_unix_ms: int
    readings_per_second: int
    asked_unix_ms: int
    asked_by: str
    job: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How much is open; another value means that something was asked, sent or answered."""

    slots: int
    oldest_unix_ms: int
    newest_unix_ms: int
    changed_unix_ms: int


def ask(store: ControlStore, asked: CaptureAsk) -> None:
    """Put a request in; slots that this id asks already stay as they are."""
    rows = [
        {
            "id": asked.id,
            "cluster": asked.cluster,
            "node": node,
            "slot": slot,
            "job": asked.job,
            "from_unix_ms": asked.from_unix_ms,
            "to_unix_ms": asked.to_unix_ms,
            "readings_per_second": asked.readings_per_second,
            "asked_unix_ms": asked.asked_unix_ms,
            "asked_by": asked.asked_by,
            "state": ASKED,
            "changed_unix_ms": asked.asked_unix_ms,
        }
        for node, slot in asked.slots
    ]
    with store.writing() as connection:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(CAPTURE_REQUEST).on_conflict_do_nothing(), rows)


def open_rows(store: ControlStore) -> list[dict[str, Any]]:
    """Return the rows that still wait for an answer, the oldest first."""
    query = (
        select(CAPTURE_REQUEST)
        .where(_T.state.in_(OPEN))
        .order_by(_T.asked_unix_ms, _T.id, _T.cluster, _T.node, _T.slot)
        .limit(OPEN_ROWS_MAX)
    )
    with store.reading() as connection:
        return [found._asdict() for found in connection.execute(query)]


def note(
    store: ControlStore,
    now_unix_ms: int,
    *,
    sent: Iterable[tuple[str, str, str]] = (),
    answered: Iterable[Place] = (),
) -> None:
    """Write what happened since the last time.

    Args:
        sent: (id, cluster, node) of requests that went out.
        answered: slots whose last part is stored.
    """
    with store.writing() as connection:
        for capture_id, cluster, node in sent:
            at_node = and_(_T.id == capture_id, _T.cluster == cluster, _T.node == node)
            connection.execute(_moved(SENT, (ASKED,), now_unix_ms).where(at_node))
        for capture_id, cluster, node, slot in answered:
            at_slot = and_(
                _T.id == capture_id, _T.cluster == cluster, _T.node == node, _T.slot == slot
            )
            connection.execute(_moved(ANSWERED, (*OPEN, EXPIRED), now_unix_ms).where(at_slot))


def expire(store: ControlStore, now_unix_ms: int) -> int:
    """Give up what nobody answered in time; return how many slots that are."""
    late = _T.asked_unix_ms < now_unix_ms - OPEN_MS_MAX
    with store.writing() as connection:
        return connection.execute(_moved(EXPIRED, OPEN, now_unix_ms).where(late)).rowcount


def _moved(state: str, before: Sequence[str], now_unix_ms: int) -> Any:
    moved = update(CAPTURE_REQUEST).where(_T.state.in_(before))
    return moved.values(state=state, changed_unix_ms=now_unix_ms)


# ---- what readers ask


def summaries(
    store: ControlStore,
    *,
    capture_id: str | None = None,
    cluster: str | None = None,
    since_unix_ms: int = 0,
) -> list[dict[str, Any]]:
    """Return captures asked since a moment, newest first, each with its progress."""

    def count(state: str) -> Any:
        return func.sum(case((_T.state == state, 1), else_=0)).label(state)

    same = (
        *(_T.id, _T.cluster, _T.job, _T.from_unix_ms, _T.to_unix_ms),
        *(_T.readings_per_second, _T.asked_unix_ms, _T.asked_by),
    )
    counts = (func.count().label("slots"), *map(count, (*OPEN, ANSWERED, EXPIRED)))
    query: Select[Any] = (
        select(*same, *counts)
        .where(_T.asked_unix_ms >= since_unix_ms)
        .group_by(*same)
        .order_by(_T.asked_unix_ms.desc(), _T.id)
        .limit(LISTED_MAX)
    )
    if capture_id is not None:
        query = query.where(_T.id == capture_id)
    if cluster is not None:
        query = query.where(_T.cluster == cluster)
    with store.reading() as connection:
        return [found._asdict() for found in connection.execute(query)]


def places(store: ControlStore, capture_id: str) -> list[tuple[str, str, str]]:
    """Return (node, slot, state) of every slot that a capture asks."""
    query = select(_T.node, _T.slot, _T.state).where(_T.id == capture_id).order_by(_T.node, _T.slot)
    with store.reading() as connection:
        return [(row.node, row.slot, row.state) for row in connection.execute(query)]


def standing(store: ControlStore) -> Standing:
    """Return how much waits for answers, without reading it."""
    query = select(
        func.count(),
        *(func.min(_T.asked_unix_ms), func.max(_T.asked_unix_ms), func.max(_T.changed_unix_ms)),
    ).where(_T.state.in_(OPEN))
    with store.reading() as connection:
        slots, *moments = connection.execute(query).one()
    return Standing(slots, *(moment or 0 for moment in moments))


def fired_since(store: ControlStore, since_unix_ms: int) -> list[dict[str, Any]]:
    """Return real outages that fired since a moment: ``rule cluster episode fired_unix_ms causes``."""
    query = select(
        *(EPISODE.c.rule, EPISODE.c.cluster, EPISODE.c.episode),
        *(EPISODE.c.fired_unix_ms, EPISODE.c.causes),
    ).where(EPISODE.c.fired_unix_ms >= since_unix_ms, EPISODE.c.simulated.is_(False))
    with store.reading() as connection:
        return [found._asdict() for found in connection.execute(query)]

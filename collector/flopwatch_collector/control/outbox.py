"""The rows of the outbox: pages that were decided and are not sent yet.

Lines form per (rule, cluster, route): only the oldest open row of a line may be sent, so a ``resolve``
never overtakes its ``trigger``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, exists, func, select, update

from flopwatch_collector.control.schema import INCIDENT, OUTBOX
from flopwatch_collector.incident_state import TOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """A page for one route.

    Attributes:
        id: the same on every try and every collector; sent as ``Idempotency-Key``.
        repeat_no: counts the action within the episode.
        dedup_key: names the outage at the receiver; the same for all its pages.
        body: JSON text, as it is sent.
        next_try_unix_ms: not sent before this moment.
        held_reason: why sending waits (silence, maintenance, inhibition); None when it does not.
        sent_unix_ms: when a receiver accepted it; None while open.
        dropped_unix_ms: when it was given up for good.
        seq: order of decision; 0 before it is stored.
    """

    id: str
    rule: str
    cluster: str
    episode: str
    route: str
    action: str
    repeat_no: int
    dedup_key: str
    body: str
    created_unix_ms: int
    next_try_unix_ms: int = 0
    attempts: int = 0
    last_error: str | None = None
    held_reason: str | None = None
    sent_unix_ms: int | None = None
    dropped_unix_ms: int | None = None
    provider_ref: str | None = None
    seq: int = 0


def row_id(dedup_key: str, route: str, action: str, repeat_no: int) -> str:
    """The id of a page: 32 hex digits that depend on nothing but what the page is."""
    text = "\x1f".join((dedup_key, route, action, str(repeat_no)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def as_columns(row: OutboxRow) -> dict[str, Any]:
    """Columns to insert; the store numbers the row itself."""
    columns = asdict(row)
    del columns["seq"]
    return columns


def as_row(found: Row[Any]) -> OutboxRow:
    """A stored row as a value."""
    return OutboxRow(**found._asdict())


_OPEN = and_(OUTBOX.c.sent_unix_ms.is_(None), OUTBOX.c.dropped_unix_ms.is_(None))


def heads(connection: Connection, now_unix_ms: int, rows_max: int) -> list[OutboxRow]:
    """The first open row of every line, where it is due."""
    first = (
        select(func.min(OUTBOX.c.seq))
        .where(_OPEN)
        .group_by(OUTBOX.c.rule, OUTBOX.c.cluster, OUTBOX.c.route)
    )
    query = (
        select(OUTBOX)
        .where(OUTBOX.c.seq.in_(first), OUTBOX.c.next_try_unix_ms <= now_unix_ms)
        .order_by(OUTBOX.c.seq)
        .limit(rows_max)
    )
    return [as_row(found) for found in connection.execute(query)]


def open_rows(connection: Connection) -> list[OutboxRow]:
    """Every row that is neither sent nor dropped, oldest first."""
    query = select(OUTBOX).where(_OPEN).order_by(OUTBOX.c.seq)
    return [as_row(found) for found in connection.execute(query)]


def change(connection: Connection, row_id: str, **columns: object) -> None:
    """Set columns of one open row; a row that is closed already stays as it is."""
    connection.execute(update(OUTBOX).where(OUTBOX.c.id == row_id, _OPEN).values(**columns))


def superseded(connection: Connection, row: OutboxRow) -> bool:
    """Whether the episode of a held row is over: its ``resolve`` waits behind it."""
    query = select(func.count()).where(
        OUTBOX.c.rule == row.rule,
        OUTBOX.c.cluster == row.cluster,
        OUTBOX.c.route == row.route,
        OUTBOX.c.episode == row.episode,
        OUTBOX.c.action == "resolve",
        OUTBOX.c.seq > row.seq,
    )
    return bool(connection.execute(query).scalar_one())


def told(connection: Connection, row: OutboxRow, route: str) -> bool:
    """Whether a route has any page of a row's episode, sent or not."""
    query = select(func.count()).where(
        OUTBOX.c.rule == row.rule,
        OUTBOX.c.cluster == row.cluster,
        OUTBOX.c.episode == row.episode,
        OUTBOX.c.route == route,
    )
    return bool(connection.execute(query).scalar_one())


def reference(connection: Connection, row: OutboxRow) -> str | None:
    """What the receiver called the page before this one of the same outage; None where it called none."""
    query = (
        select(OUTBOX.c.provider_ref)
        .where(
            OUTBOX.c.rule == row.rule,
            OUTBOX.c.cluster == row.cluster,
            OUTBOX.c.episode == row.episode,
            OUTBOX.c.route == row.route,
            OUTBOX.c.seq < row.seq,
            OUTBOX.c.provider_ref.is_not(None),
        )
        .order_by(OUTBOX.c.seq.desc())
        .limit(1)
    )
    return connection.execute(query).scalar_one_or_none()


def holding(connection: Connection, route: str) -> list[OutboxRow]:
    """The newest page that a route took of each outage that holds, where none is on its way."""
    coming = OUTBOX.alias()
    on_its_way = exists().where(
        coming.c.rule == OUTBOX.c.rule,
        coming.c.cluster == OUTBOX.c.cluster,
        coming.c.episode == OUTBOX.c.episode,
        coming.c.route == route,
        coming.c.action.in_(["trigger", "escalate", "resolve"]),
        coming.c.sent_unix_ms.is_(None),
        coming.c.dropped_unix_ms.is_(None),
        coming.c.held_reason.is_(None),
    )
    newest = (
        select(func.max(OUTBOX.c.seq))
        .join(
            INCIDENT,
            and_(
                INCIDENT.c.rule == OUTBOX.c.rule,
                INCIDENT.c.cluster == OUTBOX.c.cluster,
                INCIDENT.c.episode == OUTBOX.c.episode,
            ),
        )
        .where(
            INCIDENT.c.state.in_([state.value for state in TOLD]),
            OUTBOX.c.route == route,
            OUTBOX.c.action.in_(["trigger", "escalate"]),
            OUTBOX.c.sent_unix_ms.is_not(None),
            ~on_its_way,
        )
        .group_by(OUTBOX.c.rule, OUTBOX.c.cluster)
    )
    query = select(OUTBOX).where(OUTBOX.c.seq.in_(newest)).order_by(OUTBOX.c.seq)
    return [as_row(found) for found in connection.execute(query)]


def drop_unopened(connection: Connection, row: OutboxRow, now_unix_ms: int) -> None:
    """Drop an episode's open rows on a route that never heard of it: it began and ended unsent."""
    line = (
        OUTBOX.c.rule == row.rule,
        OUTBOX.c.cluster == row.cluster,
        OUTBOX.c.route == row.route,
        OUTBOX.c.episode == row.episode,
    )
    heard = select(func.count()).where(*line, OUTBOX.c.sent_unix_ms.is_not(None))
    gone = [row.id]
    if not connection.execute(heard).scalar_one():
        gone = list(connection.execute(select(OUTBOX.c.id).where(*line, _OPEN)).scalars())
    _drop(connection, gone, now_unix_ms)


def _drop(connection: Connection, ids: Sequence[str], now_unix_ms: int) -> None:
    connection.execute(
        update(OUTBOX).where(OUTBOX.c.id.in_(ids)).values(dropped_unix_ms=now_unix_ms)
    )

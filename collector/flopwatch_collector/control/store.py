"""ControlStore: one transaction per change of state, with the pages it means.

The rule of this module: an incident's new state, the observation that led to it and the pages to send for
it are one commit. After a crash either all of them are there or none is, and the tick is judged again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from flopwatch_collector.control import outbox
from flopwatch_collector.control.engine import WRITE_OPTION, open_engine
from flopwatch_collector.control.leases import PAGER, check_fence
from flopwatch_collector.control.observations import Judged, columns_of
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.schema import (
    CAPTURE_REQUEST,
    EPISODE,
    INCIDENT,
    OBSERVATION,
    OUTBOX,
)
from flopwatch_collector.incident import HOUR_MS, MINUTE_MS
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.rules import Cause
from flopwatch_proto.errors import RetryableError

DAY_MS: Final = 24 * HOUR_MS
# Baselines look back seven days.
OBSERVATION_KEPT_MS: Final = 8 * DAY_MS
OBSERVATION_MINUTES_KEPT_MS: Final = 35 * DAY_MS
OUTBOX_KEPT_MS: Final = 35 * DAY_MS
EPISODE_KEPT_MS: Final = 400 * DAY_MS
CAPTURE_KEPT_MS: Final = 35 * DAY_MS  # as long as the readings themselves
DUE_ROWS_MAX: Final = 256


class ControlStore:
    """The control store, open. Methods are synchronous; each is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(**{WRITE_OPTION: True})
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    @classmethod
    def open(cls, dsn: str, *, migrate: bool = True) -> Self:
        """Open the store and bring its tables up to date.

        Args:
            dsn: ``sqlite:////var/lib/flopwatch/control.db``, or a PostgreSQL URL.
            migrate: False for a process that only reads.

        Raises:
            UsageError: the store cannot be read or written.
        """
        return cls(open_engine(dsn, migrate=migrate))

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read transaction. Raises: RetryableError when the store does not answer."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            raise RetryableError(f"control store: {exc}") from exc

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A write transaction: all or nothing. Raises: RetryableError when it was not committed."""
        try:
            with self._writer.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            raise RetryableError(f"control store: {exc}") from exc

    # ---- incidents

    def save(
        self,
        *,
        states: Sequence[IncidentState] = (),
        pages: Sequence[OutboxRow] = (),
        observations: Sequence[Judged] = (),
        fence: int | None = None,
    ) -> None:
        """Write a tick's outcome in one transaction.

        Args:
            fence: of the pager's lease, under which the tick was judged; None: there is no lease.

        Raises:
            RetryableError: nothing was written; a state was changed by somebody else since it was
                read (an acknowledgement, another collector), somebody else has the lease, or the
                store does not answer.
        """
        with self.writing() as connection:
            if fence is not None:
                check_fence(connection, PAGER, fence)
            for state in states:
                self._save_state(connection, state)
                self._save_episode(connection, state)
            self._add_pages(connection, pages)
            rows = [columns_of(judged) for judged in observations]
            if rows:
                connection.execute(self._insert(OBSERVATION).on_conflict_do_nothing(), rows)

    def incidents(self, states: Sequence[State] | None = None) -> list[IncidentState]:
        """The stored states, of all incidents or of those in some states, by cluster and rule."""
        query = select(INCIDENT).order_by(INCIDENT.c.cluster, INCIDENT.c.rule)
        if states is not None:
            query = query.where(INCIDENT.c.state.in_([state.value for state in states]))
        with self.reading() as connection:
            return [_state_of(found._asdict()) for found in connection.execute(query)]

    def episodes(
        self, *, cluster: str | None = None, since_unix_ms: int = 0, rows_max: int = 1000
    ) -> list[dict[str, Any]]:
        """Outages that paged, newest first, as plain columns."""
        query = (
            select(EPISODE)
            .where(
                or_(
                    EPISODE.c.resolved_unix_ms.is_(None),
                    EPISODE.c.resolved_unix_ms >= since_unix_ms,
                )
            )
            .order_by(EPISODE.c.fired_unix_ms.desc())
            .limit(rows_max)
        )
        if cluster is not None:
            query = query.where(EPISODE.c.cluster == cluster)
        with self.reading() as connection:
            return [found._asdict() for found in connection.execute(query)]

    def _save_state(self, connection: Connection, state: IncidentState) -> None:
        columns = _state_columns(state)
        if state.version == 0:
            written = connection.execute(
                self._insert(INCIDENT).on_conflict_do_nothing(),
                columns,
                execution_options={"preserve_rowcount": True},
            ).rowcount
        else:
            written = connection.execute(
                update(INCIDENT)
                .where(
                    INCIDENT.c.rule == state.rule,
                    INCIDENT.c.cluster == state.cluster,
                    INCIDENT.c.version == state.version,
                )
                .values(**columns)
            ).rowcount
        if written != 1:
            raise RetryableError(f"incident {state.rule} of {state.cluster} changed meanwhile")

    def _save_episode(self, connection: Connection, state: IncidentState) -> None:
        if state.fired_unix_ms is None:
            return
        key = (
            EPISODE.c.rule == state.rule,
            EPISODE.c.cluster == state.cluster,
            EPISODE.c.episode == state.episode,
        )
        worst = connection.execute(select(EPISODE.c.worst).where(*key)).first()
        columns: dict[str, Any] = {
            "simulated": state.simulated,
            "severity": state.severity,
            "resolved_unix_ms": (state.resolved_unix_ms if state.state is State.RESOLVED else None),
            "line": state.line,
        }
        if worst is None or _is_worse(state, worst[0]):
            columns["worst"] = state.hi
            columns["lost_points"] = dict(state.lost_points)
            columns["causes"] = [asdict(cause) for cause in state.causes]
        if worst is not None:
            connection.execute(update(EPISODE).where(*key).values(**columns))
            return
        columns["began_unix_ms"] = state.began_unix_ms
        columns["fired_unix_ms"] = state.fired_unix_ms
        names = {"rule": state.rule, "cluster": state.cluster, "episode": state.episode}
        connection.execute(insert(EPISODE).values(**names, **columns))

    # ---- outbox

    def _add_pages(self, connection: Connection, pages: Sequence[OutboxRow]) -> None:
        if pages:
            rows = [outbox.as_columns(page) for page in pages]
            connection.execute(self._insert(OUTBOX).on_conflict_do_nothing(), rows)

    def enqueue(self, pages: Sequence[OutboxRow]) -> None:
        """Add pages; those that are there already stay as they are."""
        with self.writing() as connection:
            self._add_pages(connection, pages)

    def due(self, now_unix_ms: int) -> list[OutboxRow]:
        """The pages that may be sent now: of each line its oldest open one, when it is due."""
        with self.reading() as connection:
            return outbox.heads(connection, now_unix_ms, DUE_ROWS_MAX)

    def outbox_open(self) -> list[OutboxRow]:
        """Every page that is neither sent nor given up, oldest first."""
        with self.reading() as connection:
            return outbox.open_rows(connection)

    def outbox_all(self) -> list[OutboxRow]:
        """Every page in the order in which it was decided."""
        with self.reading() as connection:
            found = connection.execute(select(OUTBOX).order_by(OUTBOX.c.seq))
            return [outbox.as_row(row) for row in found]

    def told(self, row: OutboxRow, route: str) -> bool:
        """Whether another route has any page of the row's episode, sent or not."""
        with self.reading() as connection:
            return outbox.told(connection, row, route)

    def reference(self, row: OutboxRow) -> str | None:
        """What the receiver called the page before this one of the same outage."""
        with self.reading() as connection:
            return outbox.reference(connection, row)

    def holding(self, route: str) -> list[OutboxRow]:
        """The newest page that a route took of each outage that holds."""
        with self.reading() as connection:
            return outbox.holding(connection, route)

    def sent(self, row_id: str, now_unix_ms: int, provider_ref: str | None = None) -> None:
        """A receiver accepted a page."""
        with self.writing() as connection:
            outbox.change(
                connection,
                row_id,
                sent_unix_ms=now_unix_ms,
                attempts=OUTBOX.c.attempts + 1,
                last_error=None,
                held_reason=None,
                provider_ref=provider_ref,
            )

    def failed(self, row_id: str, error: str, next_try_unix_ms: int) -> None:
        """A try failed; the page stays first in its line until the next one."""
        with self.writing() as connection:
            outbox.change(
                connection,
                row_id,
                attempts=OUTBOX.c.attempts + 1,
                last_error=error,
                held_reason=None,
                next_try_unix_ms=next_try_unix_ms,
            )

    def refused(
        self, row_id: str, error: str, now_unix_ms: int, fallback: Sequence[OutboxRow] = ()
    ) -> None:
        """The receiver will never accept a page: give it up and put it on the fallback's line."""
        with self.writing() as connection:
            outbox.change(
                connection,
                row_id,
                attempts=OUTBOX.c.attempts + 1,
                last_error=error,
                dropped_unix_ms=now_unix_ms,
            )
            self._add_pages(connection, fallback)

    def held(self, row: OutboxRow, reason: str, now_unix_ms: int, next_try_unix_ms: int) -> None:
        """Sending waits for a reason; an outage that came and went meanwhile is never sent."""
        with self.writing() as connection:
            if outbox.superseded(connection, row):
                outbox.change(connection, row.id, held_reason=reason)
                outbox.drop_unopened(connection, row, now_unix_ms)
                return
            outbox.change(connection, row.id, held_reason=reason, next_try_unix_ms=next_try_unix_ms)

    # ---- observations

    def observations(
        self, rule: str, cluster: str, since_unix_ms: int, until_unix_ms: int
    ) -> list[dict[str, Any]]:
        """The inputs of the ticks in ``[since, until)``, oldest first, as plain columns."""
        query = (
            select(OBSERVATION)
            .where(
                OBSERVATION.c.rule == rule,
                OBSERVATION.c.cluster == cluster,
                OBSERVATION.c.tick_unix_ms >= since_unix_ms,
                OBSERVATION.c.tick_unix_ms < until_unix_ms,
            )
            .order_by(OBSERVATION.c.tick_unix_ms)
        )
        with self.reading() as connection:
            return [found._asdict() for found in connection.execute(query)]

    def baseline(self, rule: str, cluster: str, now_unix_ms: int) -> float | None:
        """Median of the judged figure over seven days, one tick a minute; None without any."""
        query = select(OBSERVATION.c.hi).where(
            OBSERVATION.c.rule == rule,
            OBSERVATION.c.cluster == cluster,
            OBSERVATION.c.tick_unix_ms >= now_unix_ms - 7 * DAY_MS,
            OBSERVATION.c.tick_unix_ms % MINUTE_MS == 0,
            OBSERVATION.c.condition != "unknown",
            OBSERVATION.c.hi.is_not(None),
        )
        with self.reading() as connection:
            figures = list(connection.execute(query).scalars())
        return statistics.median(figures) if figures else None

    def prune(self, now_unix_ms: int) -> int:
        """Delete what is older than its keep; open pages and running outages are never deleted."""
        old = (
            delete(OBSERVATION).where(
                OBSERVATION.c.tick_unix_ms < now_unix_ms - OBSERVATION_KEPT_MS,
                OBSERVATION.c.tick_unix_ms % MINUTE_MS != 0,
            ),
            delete(OBSERVATION).where(
                OBSERVATION.c.tick_unix_ms < now_unix_ms - OBSERVATION_MINUTES_KEPT_MS
            ),
            delete(OUTBOX).where(
                func.coalesce(OUTBOX.c.sent_unix_ms, OUTBOX.c.dropped_unix_ms)
                < now_unix_ms - OUTBOX_KEPT_MS
            ),
            delete(EPISODE).where(EPISODE.c.resolved_unix_ms < now_unix_ms - EPISODE_KEPT_MS),
            delete(CAPTURE_REQUEST).where(
                CAPTURE_REQUEST.c.asked_unix_ms < now_unix_ms - CAPTURE_KEPT_MS
            ),
        )
        with self.writing() as connection:
            return sum(connection.execute(statement).rowcount for statement in old)


def _is_worse(state: IncidentState, worst: float | None) -> bool:
    return state.hi is not None and (worst is None or state.hi < worst)


def _state_columns(state: IncidentState) -> dict[str, Any]:
    columns = {column.name: getattr(state, column.name) for column in INCIDENT.columns}
    columns["state"] = state.state.value
    columns["lost_points"] = dict(state.lost_points)
    columns["causes"] = [asdict(cause) for cause in state.causes]
    columns["version"] = state.version + 1
    return columns


def _state_of(columns: dict[str, Any]) -> IncidentState:
    columns["state"] = State(columns["state"])
    columns["causes"] = tuple(Cause(**cause) for cause in columns["causes"])
    for name in ("paged_causes", "flap_times", "noticed"):
        columns[name] = tuple(columns[name])
    return IncidentState(**{field.name: columns[field.name] for field in fields(IncidentState)})

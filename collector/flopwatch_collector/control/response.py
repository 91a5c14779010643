"""What people do about an outage, wherever they say it: here, on the dashboard, or in PagerDuty.

Each response is written down in `note`, the first part of an outage's timeline; the pages of the outbox are
the other. An acknowledgement is also told to every receiver that was paged, so that all of them show it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, insert, select

from flopwatch_collector import closure
from flopwatch_collector.control.operations import record
from flopwatch_collector.control.outbox import OutboxRow, as_row, row_id
from flopwatch_collector.control.schema import NOTE, OUTBOX
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import TOLD, IncidentState, acknowledged, rfc3339
from flopwatch_proto.errors import RetryableError, UsageError

TRIES: Final = 3
TEXT_CHARACTERS_MAX: Final = 2_000
NAME_CHARACTERS_MAX: Final = 200
SUMMARY_CHARACTERS_MAX: Final = 90
ACKNOWLEDGED: Final = "acknowledge"


class Kind(StrEnum):
    """What may be done."""

    ACKNOWLEDGE = "acknowledge"
    TAKE_BACK = "take_back"
    CLOSE = "close"
    REOPEN = "reopen"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Something that a person does. Attributes: origin: the address it came from; text: of a note."""

    rule: str
    cluster: str
    kind: Kind
    by: str
    text: str = ""
    origin: str = ""


def respond(store: ControlStore, response: Response, now_unix_ms: int) -> IncidentState:
    """Do it, and write it down; what is so already is not done twice.

    Raises:
        UsageError: nothing there has paged.
        RetryableError: the store does not answer.
    """
    response = replace(
        response,
        by=response.by[:NAME_CHARACTERS_MAX] or "somebody",
        text=response.text[:TEXT_CHARACTERS_MAX],
    )
    for tries_left in reversed(range(TRIES)):
        before = _outage(store, response)
        after = _CHANGES[response.kind](before, response.by, now_unix_ms)
        if after == before and response.kind is not Kind.NOTE:
            return before
        pages = _told(store, after, now_unix_ms) if response.kind is Kind.ACKNOWLEDGE else []
        try:
            if after != before:
                store.save(states=[after], pages=pages)
        except RetryableError:
            # The tick wrote between the read and the write: read again.
            if not tries_left:
                raise
            continue
        _written(store, response, after, now_unix_ms)
        return after
    raise AssertionError("unreachable")


def of_page(store: ControlStore, dedup_key: str) -> tuple[str, str] | None:
    """Return rule and cluster of the outage that a page is of; None: of none that holds now."""
    query = select(OUTBOX).where(OUTBOX.c.dedup_key == dedup_key).limit(1)
    with store.reading() as connection:
        found = connection.execute(query).first()
    if found is None:
        return None
    row = as_row(found)
    holds = any(
        (state.rule, state.cluster, state.episode) == (row.rule, row.cluster, row.episode)
        for state in store.incidents(TOLD)
    )
    return (row.rule, row.cluster) if holds else None


def timeline(store: ControlStore, rule: str, cluster: str, episode: str) -> list[dict[str, Any]]:
    """Return what was said and sent of an outage, oldest first."""
    of = {"rule": rule, "cluster": cluster, "episode": episode}
    with store.reading() as connection:
        notes = [
            {
                "at": rfc3339(note.at_unix_ms),
                "what": note.what,
                "by": note.by,
                "text": note.text,
            }
            for note in connection.execute(select(NOTE).filter_by(**of).order_by(NOTE.c.id))
        ]
        pages = [
            {
                "at": rfc3339(row.created_unix_ms),
                "what": row.action,
                "by": f"route {row.route}",
                "text": json.loads(row.body).get("summary", ""),
                "sent": None if row.sent_unix_ms is None else rfc3339(row.sent_unix_ms),
                "held": row.held_reason,
                "error": row.last_error if row.sent_unix_ms is None else None,
            }
            for row in _pages(connection, **of)
            if row.action != ACKNOWLEDGED
        ]
    return sorted([*notes, *pages], key=lambda event: str(event["at"]))


def newest_body(store: ControlStore, rule: str, cluster: str, episode: str) -> str | None:
    """Return the newest page of an outage that told how it stands, as JSON; None: there is none."""
    with store.reading() as connection:
        rows = _pages(connection, rule=rule, cluster=cluster, episode=episode)
    told = [row.body for row in rows if row.action in ("trigger", "escalate")]
    return told[-1] if told else None


def _outage(store: ControlStore, response: Response) -> IncidentState:
    for state in store.incidents(TOLD):
        if (state.rule, state.cluster) == (response.rule, response.cluster):
            return state
    raise UsageError(
        f"no {response.rule} outage of {response.cluster} has paged: nothing to {response.kind.value}"
    )


def _taken_back(state: IncidentState, by: str, now_unix_ms: int) -> IncidentState:
    return replace(state, ack_by=None, ack_unix_ms=None)


def _closed(state: IncidentState, by: str, now_unix_ms: int) -> IncidentState:
    return state if state.closed_unix_ms is not None else closure.closed(state, by, now_unix_ms)


def _reopened(state: IncidentState, by: str, now_unix_ms: int) -> IncidentState:
    return closure.reopened(state)


_CHANGES: Final[dict[Kind, Callable[[IncidentState, str, int], IncidentState]]] = {
    Kind.ACKNOWLEDGE: acknowledged,
    Kind.TAKE_BACK: _taken_back,
    Kind.CLOSE: _closed,
    Kind.REOPEN: _reopened,
    Kind.NOTE: lambda state, by, now_unix_ms: state,
}


def _told(store: ControlStore, state: IncidentState, now_unix_ms: int) -> list[OutboxRow]:
    """Return a page per route that was paged: who acknowledged it."""
    newest: dict[str, OutboxRow] = {}
    of = {"rule": state.rule, "cluster": state.cluster, "episode": state.episode}
    with store.reading() as connection:
        for row in _pages(connection, **of):
            if row.action in ("trigger", "escalate"):
                newest[row.route] = row
    return [_acknowledgement(row, state, now_unix_ms) for row in newest.values()]


def _acknowledgement(row: OutboxRow, state: IncidentState, now_unix_ms: int) -> OutboxRow:
    body = json.loads(row.body)
    summary = f"ACKNOWLEDGED by {state.ack_by}: {body['summary']}"
    body |= {
        "action": ACKNOWLEDGED,
        "acked_by": state.ack_by,
        "at": rfc3339(now_unix_ms),
        "summary": summary[:SUMMARY_CHARACTERS_MAX],
    }
    # One acknowledgement after each page that asked for one.
    number = state.escalate_no
    return OutboxRow(
        id=row_id(row.dedup_key, row.route, ACKNOWLEDGED, number),
        rule=row.rule,
        cluster=row.cluster,
        episode=row.episode,
        route=row.route,
        action=ACKNOWLEDGED,
        repeat_no=number,
        dedup_key=row.dedup_key,
        body=json.dumps(body, ensure_ascii=False, separators=(",", ":")),
        created_unix_ms=now_unix_ms,
    )


def _written(
    store: ControlStore, response: Response, state: IncidentState, now_unix_ms: int
) -> None:
    with store.writing() as connection:
        connection.execute(
            insert(NOTE).values(
                rule=response.rule,
                cluster=response.cluster,
                episode=state.episode,
                at_unix_ms=now_unix_ms,
                what=response.kind.value,
                by=response.by,
                text=response.text,
            )
        )
    record(
        *(store, now_unix_ms, response.by, response.kind.value),
        f"{response.cluster}/{response.rule}",
        origin=response.origin,
        after={"by": response.by, "text": response.text},
    )


def _pages(connection: Connection, *, rule: str, cluster: str, episode: str) -> Sequence[OutboxRow]:
    query = (
        select(OUTBOX)
        .where(OUTBOX.c.rule == rule, OUTBOX.c.cluster == cluster, OUTBOX.c.episode == episode)
        .order_by(OUTBOX.c.seq)
    )
    return [as_row(found) for found in connection.execute(query)]

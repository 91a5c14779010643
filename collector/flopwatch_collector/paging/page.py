"""What a page says. Pure: an incident's state and an action in, a summary and a body out.

The summary stands alone on a lock screen (`summary`). The body carries everything that needs no login: what
fell, since when and how far, the leading cause (`explain`), losses in points, cards and money, the nodes,
jobs and teams behind them, what changed just before, the first thing to do, and a command to paste. It is
JSON, and the same once more as text (`body`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_collector.control.outbox import OutboxRow, row_id
from flopwatch_collector.incident_state import (
    Act,
    Action,
    IncidentState,
    State,
    figure_of,
    outage,
    rfc3339,
)
from flopwatch_collector.paging import body as bodies
from flopwatch_collector.paging.background import NOTHING, Background
from flopwatch_collector.paging.command import command
from flopwatch_collector.paging.evidence import Evidence
from flopwatch_collector.paging.explain import explain
from flopwatch_collector.paging.owner import owner_of
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.paging.summary import figure, summary

DEDUP_KEY_CHARACTERS_MAX: Final = 255
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page. Attributes: summary: for a lock screen; body: JSON object; dedup_key: of the outage."""

    summary: str
    dedup_key: str
    body: dict[str, Any]


def build(
    state: IncidentState,
    action: Action,
    now_unix_ms: int,
    paging: PagingConfig,
    others: Sequence[IncidentState] = (),
    background: Background = NOTHING,
) -> Page:
    """The page for an action.

    Args:
        state: after the action.
        now_unix_ms: the tick that decided it.
        paging: deployment name and base of links.
        others: states of the cluster's other rules: one page per cluster names them all.
        background: what else is known; without it the page says what the incident kept.
    """
    key = dedup_key(paging.deployment, state.rule, state.cluster, action.episode)
    also = [held for other in others if (held := outage(other)) is not None]
    evidence = Evidence.of(state, background)
    found = explain(state, evidence)
    line = summary(state, action, now_unix_ms, found, background, [held["rule"] for held in also])
    began = state.began_unix_ms
    body: dict[str, Any] = {
        "version": VERSION,
        "summary": line,
        "deployment": paging.deployment,
        "rule": state.rule,
        "cluster": state.cluster,
        "simulated": state.simulated,
        "state": State.RESOLVED.value if action.act is Act.RESOLVE else state.state.value,
        "action": action.act.value,
        "reason": action.reason or None,
        "repeat_no": action.repeat_no,
        "severity": _severity(state, action),
        "owner": owner_of(state, found),
        "episode": action.episode,
        "dedup_key": key,
        "since": None if began is None else rfc3339(began),
        "at": rfc3339(now_unix_ms),
        "figure": figure(state, background),
        "value": figure_of(state),
        "lo": state.lo,
        "hi": state.hi,
        "threshold": state.line,
        "coverage": state.coverage,
        "lost_points": dict(state.lost_points),
        **bodies.parts(state, found, evidence, background),
        "also": also,
        "acked_by": state.ack_by,
        "command": command(state.rule, state.cluster, found, rfc3339(now_unix_ms)),
        "links": bodies.links(paging.base_url, state, action.episode, now_unix_ms),
    }
    body["text"] = bodies.text_of(body)
    return Page(summary=line, dedup_key=key, body=body)


def rows(
    state: IncidentState,
    actions: Sequence[Action],
    now_unix_ms: int,
    paging: PagingConfig,
    others: Sequence[IncidentState] = (),
    background: Background = NOTHING,
) -> list[OutboxRow]:
    """Outbox rows for actions: one per action and route that takes them, or has heard of the episode."""
    made: list[OutboxRow] = []
    for action in actions:
        page = build(state, action, now_unix_ms, paging, others, background)
        body = json.dumps(page.body, ensure_ascii=False, separators=(",", ":"))
        # Who can act may be another one by now: who was woken hears how it goes on.
        told = frozenset() if action.act is Act.NOTICE else background.told
        for route in paging.route:
            if route.name not in told and not route.takes(
                rule=state.rule,
                cluster=state.cluster,
                simulated=state.simulated,
                severity=page.body["severity"],
                owner=page.body["owner"],
                team=next((cause.name for cause in state.causes if cause.kind == "team"), ""),
            ):
                continue
            made.append(
                OutboxRow(
                    id=row_id(page.dedup_key, route.name, action.act.value, action.repeat_no),
                    rule=state.rule,
                    cluster=state.cluster,
                    episode=action.episode,
                    route=route.name,
                    action=action.act.value,
                    repeat_no=action.repeat_no,
                    dedup_key=page.dedup_key,
                    body=body,
                    created_unix_ms=now_unix_ms,
                    next_try_unix_ms=now_unix_ms,
                )
            )
    return made


def _severity(state: IncidentState, action: Action) -> str:
    """Return how urgent a page is; a notice never wakes anybody."""
    return "info" if action.act is Act.NOTICE else state.severity


def dedup_key(deployment: str, rule: str, cluster: str, episode: str) -> str:
    """``fw:<deployment>:<rule>:<cluster>:<episode>``; its hash where that is longer than 255."""
    key = f"fw:{deployment}:{rule}:{cluster}:{episode}"
    if len(key.encode()) <= DEDUP_KEY_CHARACTERS_MAX:
        return key
    return f"fw:{hashlib.sha256(key.encode()).hexdigest()}"

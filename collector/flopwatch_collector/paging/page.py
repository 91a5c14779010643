"""What a page says. Pure: an incident's state and an action in, a summary and a body out.

The summary stands alone on a lock screen: which cluster, which figure against which line, for how long and
why, in at most 90 characters. The body carries everything that needs no login: bounds, losses, the nodes,
jobs and teams behind them, a command to paste.

A figure never rounds onto or over its line: 95.96 % under a line of 96 % reads 95.96, not 96.0.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, Final
from urllib.parse import quote

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
from flopwatch_collector.paging.owner import owner_of
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.rules.registry import rule_named

SUMMARY_CHARACTERS_MAX: Final = 90
DEDUP_KEY_CHARACTERS_MAX: Final = 255
DECIMALS_MAX: Final = 6
LOSSES_SHOWN: Final = 3
CAUSES_MAX: Final = 10
VERSION: Final = 1

ACTION_WORDS: Final = {
    (Act.ESCALATE, ""): "WORSE ",
    (Act.NOTICE, "standing"): "STANDING ",
    (Act.NOTICE, "flapping"): "FLAPPING ",
    (Act.NOTICE, "no_demand"): "NO DEMAND ",
    (Act.RESOLVE, ""): "RESOLVED ",
}


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
) -> Page:
    """The page for an action.

    Args:
        state: after the action.
        now_unix_ms: the tick that decided it.
        paging: deployment name and base of links.
        others: states of the cluster's other rules: one page per cluster names them all.
    """
    key = dedup_key(paging.deployment, state.rule, state.cluster, action.episode)
    also = [found for other in others if (found := outage(other)) is not None]
    summary = _summary(state, action, now_unix_ms, also)
    began = state.began_unix_ms
    body = {
        "version": VERSION,
        "summary": summary,
        "deployment": paging.deployment,
        "rule": state.rule,
        "cluster": state.cluster,
        "simulated": state.simulated,
        "state": State.RESOLVED.value if action.act is Act.RESOLVE else state.state.value,
        "action": action.act.value,
        "reason": action.reason or None,
        "repeat_no": action.repeat_no,
        "severity": _severity(state, action),
        "owner": owner_of(state),
        "episode": action.episode,
        "dedup_key": key,
        "since": None if began is None else rfc3339(began),
        "at": rfc3339(now_unix_ms),
        "value": figure_of(state),
        "lo": state.lo,
        "hi": state.hi,
        "threshold": state.line,
        "coverage": state.coverage,
        "lost_points": dict(state.lost_points),
        "largest_losses": [
            {"step": name, "points": points} for name, points in _losses(state)[:LOSSES_SHOWN]
        ],
        "causes": [
            {
                "kind": cause.kind,
                "name": cause.name,
                "cards": cause.cards,
                "points": cause.points,
            }
            for cause in state.causes[:CAUSES_MAX]
        ],
        "also": also,
        "acked_by": state.ack_by,
        "command": f"flopwatch cluster {shlex.quote(state.cluster)} --window 15m",
        "links": _links(paging.base_url, state.cluster),
    }
    return Page(summary=summary, dedup_key=key, body=body)


def rows(
    state: IncidentState,
    actions: Sequence[Action],
    now_unix_ms: int,
    paging: PagingConfig,
    others: Sequence[IncidentState] = (),
) -> list[OutboxRow]:
    """Outbox rows for actions: one per action and route that takes them."""
    made: list[OutboxRow] = []
    for action in actions:
        page = build(state, action, now_unix_ms, paging, others)
        body = json.dumps(page.body, ensure_ascii=False, separators=(",", ":"))
        for route in paging.route:
            if not route.takes(
                rule=state.rule,
                cluster=state.cluster,
                simulated=state.simulated,
                severity=page.body["severity"],
                owner=page.body["owner"],
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


def percent(ratio: float, line: float | None = None) -> str:
    """A ratio in percent: one decimal, more where fewer would reach the line it is below."""
    exact = Decimal(repr(ratio)) * 100
    edge = None if line is None else Decimal(repr(line)) * 100
    for decimals in range(1, DECIMALS_MAX + 1):
        step = Decimal(1).scaleb(-decimals)
        shown = exact.quantize(step, rounding=ROUND_HALF_EVEN)
        if edge is None or exact >= edge or shown < edge:
            return f"{shown}"
    return f"{exact.quantize(Decimal(1).scaleb(-DECIMALS_MAX), rounding=ROUND_FLOOR)}"


def lasted(milliseconds: int) -> str:
    """A duration in its two largest units: ``45s``, ``23m``, ``3h05m``, ``2d04h``."""
    seconds = max(0, milliseconds) // 1000
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{seconds}s"
    if hours < 1:
        return f"{minutes}m"
    if days < 1:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"


def _summary(
    state: IncidentState, action: Action, now_unix_ms: int, also: Sequence[dict[str, Any]]
) -> str:
    word = ACTION_WORDS.get((action.act, action.reason)) or ACTION_WORDS.get((action.act, ""), "")
    simulated = "[sim] " if state.simulated else ""
    for_ms = 0 if state.began_unix_ms is None else now_unix_ms - state.began_unix_ms
    short = rule_named(state.rule).short
    tail = f" {short} {_figure(state)} {lasted(for_ms)}"
    head = f"{simulated}{word}"
    cluster = _clean(state.cluster)
    room = SUMMARY_CHARACTERS_MAX - len(head) - len(tail)
    text = head + (cluster if len(cluster) <= room else cluster[: room - 1] + "…") + tail
    if action.act is not Act.RESOLVE:
        text = _with_reasons(text, _reasons(state, also))
    return text


def _figure(state: IncidentState) -> str:
    if state.rule == "blind":
        return "many nodes silent together"
    # The judged figure is the upper bound, and the one that stands below the line while it fires.
    figure = figure_of(state)
    if figure is None:
        return "unknown"
    shown = percent(figure, state.line)
    if state.value is None and state.lo is not None and state.lo != state.hi:
        shown = f"{percent(state.lo, state.line)}-{shown}"
    if state.line is None:
        return f"{shown}%"
    against = "<" if figure < state.line else "≥"
    return f"{shown}% ({against}{percent(state.line)})"


def _reasons(state: IncidentState, also: Sequence[dict[str, Any]]) -> list[str]:
    parts = [
        f"{_clean(name)} {Decimal(repr(points)).quantize(Decimal('0.1'))}"
        for name, points in _losses(state)[:LOSSES_SHOWN]
    ]
    parts.extend(_clean(cause.name) for cause in state.causes[:1])
    parts.extend(f"also {found['rule']}" for found in also)
    return parts


def _with_reasons(text: str, parts: Sequence[str]) -> str:
    """As many whole reasons as there is room for, the most important first."""
    separator = ": "
    for part in parts:
        if len(text) + len(separator) + len(part) > SUMMARY_CHARACTERS_MAX:
            break
        text += separator + part
        separator = ", "
    return text


def _losses(state: IncidentState) -> list[tuple[str, float]]:
    lost = [(name, points) for name, points in state.lost_points.items() if points > 0]
    return sorted(lost, key=lambda loss: (-loss[1], loss[0]))


def _clean(text: str) -> str:
    """Names come from hosts and users: one line, nothing invisible."""
    return "".join(character if character.isprintable() else "?" for character in text).strip()


def _links(base_url: str | None, cluster: str) -> dict[str, str]:
    if base_url is None:
        return {}
    base, name = base_url.rstrip("/"), quote(cluster, safe="")
    return {
        "dashboard": f"{base}/clusters/{name}",
        "api": f"{base}/api/v1/clusters/{name}?window=15m",
    }

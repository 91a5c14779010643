"""Outages as the API shows them: what is open from the incidents, what is over from the episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import IncidentState, State, outage
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.web.asked import DAY_MS

OPEN_STATES: Final = (State.PENDING, State.FIRING, State.STANDING, State.CLEARING)
STATES: Final = (*(s.value for s in OPEN_STATES), State.RESOLVED.value)
RESOLVED_KEPT_MS: Final = 7 * DAY_MS


def outages_by_cluster(store: ControlStore) -> dict[str, list[dict[str, Any]]]:
    """Return cluster → its open outages, the firing ones first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for state in sorted(store.incidents(OPEN_STATES), key=_urgency):
        shown = open_outage(state)
        if shown is not None:
            found.setdefault(state.cluster, []).append(shown)
    return found


def outages(store: ControlStore, now_unix_ms: int, state: str | None) -> list[dict[str, Any]]:
    """Return open outages, or those of one state; resolved ones of the last week, newest first."""
    if state == State.RESOLVED.value:
        since = now_unix_ms - RESOLVED_KEPT_MS
        ended = [e for e in store.episodes(since_unix_ms=since) if e["resolved_unix_ms"]]
        return [_resolved(e) for e in ended]
    listed = [o for per in outages_by_cluster(store).values() for o in per]
    return [o for o in listed if state is None or o["state"] == state]


def _urgency(state: IncidentState) -> tuple[bool, int, int, str, str]:
    order = (State.FIRING, State.CLEARING, State.STANDING, State.PENDING)
    rank = order.index(state.state)
    return (state.simulated, rank, state.began_unix_ms or 0, state.cluster, state.rule)


def open_outage(state: IncidentState) -> dict[str, Any] | None:
    """Return an outage that holds, as the API shows it; None where there is none."""
    shown = outage(state)
    if shown is None:
        return None
    return shown | {
        "id": _identity(state.rule, state.cluster, state.episode),
        "cluster": state.cluster,
        "simulated": state.simulated,
        "severity": state.severity,
        "lo": state.lo,
        "hi": state.hi,
        "coverage": state.coverage,
        "fired": _moment(state.fired_unix_ms),
        "standing_since": _moment(state.standing_since_unix_ms),
        "judged": _moment(state.last_eval_unix_ms or None),
        "paged_value": state.paged_value,
        "said_by": state.said_by or None,
        "subjects": state.subjects,
        "causes": [asdict(cause) for cause in state.causes],
    }


def _resolved(episode: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rule": episode["rule"],
        "state": State.RESOLVED.value,
        "since": rfc3339(episode["began_unix_ms"]),
        "value": episode["worst"],
        "threshold": episode["line"],
        "lost_points": episode["lost_points"],
        "acked_by": None,
        "id": _identity(episode["rule"], episode["cluster"], episode["episode"]),
        "cluster": episode["cluster"],
        "simulated": episode["simulated"],
        "severity": episode["severity"],
        "fired": rfc3339(episode["fired_unix_ms"]),
        "resolved": rfc3339(episode["resolved_unix_ms"]),
        "causes": episode["causes"],
    }


def _identity(rule: str, cluster: str, episode: str) -> str:
    return f"{rule}/{cluster}/{episode}"


def _moment(unix_ms: int | None) -> str | None:
    return None if unix_ms is None else rfc3339(unix_ms)

"""Which outage waits because another one says already what it would. Pure.

One cause pages once: a dead rack is an outage of allocation, and neither 9 silent nodes nor 72 failed
cards beside it. Who says what for whom stands with the rules (``rules.registry``, ``said_by``). What
waits is not gone: it pages when the other outage is over and it still holds.

An outage that is about to fire (PENDING) is waited for as well. One that stands for a day says what began
before it stood, and nothing of what began since.
"""

from __future__ import annotations

from collections.abc import Mapping

from flopwatch_collector.incident_state import TOLD, IncidentState, State
from flopwatch_collector.rules.registry import Rule, SaidBy


def said_by(rule: Rule, states: Mapping[str, IncidentState]) -> str:
    """The rule that says already what an outage would; empty where none does.

    Args:
        states: of one cluster, by rule.
    """
    own = states.get(rule.name)
    for link in rule.said_by:
        other = states.get(link.rule)
        if other is not None and _says(link, other, own):
            return link.rule
    return ""


def _says(link: SaidBy, other: IncidentState, own: IncidentState | None) -> bool:
    if other.state not in (State.PENDING, *TOLD):
        return False
    if link.causes and not link.causes & {other.leading_cause, *other.paged_causes}:
        return False
    if other.state is not State.STANDING or other.standing_since_unix_ms is None:
        return True
    began = None if own is None else own.began_unix_ms
    return began is not None and began < other.standing_since_unix_ms

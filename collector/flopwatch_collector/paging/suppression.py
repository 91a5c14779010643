"""Why a page waits: silences, maintenance of a whole cluster, and a blind cluster. Pure.

The state of an incident runs on regardless; only sending waits, with its reason stored. When the reason
ends, an outage that still fires is sent; one that came and went meanwhile never is. A ``resolve`` and an
``acknowledge`` do not wait: they are of what a receiver was told before.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from flopwatch_collector.control.operations import Maintenance, Silence
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.incident_state import IncidentState, State

INHIBITED_BY_BLIND: Final = ("allocation",)
ACTIVE: Final = (State.FIRING, State.STANDING)


def held_because(
    row: OutboxRow,
    silences: Sequence[Silence],
    windows: Sequence[Maintenance],
    incidents: Sequence[IncidentState],
) -> str | None:
    """The reason to hold a row now, None when there is none.

    Args:
        silences, windows: those that hold now.
        incidents: all of them: a blind cluster inhibits its allocation rule until it is judged.
    """
    if row.action in ("resolve", "acknowledge"):
        return None
    subject = {"cluster": row.cluster, "rule": row.rule}
    for silence in silences:
        if all(fnmatchcase(subject[key], text) for key, text in silence.matchers.items()):
            return f"silence {silence.id}: {silence.why}"
    for window in windows:
        if fnmatchcase(row.cluster, window.cluster) and window.nodes == "*":
            return f"maintenance {window.id}: {window.why}"
    if row.rule in INHIBITED_BY_BLIND:
        for incident in incidents:
            if (incident.rule, incident.cluster) == ("blind", row.cluster):
                return "blind" if incident.state in ACTIVE else None
    return None

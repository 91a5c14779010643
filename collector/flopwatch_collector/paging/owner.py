"""Who can act on an outage: hardware, scheduling, facility, workload or demand. Pure.

The leading loss decides, by the same table as the waterfall's owners. Rules that count know theirs.
"""

from __future__ import annotations

from typing import Final

from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.ledger.waterfall import OWNERS
from flopwatch_collector.news import NO_DEMAND
from flopwatch_collector.rules.registry import rule_named

DEMAND: Final = "demand"
NOBODY: Final = "unattributed"


def owner_of(state: IncidentState) -> str:
    """Return who can act; ``unattributed`` where nothing tells."""
    if state.leading_cause == NO_DEMAND:
        return DEMAND
    known = OWNERS.get(state.leading_cause.lower())
    return known or rule_named(state.rule).owner or NOBODY

"""Who can act on an outage: hardware, scheduling, facility, workload or demand. Pure.

Whoever can act on the leading cause. Where none was found, the leading loss decides, by the same table as the
waterfall's owners; rules that count know theirs.
"""

from __future__ import annotations

from typing import Final

from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.ledger.waterfall import OWNERS
from flopwatch_collector.news import NO_DEMAND
from flopwatch_collector.paging.found import Explanation
from flopwatch_collector.rules.registry import rule_named

DEMAND: Final = "demand"
NOBODY: Final = "unattributed"


def owner_of(state: IncidentState, found: Explanation | None = None) -> str:
    """Return who can act; ``unattributed`` where nothing tells."""
    if state.leading_cause == NO_DEMAND:
        return DEMAND
    if found is not None and found.owner not in ("", NOBODY):
        return found.owner
    known = OWNERS.get(state.leading_cause.lower())
    return known or rule_named(state.rule).owner or NOBODY

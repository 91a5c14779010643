"""Closures: an outage that a person resolved by hand while it still held. Pure.

It is respected for four hours: nothing of this rule and cluster pages, not even a new episode, unless it is
worse than what the person saw. What still holds after that pages again, once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flopwatch_collector.incident_state import IncidentState, figure_of
from flopwatch_collector.news import CLOSED, CLOSED_MS, NO_DEMAND, Tick, deep_held, fell

UNTOLD: Final = frozenset({CLOSED, NO_DEMAND})
"""What stands for a cause in an episode of which nobody was paged."""


def closed(state: IncidentState, by: str, now_unix_ms: int) -> IncidentState:
    """The state after somebody resolved it by hand; what is worse than now or than was paged pages again."""
    known = [f for f in (state.paged_value, figure_of(state)) if f is not None]
    return replace(
        state, closed_by=by, closed_unix_ms=now_unix_ms, closed_value=min(known, default=None)
    )


def reopened(state: IncidentState) -> IncidentState:
    """The state as if nobody had resolved it by hand."""
    return replace(state, closed_by=None, closed_unix_ms=None, closed_value=None)


def respected(state: IncidentState, tick: Tick) -> bool:
    """Whether an outage that would fire now was resolved by hand, and is no worse than then."""
    if state.closed_unix_ms is None or tick.unix_ms - state.closed_unix_ms >= CLOSED_MS:
        return False
    if deep_held(state, tick):
        return False
    figure, then = tick.verdict.figure, state.closed_value
    return figure is None or then is None or not fell(figure, then, tick.settings)


def unpaged(state: IncidentState, tick: Tick) -> IncidentState:
    """The state of an outage that fires and is told to nobody; news counts from what the person saw."""
    return replace(
        state,
        paged_value=state.closed_value,
        paged_causes=(CLOSED,),
        quiet_since_unix_ms=tick.unix_ms,
    )


def paged(state: IncidentState) -> bool:
    """Whether anybody was paged in this episode."""
    untold = bool(state.paged_causes) and set(state.paged_causes) <= UNTOLD
    return state.escalate_no > 0 or not untold

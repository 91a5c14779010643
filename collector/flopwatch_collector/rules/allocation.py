"""Allocation: cards in use of cards in service. Default line 96 %.

Formula: ``lo = ALLOCATED / in service``, ``hi = (ALLOCATED + UNSEEN) / in service``. BREACH when ``hi`` is
below the line, OK when ``lo`` is not, else UNKNOWN: the unseen cards decide, and nobody has seen them.
An outage clears when ``lo`` reaches the line + hysteresis (97 %).

Cards of nodes that said goodbye and are not yet due back count as unseen, however long they are silent.

Deep failure: 20 points or more below the line. Cards missing by silence alone never count towards it,
nor does FREE without waiting demand: that is news for whoever brings demand, not for the on-call. A breach
that such cards explain as a whole is told as a notice, and pages when that changes.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import RATIO_TOLERANCE, UNKNOWN, Condition, Verdict, below


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """The verdict on one observation of allocation; UNKNOWN where its bounds are not known."""
    if observation.lo is None or observation.hi is None or observation.in_service_cards <= 0:
        return UNKNOWN
    lo = observation.lo
    hi = min(1.0, observation.hi + _departed_ratio(observation))
    if below(hi, settings.line):
        condition = Condition.BREACH
    elif not below(lo, settings.line):
        condition = Condition.OK
    else:
        condition = Condition.UNKNOWN
    clear_line = settings.line + settings.hysteresis_points / 100
    clears: bool | None = None
    if not below(lo, clear_line):
        clears = True
    elif below(hi, clear_line):
        clears = False
    deep, no_demand = _deep(observation, settings, hi)
    wanted = hi + observation.free_without_demand_points / 100
    return Verdict(
        condition=condition,
        figure=hi,
        clears=clears,
        deep=deep,
        no_demand=no_demand,
        unwanted=condition is Condition.BREACH and not below(wanted, settings.line),
    )


def _departed_ratio(observation: Observation) -> float:
    """Cards that count as MISSING but belong to nodes not yet due back, of the cards in service."""
    missing = observation.lost_points.get("MISSING", 0.0) / 100
    witnessed = observation.witnessed_missing_points / 100
    gone = observation.goodbye_cards / observation.in_service_cards
    return max(0.0, min(gone, missing - witnessed))


def _deep(observation: Observation, settings: RuleSettings, hi: float) -> tuple[bool, bool]:
    if settings.deep_points is None:
        return False, False
    missing = observation.lost_points.get("MISSING", 0.0)
    silent_points = max(0.0, missing - observation.witnessed_missing_points)
    # Departed cards are part of the silent ones and already stand in ``hi``.
    silent_points -= _departed_ratio(observation) * 100
    deficit_points = (settings.line - hi) * 100 - silent_points
    slack = 100 * RATIO_TOLERANCE
    if deficit_points < settings.deep_points - slack:
        return False, False
    explained = (
        deficit_points - observation.free_without_demand_points < settings.deep_points - slack
    )
    return not explained, explained

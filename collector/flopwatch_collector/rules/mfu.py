"""Model FLOPs utilisation of allocated training time. Default line 60 % of the datasheet dense peak.

Formula: ``hi = (model FLOPs declared + Σ u × capacity undeclared) / capacity``, ``lo`` the same with 0.72 u,
over the trailing two minutes; what is undeclared is wider by the 95 % interval of its counters. BREACH when
``hi`` is below the line, OK when ``lo`` or ``value`` is not, and UNDECIDED when the bounds straddle it: that
is shown, and neither pages nor counts as missing data.
An outage clears when ``hi`` reaches the line + hysteresis (62 %).

UNKNOWN means missing data: no figure, or less than 90 % of the card-time measured when the figure looks
well. The part that nobody measured may be the part that is slow, so it can end no outage.

Deep failure is off unless ``deep_points`` is set: most fleets run 20 points below the line for months,
and that is an outage that stands, not a sudden fall.
"""

from __future__ import annotations

from typing import Final

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import RATIO_TOLERANCE, UNKNOWN, Condition, Verdict, below

COVERAGE_RATIO_MIN: Final = 0.90


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """The verdict on one observation of MFU; UNKNOWN where data is missing."""
    hi = observation.hi
    if hi is None:
        return UNKNOWN
    breach = below(hi, settings.line)
    measured = observation.coverage is None or not below(observation.coverage, COVERAGE_RATIO_MIN)
    if not breach and not measured:
        return Verdict(condition=Condition.UNKNOWN, figure=hi)
    deep = settings.deep_points is not None and (
        (settings.line - hi) * 100 >= settings.deep_points - 100 * RATIO_TOLERANCE
    )
    return Verdict(
        condition=Condition.BREACH if breach else _not_breached(observation, settings.line),
        figure=hi,
        clears=not below(hi, settings.line + settings.hysteresis_points / 100),
        deep=deep,
    )


def _not_breached(observation: Observation, line: float) -> Condition:
    proofs = (observation.lo, observation.value)
    proven = any(proof is not None and not below(proof, line) for proof in proofs)
    return Condition.OK if proven else Condition.UNDECIDED

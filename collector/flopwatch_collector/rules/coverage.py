"""Coverage of MFU: measured card-time of allocated card-time. Default line 90 %, held 10 minutes.

Formula: capacity with counters or a declaration / allocated capacity. Below the line the MFU figure says
little, whatever it says. Without allocated card-time there is nothing to cover and nothing to judge.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import Condition, Verdict, below


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """BREACH below the line, else OK; a cluster with nothing allocated is OK."""
    coverage = observation.coverage
    if coverage is None:
        return Verdict(condition=Condition.OK, clears=True)
    breach = below(coverage, settings.line)
    return Verdict(
        condition=Condition.BREACH if breach else Condition.OK,
        figure=coverage,
        clears=not below(coverage, settings.line + settings.hysteresis_points / 100),
    )

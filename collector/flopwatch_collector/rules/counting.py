"""What rules that count have in common: so many nodes, cards or jobs are too many.

BREACH from ``count_min`` subjects on, OK below, UNKNOWN where nobody counted. The judged figure is the share
that is well, so that less is worse as with any other rule.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import UNKNOWN, Condition, Verdict


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """The verdict on a count."""
    count, whole = observation.subjects, observation.subjects_in_all
    if count is None or not whole:
        return UNKNOWN
    breach = count >= settings.count_min
    return Verdict(
        condition=Condition.BREACH if breach else Condition.OK,
        figure=1.0 - count / whole,
        clears=not breach,
        subjects=count,
    )

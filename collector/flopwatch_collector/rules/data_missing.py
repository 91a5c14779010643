"""Data missing: allocation cannot be judged, because too many cards are unseen. Held 5 minutes.

Breaches while the allocation rule says UNKNOWN of a cluster that has cards in service. Cards of nodes that
said goodbye are expected to be silent: where they alone open the question, nothing is missing.
The figure is the allocation that is proven: it stands below the line, and what is unseen decides.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import UNKNOWN, Condition, Verdict, below


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """BREACH while allocation is unknown for want of data.

    Args:
        observation: of the allocation rule.
        settings: ``line`` is the allocation rule's own line.
    """
    if observation.in_service_cards <= 0:
        return UNKNOWN
    missing = _missing(observation, settings.line)
    return Verdict(
        condition=Condition.BREACH if missing else Condition.OK,
        figure=observation.lo,
        clears=not missing,
    )


def _missing(observation: Observation, line: float) -> bool:
    if observation.lo is None or observation.hi is None:
        return True
    if below(observation.hi, line) or not below(observation.lo, line):
        return False
    departed = min(observation.goodbye_cards, observation.unseen_cards)
    return below(observation.lo + departed / observation.in_service_cards, line)

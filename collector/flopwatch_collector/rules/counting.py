"""What rules that count have in common: so many nodes, cards or jobs are too many.

BREACH from ``count_min`` subjects on, where they are also 1 − ``line`` of all or more (a line of 1: any
share); OK below. Subjects that were counted when last seen and are unseen now decide nothing: UNKNOWN
where they would, and where nobody counted. Where there is nothing to count all is well. The judged figure
is the share that is well, so that less is worse as with any other rule.
"""

from __future__ import annotations

from collections.abc import Mapping

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import RATIO_TOLERANCE, UNKNOWN, Condition, Verdict


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """The verdict on a count."""
    return judge_count(observation.subjects, observation, settings)


def judge_count(count: int | None, observation: Observation, settings: RuleSettings) -> Verdict:
    """The verdict on so many subjects."""
    whole = observation.subjects_in_all
    if count is None or whole is None:
        return UNKNOWN
    figure = 1.0 - count / whole if whole else 1.0
    if _too_many(count, whole, settings):
        return Verdict(condition=Condition.BREACH, figure=figure, clears=False, subjects=count)
    if _too_many(count + observation.subjects_unseen, whole, settings):
        return Verdict(condition=Condition.UNKNOWN, figure=figure, subjects=count)
    clears = not _too_many(count, whole, settings, settings.hysteresis_points)
    return Verdict(condition=Condition.OK, figure=figure, clears=clears, subjects=count)


def lasting(since_unix_ms: Mapping[str, int], now_unix_ms: int, window_s: float) -> int:
    """How many have been so for a time."""
    return sum(now_unix_ms - since >= 1000 * window_s for since in since_unix_ms.values())


def counted(observation: Observation, thing: str) -> str:
    """``3 nodes of 64``: what was counted, for the line of a page."""
    count, whole = observation.subjects or 0, observation.subjects_in_all or 0
    return f"{count:,} {thing}{'' if count == 1 else 's'} of {whole:,}"


def _too_many(count: int, whole: int, settings: RuleSettings, points: float = 0.0) -> bool:
    share = count / whole if whole else 0.0
    return (
        count >= settings.count_min and share >= 1 - settings.line - points / 100 - RATIO_TOLERANCE
    )

"""News: what makes an outage page again. Pure.

An outage that fires pages again when it is worse than the last page said (5 points for allocation, 25 %
of the figure for MFU, twice as many nodes, cards or jobs for rules that count), when another cause has come
to lead, or when its severity rose. One that a person resolved by hand pages again when it still holds
after four hours (`closure`). One that stands pages again when it is well below its own week. Anything
else is no news.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import RATIO_TOLERANCE, Verdict

STANDING_RELATIVE: Final = 0.20
WINDOW_TICKS: Final = 12
"""How many ticks a figure of the trailing two minutes takes to be of after a change alone."""
NO_DEMAND: Final = "no_demand"
CLOSED: Final = "closed"
CLOSED_MS: Final = 4 * 60 * 60_000
"""How long it is respected that a person resolved an outage by hand."""
# What nobody did wrong and what nobody saw lead no outage.
NOT_CAUSES: Final = frozenset({"UNSEEN", "unseen", "hardware_flops", "model_flops"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One evaluation. Attributes: baseline: 7-day median of the judged figure, None where not known;
    before: the judged figure of the tick before; may_fire: False while nothing may page (the collector
    settles, or another page says it already)."""

    verdict: Verdict
    unix_ms: int
    settings: RuleSettings
    baseline: float | None = None
    before: float | None = None
    may_fire: bool = True


def leading_cause(lost_points: Mapping[str, float]) -> str:
    """The bucket or step with the largest loss; empty when nothing is lost."""
    losses = {
        name: points
        for name, points in lost_points.items()
        if name not in NOT_CAUSES and points > 0
    }
    return max(sorted(losses), key=losses.__getitem__, default="")


def cause_at(lost_points: Mapping[str, float], verdict: Verdict) -> str:
    """The leading cause of what was judged: that nobody wants the cards, where that is all of it."""
    return NO_DEMAND if verdict.unwanted else leading_cause(lost_points)


def held(since_unix_ms: int | None, for_ms: int, tick: Tick) -> bool:
    """Whether something that began at a moment has held for a time; None: it has not begun."""
    return since_unix_ms is not None and tick.unix_ms - since_unix_ms >= for_ms


def deep_held(state: IncidentState, tick: Tick) -> bool:
    """Whether the deficit has been deep for as long as makes it critical."""
    return held(state.deep_since_unix_ms, int(tick.settings.deep_s * 1000), tick)


def news(state: IncidentState, tick: Tick) -> str:
    """Why a firing outage pages again; empty when it does not."""
    if tick.verdict.unwanted:
        return ""
    if state.severity != "critical" and deep_held(state, tick):
        return "severity"
    figure, paged = tick.verdict.figure, state.paged_value
    if figure is not None and paged is not None and fell(figure, paged, tick.settings):
        return "" if falling(tick, paged) else "value"
    if state.closed_unix_ms is not None:
        return "reopened" if held(state.closed_unix_ms, CLOSED_MS, tick) else ""
    cause_s = tick.settings.cause_s
    if cause_s is not None and held(state.cause_since_unix_ms, int(cause_s * 1000), tick):
        return "cause"
    return ""


def fell(figure: float, paged: float, settings: RuleSettings) -> bool:
    """Whether a figure is so much below another that it is news."""
    if settings.escalate_points is not None:
        return paged - figure >= settings.escalate_points / 100 - RATIO_TOLERANCE
    if settings.escalate_times is not None:
        return 1 - figure >= settings.escalate_times * (1 - paged) - RATIO_TOLERANCE
    if settings.escalate_relative is not None:
        return figure <= paged * (1 - settings.escalate_relative) + RATIO_TOLERANCE
    return False


def falling(tick: Tick, paged: float) -> bool:
    """Whether a figure of a trailing window is on its way down still: what it falls to is paged, once.

    A collapse comes into the window bit by bit; each bit of it would be news. A slide that is slower than
    the least collapse that is news is told as it goes.
    """
    figure, before, share = tick.verdict.figure, tick.before, tick.settings.escalate_relative
    if figure is None or before is None or share is None:
        return False
    return before - figure >= paged * share / WINDOW_TICKS - RATIO_TOLERANCE


def worse_than_usual(state: IncidentState, tick: Tick) -> bool:
    """Whether a standing outage stands well below its own week; False where that is not known.

    What was paged already is no news either: in the first days of an outage the week's median is still that
    of better times, so the fall counts from the lower of median and last paged figure.
    """
    figure, usual = tick.verdict.figure, tick.baseline
    if figure is None or usual is None or tick.verdict.unwanted:
        return False
    if state.paged_value is not None:
        usual = min(usual, state.paged_value)
    if falling(tick, usual):
        return False
    if tick.settings.escalate_points is not None or tick.settings.escalate_times is not None:
        return fell(figure, usual, tick.settings)
    return figure <= usual * (1 - STANDING_RELATIVE) + RATIO_TOLERANCE

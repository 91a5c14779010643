"""Replay: what rules would have done with the observations that are kept. The core is pure.

``history`` reads observations of the control store, ``scenario`` those of a file; both give Moments, oldest
first. ``Player`` judges them with the same rules and moves the same machine as the watch, and what comes out
are Outages, which ``outcome`` counts and compares.

The machine works in steps of ten seconds, and so do kept observations of the last eight days. Older ones
are full minutes: between two of them the first one is taken to have held, so an outage is told up to a minute
late, and what came and went within a minute is not told at all. Silence of more than two steps is taken for a
collector that was down: as after a start, holds wait and nothing fires for ``rules.settle_s``.

What a replay cannot know: observations of a cluster below ``onboarded_ratio_min`` were never kept, nor which
ticks nobody could judge; silences and acknowledgements change who hears of an outage, not the outage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flopwatch_collector.rules import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was observed of a cluster at one tick.

    Attributes:
        step_ms: how far ticks lie apart there: ten seconds, or a minute.
        observed: by the name that rules read; what is not there was not observed.
        restarted: the collector had just started: before this tick nobody looked for a while.
    """

    tick_unix_ms: int
    step_ms: int
    observed: Mapping[str, Observation]
    restarted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Something that is told. Attributes: act: trigger, escalate or notice; reason: why, of the last two;
    figure: what was judged then."""

    unix_ms: int
    act: str
    reason: str
    figure: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """An episode that was told.

    Attributes:
        episode: the UTC minute of its first breach.
        fired_unix_ms: when it fired; None: a notice said that nobody waits for the cards, and no more.
        ended_unix_ms: when it resolved; None: it still holds.
        standing_unix_ms: when it was first said to stand; None: never.
        worst: the lowest judged figure.
        told: triggers, escalations and notices, oldest first; resolves are not among them.
    """

    rule: str
    cluster: str
    episode: str
    began_unix_ms: int
    fired_unix_ms: int | None = None
    ended_unix_ms: int | None = None
    standing_unix_ms: int | None = None
    severity: str
    line: float
    worst: float | None
    told: tuple[Page, ...] = ()

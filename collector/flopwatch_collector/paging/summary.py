"""The summary of a page: one line of at most 90 characters that stands alone on a lock screen. Pure.

    atlas alloc 91.2% (<96.0) 23m: rack r17 dark, 72 cards -3.6pt; was 97.4 02:51

Cluster, value, line, age and cause are always in it. What does not fit is given up in a fixed order: what
else is wrong, what it was before, the end of the cluster's name, counts and names of the cause, points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flopwatch_collector.incident_state import Act, Action, IncidentState, figure_of
from flopwatch_collector.paging import text
from flopwatch_collector.paging.background import Background
from flopwatch_collector.paging.found import Explanation, said
from flopwatch_collector.paging.kinds import KINDS
from flopwatch_collector.rules.registry import Rule, rule_named

CHARACTERS_MAX: Final = 90
CLUSTER_CHARACTERS: Final = (64, 24, 14, 8)
VALUE_CHARACTERS_MAX: Final = 28
ACTION_WORDS: Final = {
    (Act.ESCALATE, ""): "WORSE ",
    (Act.NOTICE, "standing"): "STANDING ",
    (Act.NOTICE, "flapping"): "FLAPPING ",
    (Act.NOTICE, "no_demand"): "NO DEMAND ",
    (Act.RESOLVE, ""): "RESOLVED ",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a summary is made of. Attributes: figure: short name, value, line and age."""

    head: str
    cluster: str
    figure: str
    causes: Sequence[str]
    was: str
    also: str


def summary(
    state: IncidentState,
    action: Action,
    now_unix_ms: int,
    found: Explanation,
    background: Background,
    others: Sequence[str] = (),
) -> str:
    """Return the summary of a page.

    Args:
        found: the leading cause.
        others: rules that found something else wrong with the cluster.
    """
    word = ACTION_WORDS.get((action.act, action.reason)) or ACTION_WORDS.get((action.act, ""), "")
    rule = rule_named(state.rule)
    for_ms = 0 if state.began_unix_ms is None else now_unix_ms - state.began_unix_ms
    resolved = action.act is Act.RESOLVE
    parts = _Parts(
        head=f"{'[sim] ' if state.simulated else ''}{word}",
        cluster=text.clean(state.cluster) or "?",
        figure=f"{rule.short} {figure(state, background)} {text.lasted(for_ms)}",
        causes=_ended(state) if resolved else said(found),
        was="" if resolved else _was(rule, background, now_unix_ms),
        also=""
        if resolved or not others
        else f"; also {', '.join(rule_named(o).short for o in others)}",
    )
    return next(line for line in _lines(parts) if len(line) <= CHARACTERS_MAX)


def _lines(parts: _Parts) -> Iterator[str]:
    """Yield the line in falling lengths; the last one fits."""
    whole, shorter, *rest = CLUSTER_CHARACTERS
    first = parts.causes[0]
    yield _line(parts, whole, first, parts.was + parts.also)
    yield _line(parts, whole, first, parts.was)
    yield _line(parts, whole, first)
    yield _line(parts, shorter, first)
    for characters_max in (shorter, *rest):
        for cause in parts.causes:
            yield _line(parts, characters_max, cause)
    yield text.cut(_line(parts, CLUSTER_CHARACTERS[-1], parts.causes[-1]), CHARACTERS_MAX)


def _line(parts: _Parts, cluster_characters_max: int, cause: str, tail: str = "") -> str:
    cluster = text.cut(parts.cluster, cluster_characters_max)
    return f"{parts.head}{cluster} {parts.figure}: {cause}{tail}"


def figure(state: IncidentState, background: Background) -> str:
    """Return value and line: ``91.2% (<96.0)``, ``12 cards of 512 (≥1)``."""
    rule = rule_named(state.rule)
    settings = background.settings or rule.defaults
    if state.subjects is not None:
        told = f"{state.subjects:,}"
        if rule.says is not None and background.now is not None:
            told = text.cut(text.clean(rule.says(background.now)), VALUE_CHARACTERS_MAX)
        return f"{told} (≥{settings.count_min:,})"
    # The judged figure is the upper bound, and the one that stands below the line while it fires.
    judged = figure_of(state)
    if judged is None:
        line = "" if state.line is None else f" (<{text.percent(state.line)})"
        return f"unknown{line}"
    shown = text.percent(judged, state.line)
    if state.value is None and state.lo is not None and state.lo != state.hi:
        shown = f"{text.percent(state.lo, state.line)}-{shown}"
    if state.line is None:
        return f"{shown}%"
    against = "<" if judged < state.line else "≥"
    return f"{shown}% ({against}{text.percent(state.line)})"


def _was(rule: Rule, background: Background, now_unix_ms: int) -> str:
    before, judged = background.before, background.figure_before(rule)
    if before is None or judged is None:
        return ""
    shown = text.percent(judged) if before.subjects is None else f"{before.subjects:,}"
    return f"; was {shown} {text.clock(before.tick_unix_ms, now_unix_ms)}"


def _ended(state: IncidentState) -> Sequence[str]:
    """What it had been, of an outage that is over."""
    causes = [f"was {cause_words(cause)}" for cause in state.paged_causes if cause]
    paged = None if state.subjects is not None else state.paged_value
    told = [] if paged is None else [f"paged at {text.percent(paged)}"]
    whole = ", ".join([*causes[-1:], *told]) or "over"
    return (whole, (causes or told or ["over"])[-1])


_CAUSE_KINDS: Final = {
    "MISSING": "dead_nodes",
    "FAILED": "failed_cards",
    "MAINT": "drained",
    "HELD": "held",
    "STRANDED": "stranded",
    "FREE": "free",
    "no_demand": "demand",
    "sm_idle": "data_stall",
    "clock": "low_clock",
    "tensor_gap": "slow_math",
    "no_process": "no_process",
    "unattributed": "uncounted",
}


def cause_words(cause: str) -> str:
    """Return a bucket or step in words."""
    kind = _CAUSE_KINDS.get(cause)
    return text.name(cause, 20) if kind is None else KINDS[kind].bare

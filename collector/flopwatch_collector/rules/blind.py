"""Blind: many nodes fell silent together. That is a network or a collector, not lost capacity.

Threshold: at least max(10 nodes, 2 % of the nodes) whose last words lie within 2 minutes of each other,
with no witness against them (a roster that speaks for a node, a goodbye). A node counts from a minute of
silence until 15 minutes; then the silence itself is the verdict: its cards are MISSING, allocation says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import Condition, Verdict

SILENT_MS_MIN: Final = 60_000
JUDGED_MS: Final = 15 * 60_000


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """BREACH while a mass silence is unjudged.

    Args:
        observation: of the allocation rule; ``silent_nodes`` holds nodes that nobody speaks for.
        settings: the thresholds of mass silence.
    """
    last_words = [
        last_unix_ms
        for last_unix_ms in observation.silent_nodes.values()
        if SILENT_MS_MIN <= observation.tick_unix_ms - last_unix_ms < JUDGED_MS
    ]
    together = most_within(last_words, int(settings.window_s * 1000))
    breach = together >= nodes_needed(observation.in_service_nodes, settings)
    nodes = observation.in_service_nodes
    return Verdict(
        condition=Condition.BREACH if breach else Condition.OK,
        figure=1.0 - len(last_words) / nodes if nodes else None,
        clears=not breach,
    )


def nodes_needed(nodes: int | None, settings: RuleSettings) -> float:
    """Nodes that make a silence a mass silence."""
    return max(settings.nodes_min, settings.nodes_ratio_min * (nodes or 0))


def most_within(moments_ms: Iterable[int], window_ms: int) -> int:
    """The largest number of moments that lie within one window."""
    ordered = sorted(moments_ms)
    most = first = 0
    for last, moment_ms in enumerate(ordered):
        while moment_ms - ordered[first] > window_ms:
            first += 1
        most = max(most, last - first + 1)
    return most

"""Slow card: cards slower than their own fleet, or than their own past, by probes.

Default: one card. Slow: a robust z below −3.5 and 3 % or more below the median of five or more cards of
one SKU that were probed alike. Falling: 3 % or more below the median of three or more earlier results. Of
each card the newest result of the last 30 days counts (``ceilings``). Read every 5 minutes; without
probes there is nothing to judge.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "card")

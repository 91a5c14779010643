"""Probe failed: cards that computed a wrong result, or failed their newest probe.

Default: one card. A wrong result (silent data corruption) counts for a week, whatever later screens say:
it comes and goes. A probe that failed counts until one of the same kind ends well; one that was called
off says nothing. Read every 5 minutes; without probes in a week there is nothing to judge.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "card")

"""Rogue use: cards with a process on them that no job holds.

Default: one card, held 10 minutes. Rows carry the mark where the agent saw it, and account adds it where
a roster says that the card is nobody's. Without a roster nobody can tell, and nothing is rogue. It is
news, not an outage: severity ``info``.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "card")

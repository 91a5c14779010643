"""Card failed: cards on nodes that speak which their driver or their scheduler calls failed.

Default: one card, held 5 minutes. Cards of silent nodes are not counted here: the node is what is wrong
(``node_silent``). A card that was failed when it was last seen and is unseen now leaves the question
open, so silence ends no outage.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "card")

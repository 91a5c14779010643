"""Agent unhealthy: agents that report, and report badly.

Default: three agents, held 15 minutes. An agent is unwell whose driver does not answer or does not match
its library, whose spool dropped rows since the reading before, whose spool holds more than an hour's
batches, or whose clock is 30 s or more off. A silent one is ``node_silent``'s, a lost card
``card_failed``'s.

Read every minute from what agents told of themselves last; the share that is well is of the agents that
report.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "agent")

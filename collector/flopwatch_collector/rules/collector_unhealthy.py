"""Collector unhealthy: what flopwatch itself lacks.

Default: one fault, held 10 minutes. Faults are commits to the store that fail, rollups that are late or
fail, pages that no receiver takes, rules that could not be evaluated, and agents that are refused; each
is named. It is judged of the cluster ``flopwatch``, which stands for the collector and has no cards. What
it cannot say itself, that it is gone, the dead-man heartbeat says.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    count = observation.subjects or 0
    return f"{count} fault{'' if count == 1 else 's'}"

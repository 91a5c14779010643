"""Certificate ending: certificates that should have been renewed and were not.

Default: one, held an hour. A certificate is renewed at about two thirds of its life, by itself; one with
a quarter or less left was not. Of a cluster these are its nodes', as they showed them last; of the
cluster ``flopwatch`` the listener's own, and the authority that signs (a month or less left).
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "certificate")

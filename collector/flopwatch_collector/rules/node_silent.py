"""Node silent: nodes in service from which nothing comes any more.

Default: one node, for 10 minutes (``window_s``). A node speaks with rows, and with its agent's picture of
itself where it has no rows. Silence counts from the later of its last word and the moment the collector
was ready. Not counted are nodes that took leave and are not yet overdue, and nodes that a roster has in
maintenance, or had when it was last heard: somebody knows.

It is one outage for all nodes, and waits while another page says the same: a dead rack pages once. The
share that is well is of the nodes in service.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted, judge_count, lasting
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import Verdict


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """The verdict on ``silent_nodes``; UNKNOWN where nobody counted the nodes."""
    count = None
    if observation.subjects is not None:
        count = lasting(observation.silent_nodes, observation.tick_unix_ms, settings.window_s)
    return judge_count(count, observation, settings)


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "node")

"""Job regression: running jobs whose MFU fell 20 % or more below their own baseline.

Default: one job. The baseline is the median of a job's own whole hours of the last seven days, of which
six or more are needed; a job is named by its scheduler, so what is started anew under another name begins
anew. Compared is the mean of its newest two whole hours: MFU where the job declares its FLOPs, else
tensor activity, each with its like, never one with the other. Time outside the steady phase is left out,
and so are counters of jobs that are not labelled as training: how busy a server is says nothing of the
server. Read every 5 minutes.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "job")

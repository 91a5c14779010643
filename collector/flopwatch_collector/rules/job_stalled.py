"""Job stalled: running jobs on none of whose cards any SM is active.

Default: one job, for 10 minutes (``window_s``). Counted are jobs that run, of the classes that the MFU
rule counts, in their steady phase; those that nobody labelled from eight cards on, as a notebook may well
wait for its owner. A card is idle below 1 % SM activity; one whose counters are not known says nothing,
and a job none of whose cards says anything leaves the question open. A job that uses half of its cards is
wasteful, not stalled. One that spins in a collective call keeps its SMs active, and is not found here:
its MFU falls (``job_regression``).

The share that is well is of the jobs that run.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import counted, judge_count, lasting
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import Verdict


def judge(observation: Observation, settings: RuleSettings) -> Verdict:
    """The verdict on jobs by ``since_unix_ms``, when they came to a stand; UNKNOWN where nobody counted."""
    count = None
    if observation.subjects is not None:
        count = lasting(observation.since_unix_ms, observation.tick_unix_ms, settings.window_s)
    return judge_count(count, observation, settings)


def says(observation: Observation) -> str:
    """The figure of a page."""
    return counted(observation, "job")

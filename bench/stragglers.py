"""How often is the culprit of a generated job named? By kind, severity, size and readings.

.venv/bin/python bench/stragglers.py [--jobs 40]

Every job is generated (`client/flopwatch/simulate/ranks.py`): nothing here was measured on cards. The seeds
are none that the thresholds were looked at with.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from measure import machine, write

from flopwatch.simulate.ranks import KINDS, Job, generate
from flopwatch_collector.jobs.crowd import Counters
from flopwatch_collector.jobs.stragglers import Stragglers, find

SEVERITIES: Final = (0.05, 0.1, 0.2, 0.35, 0.5)
FIRST_SEED: Final = 1_000_000
_REMARKS: Final = (
    "SIMULATED: generated jobs of 64 to 512 cards (8 to 64 nodes), 60 readings at 1 Hz, steps of 0.7–12 s.",
    "Severity is the culprit's extra computing time as a share of it; of a slow link, always at half "
    "rate, the exposed exchange as a share of the step (35 % at the most).",
    "Named first: the first of the named is the culprit. Kind right: and so is what is said to be wrong.",
    "Steps near 1 s hide slow links: a reading is the mean of a whole step then. Capture at 10 Hz instead.",
    "An exchange in which every link is paced by the slowest shows no culprit in its rates: peers here are "
    "slowed by half of it at the most.",
)


@dataclass(slots=True)
class Tally:
    """Of some jobs: how many there were, were named first, and with the right kind."""

    jobs: int = 0
    named: int = 0
    right: int = 0

    def add(self, job: Job, found: Stragglers) -> None:
        """Count a job."""
        self.jobs += 1
        first = found.culprits[0] if found.culprits else None
        if job.fault is None:
            self.named += first is None
        elif first is not None and job.fault.is_at(first.node, first.slot):
            self.named += 1
            self.right += first.kind == job.fault.kind

    def shown(self) -> str:
        """Return both as a text."""
        return f"{100 * self.named / self.jobs:.0f} % ({100 * self.right / self.jobs:.0f} %)"


def look(job: Job) -> Stragglers:
    """Return what is found in a job."""
    taken = job.taken_unix_ms / 1000
    return find(Counters(nodes=job.nodes, slots=job.slots, taken_s=taken, fields=job.fields))


def tally(jobs: Iterable[Job]) -> tuple[Tally, float]:
    """Return the tally of jobs and the longest look, in seconds."""
    made, longest = Tally(), 0.0
    for job in jobs:
        began = time.perf_counter()
        found = look(job)
        longest = max(longest, time.perf_counter() - began)
        made.add(job, found)
    return made, longest


def main() -> None:
    """Generate, look, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40, help="of each kind and severity")
    count: int = parser.parse_args().jobs
    on = machine()
    seed, longest = FIRST_SEED, 0.0
    result: dict[str, Any] = {"jobs_of_each": count}
    whole = Tally()
    for kind in KINDS:
        for severity in SEVERITIES:
            made, slow = tally(generate(seed + i, kind, severity) for i in range(count))
            seed, longest = seed + count, max(longest, slow)
            name = f"{kind} of {100 * severity:.0f} %, named first (kind right)"
            result[name] = made.shown()
            whole.jobs, whole.named = whole.jobs + made.jobs, whole.named + made.named
            whole.right += made.right
    clean, slow = tally(generate(seed + i, None) for i in range(10 * count))
    result["all with a culprit, named first (kind right)"] = whole.shown()
    result["clean jobs"] = clean.jobs
    result["clean jobs without an invented culprit"] = f"{100 * clean.named / clean.jobs:.1f} %"
    result["longest look seconds"] = round(max(longest, slow), 3)
    command = f"python bench/stragglers.py --jobs {count}"
    write("stragglers", "Stragglers in generated jobs (simulated)", command, on, result, _REMARKS)


if __name__ == "__main__":
    main()

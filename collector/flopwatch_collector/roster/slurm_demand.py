"""What Slurm's jobs want and wanted: demand, and the reference mix of STRANDED. Pure.

Jobs that wait count as demand where cards are what they wait for (``DEMAND_REASONS``): a limit, a dependency,
a hold or a start time would keep them waiting on an empty cluster too. Where none waits, the mix is the jobs
that ran in the last seven days, as far as they were seen running: ``sacct`` is not on every cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from flopwatch_collector.roster.said import Said, Word
from flopwatch_collector.roster.slurm_layout import Job
from flopwatch_collector.roster.stranded import JobShape, reference_mix
from flopwatch_proto.rows import Bucket

DEMAND_REASONS: Final = frozenset({"None", "", "Priority", "Resources", "ReqNodeNotAvail"})
"""None: not looked at yet. ReqNodeNotAvail: nodes that it could run on are down, drained or reserved."""
RECENT_MS: Final = 7 * 86_400_000
RECENT_JOBS_MAX: Final = 100_000


class RecentJobs:
    """The shapes of jobs seen running in the last seven days; beyond `RECENT_JOBS_MAX` the newest."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, int], tuple[int, tuple[JobShape, ...]]] = {}

    def see(self, jobs: Iterable[Job], now_ms: int) -> None:
        """Remember the jobs that run now, each attempt once."""
        for job in jobs:
            if "RUNNING" in job.states and job.cards:
                key = job.id, job.attempt
                self._jobs.pop(key, None)  # to the end: in the order in which they were seen last
                self._jobs[key] = now_ms, _shapes_of(job)
        for key in list(self._jobs):
            if len(self._jobs) <= RECENT_JOBS_MAX and now_ms - self._jobs[key][0] <= RECENT_MS:
                break
            del self._jobs[key]

    def shapes(self) -> tuple[JobShape, ...]:
        """Return what they wanted of one node each."""
        counted = Counter(shape for _, shapes in self._jobs.values() for shape in shapes)
        return tuple(replace(shape, pieces=count) for shape, count in counted.items())


def _shapes_of(job: Job) -> tuple[JobShape, ...]:
    return tuple(
        JobShape(
            cards=cards.count, cpus=job.cpus_per_piece, memory_bytes=job.memory_bytes_per_piece
        )
        for cards in job.cards
    )


def waits_for_cards(job: Job) -> bool:
    """Return whether a job waits for cards, and for nothing else."""
    reason = job.reason.partition(",")[0].strip("() ")
    return "PENDING" in job.states and job.pending_cards > 0 and reason in DEMAND_REASONS


def count_pending(jobs: Iterable[Job], said: Said) -> None:
    """Add the jobs that wait for cards, and the cards."""
    for job in jobs:
        if waits_for_cards(job):
            said.pending_jobs += 1
            said.pending_cards += job.pending_cards


def mix(jobs: Iterable[Job], recent: Iterable[JobShape]) -> tuple[JobShape, ...]:
    """Return the reference mix: the jobs that wait for cards, else those that ran lately."""
    shapes = [
        JobShape(
            cards=job.cards_per_piece,
            cpus=job.cpus_per_piece,
            memory_bytes=job.memory_bytes_per_piece,
            card_type=job.card_type,
            pieces=job.pieces,
        )
        for job in jobs
        if waits_for_cards(job)
    ]
    return reference_mix(shapes, recent)


def with_stranded(
    words: Iterable[Word], ratios: Mapping[str, float], *, waiting: bool
) -> Iterable[Word]:
    """Yield the words with the stranded part of free cards as words of its own."""
    whose = "that wait" if waiting else "of the last seven days"
    for word in words:
        lost = ratios.get(word.node, 0.0) if word.bucket == Bucket.FREE else 0.0
        if lost > 0:
            why = f"{word.node} cannot host {lost:.0%} of the jobs {whose}"
            yield word.as_part(Bucket.STRANDED, lost, why)
        if lost < 1:
            yield word.as_part(word.bucket, word.weight - lost, word.why)

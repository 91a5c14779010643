"""What the processes of a holder say of their work, under the name that the scheduler gave the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flopwatch_agent.jobs import JobTable
from flopwatch_agent.labels import Labels


@dataclass(slots=True)
class _Account:
    """Attributes: totals: by column; seen: declared name → its counters when last looked at."""

    totals: dict[str, float] = field(default_factory=dict)
    seen: dict[str, Mapping[str, float]] = field(default_factory=dict)


class JobNames:
    """Labels and declared counters by the scheduler's job. Jobs may declare under other names than it has.

    Args:
        labels_of: pid → labels of its environment.
    """

    def __init__(self, labels_of: Callable[[int], Labels]) -> None:
        self._labels_of = labels_of
        self._accounts: dict[str, dict[str, _Account]] = {}

    def labels(self, device: str, job: str, pids: Sequence[int], jobs: JobTable) -> Labels:
        """Return the labels of a job's processes on a card: a declaration's, else the first one's."""
        if not pids:
            return jobs.completed(Labels(), device, job)
        known = jobs.for_pids(pids)
        labels = next(iter(known.values())).labels if known else self._labels_of(pids[0])
        for name in sorted(self._names(job, pids, jobs)):
            labels = jobs.completed(labels, device, name)
        return labels

    def counters(
        self, slot: str, device: str, job: str, pids: Sequence[int], jobs: JobTable
    ) -> Mapping[str, float] | None:
        """Return the counters of what a job's processes declared for a card, by column; None: nothing.

        A name that joins later adds nothing of what it counted before.
        """
        names = sorted(self._names(job, pids, jobs))
        found = {name: totals for name in names if (totals := jobs.counters(device, name))}
        accounts = self._accounts.setdefault(slot, {})
        if not found:
            accounts.pop(job, None)
            return None
        first = job not in accounts
        account = accounts.setdefault(job, _Account())
        for name, totals in found.items():
            seen = account.seen.get(name, {} if first else totals)
            for column, value in totals.items():
                increase = max(0.0, value - seen.get(column, 0.0))
                account.totals[column] = account.totals.get(column, 0.0) + increase
        account.seen = found
        return dict(account.totals)

    def _names(self, job: str, pids: Sequence[int], jobs: JobTable) -> set[str]:
        """Return the names under which something may be declared of a job's processes on a card."""
        names = {declared.job for declared in jobs.for_pids(pids).values()} | {job}
        if pids and len(jobs):
            named = self._labels_of(pids[0]).job  # what wraps a process declares by its environment
            names |= {named} if named else set()
        return names

    def keep(self, slot: str, jobs: Sequence[str]) -> None:
        """Forget the accounts of jobs that no longer hold a card."""
        accounts = self._accounts.get(slot, {})
        for job in accounts.keys() - set(jobs):
            del accounts[job]

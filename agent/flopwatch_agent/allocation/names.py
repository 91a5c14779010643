"""What the processes of a holder say of their work, under the name that the scheduler gave the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flopwatch_agent.jobs import JobTable
from flopwatch_agent.labels import Labels


@dataclass(slots=True)
class _Account:
    """Attributes: total: model FLOPs; seen: declared name → its counter when last looked at."""

    total: float = 0.0
    seen: dict[str, float] = field(default_factory=dict)


class JobNames:
    """Labels and declared FLOPs by the scheduler's job. Jobs may declare under other names than it has.

    Args:
        labels_of: pid → labels of its environment.
    """

    def __init__(self, labels_of: Callable[[int], Labels]) -> None:
        self._labels_of = labels_of
        self._accounts: dict[str, dict[str, _Account]] = {}

    def labels(self, pids: Sequence[int], jobs: JobTable) -> Labels:
        """Return the labels of a job's processes on a card: a declaration's, else the first one's."""
        if not pids:
            return Labels()
        known = jobs.for_pids(pids)
        if known:
            return next(iter(known.values())).labels
        return self._labels_of(pids[0])

    def flops_total(
        self, slot: str, device: str, job: str, pids: Sequence[int], jobs: JobTable
    ) -> float | None:
        """Return a counter of the model FLOPs that a job's processes declared for a card; None: none.

        A name that joins later adds nothing of what it counted before.
        """
        names = {declared.job for declared in jobs.for_pids(pids).values()} | {job}
        counters = {n: value for n in names if (value := jobs.flops_total(device, n)) is not None}
        accounts = self._accounts.setdefault(slot, {})
        if not counters:
            accounts.pop(job, None)
            return None
        account = accounts.get(job)
        if account is None:
            account = accounts[job] = _Account(total=sum(counters.values()))
        else:
            account.total += sum(
                max(0.0, value - account.seen.get(name, value)) for name, value in counters.items()
            )
        account.seen = counters
        return account.total

    def keep(self, slot: str, jobs: Sequence[str]) -> None:
        """Forget the accounts of jobs that no longer hold a card."""
        accounts = self._accounts.get(slot, {})
        for job in accounts.keys() - set(jobs):
            del accounts[job]

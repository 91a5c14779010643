"""Allocation where no scheduler speaks: a card is held by the processes on it.

- A compute process seen in two readings running makes its card ACTIVE from the first of them. So the share of
  a new one waits for the next reading (`Share.waits_for`), and a flash of a process costs nothing. A reading
  that lists no processes confirms none. A process that declares itself counts at once.
- A process that leaves the SMs at 0 for long makes the card IDLE_ALLOC: see `activity`.
- Without a process a card is FREE, unless a job's declaration says that it holds it: then IDLE_ALLOC.
- A host's processor is ACTIVE exactly while a declared job holds it: any process "uses" a processor.

Job, team and the rest come from the job's own declaration, else from the process's environment, else
the job is ``pid-<pid>``. Several jobs on one card share it equally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from flopwatch_agent.allocation.activity import Activity
from flopwatch_agent.jobs import Declared, JobTable, device_key
from flopwatch_agent.labels import Labels
from flopwatch_agent.reading import Reading, Share
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb


class Processes:
    """The source ``processes``.

    Args:
        labels_of: pid → labels of its environment (`labels.Environments.labels`).
    """

    name = "processes"

    def __init__(self, labels_of: Callable[[int], Labels]) -> None:
        self._labels_of = labels_of
        self._activity = Activity()
        self._pids: dict[str, tuple[int, ...]] = {}
        self._new: dict[str, frozenset[int]] = {}

    def shares(self, reading: Reading, jobs: JobTable) -> tuple[Share, ...]:
        """Return who holds the reading's card from that reading on."""
        device, slot = device_key(reading.device), reading.device.slot
        declared = jobs.for_device(device)
        if reading.device.kind == "cpu":
            return self._split(declared, Bucket.ACTIVE, device, jobs, resident=bool(declared))
        if reading.processes is not None:
            listed = frozenset(process.pid for process in reading.processes)
            self._new[slot] = listed.difference(self._pids.get(slot, ()))
            self._pids[slot] = tuple(sorted(listed))
        pids = self._pids.get(slot, ())
        known = jobs.for_pids(pids)
        new = self._new.get(slot, frozenset()).difference(known)
        if reading.processes is None:
            pids, new = tuple(pid for pid in pids if pid not in new), frozenset()
        holders = [known.get(pid) or self._undeclared(pid) for pid in pids]
        # A card whose processes the driver cannot list is taken at its job's word.
        present = bool(holders) or (reading.processes is None and bool(declared))
        bucket = self._activity.buckets(reading, {None: present})[None]
        shares = self._split(holders or declared, bucket, device, jobs, resident=present)
        if not new:
            return shares
        pids_of: dict[str, set[int]] = {}
        for pid, holder in zip(pids, holders, strict=True):
            pids_of.setdefault(holder.job, set()).add(pid)
        without = self._split(declared, Bucket.IDLE_ALLOC, device, jobs, resident=False)
        return tuple(
            replace(share, waits_for=frozenset(own), otherwise=without)
            if (own := pids_of[share.job or ""]) <= new
            else share
            for share in shares
        )

    async def refresh(self) -> None:
        """Nobody has to be asked: readings carry their processes."""

    def events(self) -> tuple[pb.Event, ...]:
        """Nothing is told."""
        return ()

    def _undeclared(self, pid: int) -> Declared:
        labels = self._labels_of(pid)
        return Declared(pid=pid, job=labels.job or f"pid-{pid}", device=None, labels=labels)

    def _split(
        self,
        holders: Iterable[Declared],
        bucket: Bucket,
        device: str,
        jobs: JobTable,
        *,
        resident: bool,
    ) -> tuple[Share, ...]:
        """Return one share per job, of equal weight; the first process of a job speaks for it."""
        by_job: dict[str, Labels] = {}
        for holder in holders:
            by_job.setdefault(holder.job, holder.labels)
        if not by_job:
            return (Share(bucket=Bucket.FREE, source=self.name, resident=False),)
        return tuple(
            Share(
                bucket=bucket,
                weight=1.0 / len(by_job),
                job=job,
                team=labels.team,
                user=labels.user,
                workload_class=labels.workload_class,
                phase=labels.phase,
                dtype=labels.dtype,
                convention=labels.convention,
                source=self.name,
                resident=resident,
                model_flops_total=jobs.flops_total(device, job),
                counters=jobs.counters(device, job),
            )
            for job, own in sorted(by_job.items())
            for labels in (jobs.completed(own, device, job),)
        )

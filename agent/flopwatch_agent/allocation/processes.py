"""Allocation where no scheduler speaks: a card is held by the processes on it.

- A compute process makes its card ACTIVE from the first reading that shows it. One that is gone at the
  next reading held it up to that reading and no longer: a flash of a process costs one reading period,
  and nothing already accounted for is taken back.
- A process that leaves the SMs at 0 for `IDLE_MS_MIN` makes the card IDLE_ALLOC from then on, until they
  move. Where the card has no SM counter, NVML's utilisation stands in; where neither is known the card
  stays ACTIVE: not known is not idle.
- Without a process a card is FREE, unless a job's declaration says that it holds it: then IDLE_ALLOC.
- A host's processor is ACTIVE exactly while a declared job holds it: any process "uses" a processor.

Job, team and the rest come from the job's own declaration, else from the process's environment, else
the job is ``pid-<pid>``. Several jobs on one card share it equally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from flopwatch_agent.jobs import Declared, JobTable, device_key
from flopwatch_agent.labels import Labels
from flopwatch_agent.reading import Reading, Share
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

IDLE_MS_MIN: Final = 30 * 60_000
IDLE_RATIO_MAX: Final = 5e-4
"""Below this a share of time reads 0.0 %; a context that only sits there shows less."""


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What is remembered of one card. Attributes: zero_since_ns: boottime since when SM is at 0."""

    pids: tuple[int, ...] = ()
    zero_since_ns: int | None = None


class Processes:
    """The source ``processes``.

    Args:
        labels_of: pid → labels of its environment (`labels.Environments.labels`).
    """

    name = "processes"

    def __init__(self, labels_of: Callable[[int], Labels]) -> None:
        self._labels_of = labels_of
        self._seen: dict[str, _Seen] = {}

    def shares(self, reading: Reading, jobs: JobTable) -> tuple[Share, ...]:
        """Return who holds the reading's card from that reading on."""
        device = device_key(reading.device)
        declared = jobs.for_device(device)
        if reading.device.kind == "cpu":
            return self._split(declared, Bucket.ACTIVE, device, jobs, resident=bool(declared))
        seen = self._seen.setdefault(reading.device.slot, _Seen())
        if reading.processes is not None:
            seen.pids = tuple(sorted({process.pid for process in reading.processes}))
        known = jobs.for_pids(seen.pids)
        holders = [known.get(pid) or self._undeclared(pid) for pid in seen.pids]
        if not holders:
            seen.zero_since_ns = None
            # A card whose processes the driver cannot list is taken at its job's word.
            silent = reading.processes is None
            bucket = Bucket.ACTIVE if silent else Bucket.IDLE_ALLOC
            return self._split(declared, bucket, device, jobs, resident=silent and bool(declared))
        bucket = Bucket.IDLE_ALLOC if _idle(reading, seen) else Bucket.ACTIVE
        return self._split(holders, bucket, device, jobs, resident=True)

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
            )
            for job, labels in sorted(by_job.items())
        )


def _idle(reading: Reading, seen: _Seen) -> bool:
    """Return whether the card's SMs have stood at 0 for long enough, and remember since when."""
    active = _activity(reading)
    if active is None or active > IDLE_RATIO_MAX:
        seen.zero_since_ns = None
        return False
    if seen.zero_since_ns is None:
        seen.zero_since_ns = reading.boottime_ns
    return reading.boottime_ns - seen.zero_since_ns >= IDLE_MS_MIN * 1_000_000


def _activity(reading: Reading) -> float | None:
    for name in ("sm_active_ratio", "gpu_utilization_ratio"):
        value = reading.values.get(name)
        if value is not None and not isinstance(value, Absence):
            return float(value)
    return None

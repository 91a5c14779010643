"""Goodput events of jobs: start, checkpoint, eval, restart, exit. Pure; times are a monotonic clock's.

- Ranks say the same things: of several checkpoints that overlap one is told, and of the starts of a job's
  ranks the first.
- A job that had made steps and starts again, when nobody speaks for it any more, was restarted; so was one
  whose step number went back. The steps between are lost; they are told with the first step number after the
  restart, if one comes.
- Each job may tell `BURST` events at once and one more every `REFILL_MS`; what is beyond is counted.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from flopwatch_agent.job_message import DropReason, Message
from flopwatch_proto.v1 import telemetry_pb2 as pb

BURST: Final = 30
REFILL_MS: Final = 30_000
JOBS_MAX: Final = 4096
REMEMBERED_MS: Final = 86_400_000
"""A job that starts again on this host within a day was restarted."""

RECENT_MS: Final = 60_000
"""A job not heard of for longer makes room for another, where there are too many."""

_PENDING_MAX: Final = 1024
_SAME_RESTART_MS: Final = 30_000
_STEP_AWAITED_MS: Final = 600_000
_OVERLAP_MS: Final = 1_000
_DURATION_MS_MAX: Final = 86_400_000.0
_STEP_MAX: Final = 2**53
_KINDS: Final = {"checkpoint": "job_checkpoint", "eval": "job_eval"}
_NO_STEP: Final = -1


@dataclass(slots=True, kw_only=True)
class _Job:
    """What is remembered of a job.

    Attributes:
        step: the highest number heard since it started.
        started: its start was told, or it was heard in the middle of its life.
        stepped: it made steps since it started.
        restarted_ms: when it started again, while no step number has been heard since.
        told: kind → when the last one ended.
    """

    heard_ms: float
    step: int | None = None
    started: bool = False
    stepped: bool = False
    restarted_ms: float | None = None
    workload_class: str | None = None
    told: dict[str, float] = field(default_factory=dict)
    allowance: float = BURST
    refilled_ms: float = 0.0


class JobEvents:
    """What is worth telling of jobs.

    Args:
        drops: counts by reason what is not told.
    """

    def __init__(self, drops: Counter[DropReason]) -> None:
        self._drops = drops
        self._jobs: dict[str, _Job] = {}
        self._pending: deque[tuple[float, pb.Event]] = deque()

    def heard(
        self,
        job: str,
        workload_class: str | None,
        message: Message,
        now_ms: float,
        *,
        steps: float,
        alone: bool,
    ) -> None:
        """Take a message of a job.

        Args:
            steps: that the process made since it started.
            alone: no other process of the job speaks on this host.
        """
        known = self._known(job, now_ms)
        if known is None:
            self._drops["jobs_full"] += 1
            return
        known.heard_ms = now_ms
        step = message.step
        if step is not None and not 0 <= step <= _STEP_MAX:
            self._drops["counter"] += 1
            step = None
        same_work = known.workload_class in (None, workload_class)
        back = same_work and step is not None and known.step is not None and step < known.step
        if message.event == "start" and known.stepped and same_work and alone:
            self._restarted(known, now_ms)
        elif message.event == "start" and not known.started and alone:
            self._tell(job, known, "job_start", now_ms, step, "the first process of the job")
        elif message.event == "restart" and back:
            self._restarted(known, now_ms)
        elif message.event in _KINDS:
            self._took(job, known, message, step, now_ms)
        known.started = True
        if same_work and step is not None:
            if known.restarted_ms is not None:
                # A process that goes back by itself has just done `step` again.
                done = 1 if message.event == "restart" else int(steps)
                self._tell_restart(job, known, max(0, step - done))
                known.step = step
            elif known.step is None or step > known.step:
                known.step = step
        if steps and message.event != "start":
            known.stepped, known.workload_class = True, workload_class

    def left(self, job: str, now_ms: float, text: str) -> None:
        """The last process of a job is gone."""
        known = self._jobs.get(job)
        if known is not None:
            self._tell_restart(job, known, None)
            known.started = False
            self._tell(job, known, "job_exit", now_ms, known.step, text)

    def take(self, now_ms: float, now_unix_ms: int) -> list[pb.Event]:
        """Return the events since the last call, each at the wall-clock time at which it began."""
        events = []
        while self._pending:
            at_ms, event = self._pending.popleft()
            event.time_unix_ms = now_unix_ms - round(now_ms - at_ms)
            events.append(event)
        return events

    def expire(self, now_ms: float) -> None:
        """Forget jobs not heard of for long."""
        for job, known in list(self._jobs.items()):
            if known.restarted_ms is not None and now_ms - known.restarted_ms > _STEP_AWAITED_MS:
                self._tell_restart(job, known, None)
            if now_ms - known.heard_ms > REMEMBERED_MS:
                del self._jobs[job]

    def _known(self, job: str, now_ms: float) -> _Job | None:
        """Return what is known of a job; None where there are too many that were heard of lately."""
        known = self._jobs.get(job)
        if known is None:
            if len(self._jobs) >= JOBS_MAX:
                oldest = min(self._jobs, key=lambda name: self._jobs[name].heard_ms)
                if now_ms - self._jobs[oldest].heard_ms < RECENT_MS:
                    return None
                del self._jobs[oldest]
            known = self._jobs[job] = _Job(heard_ms=now_ms, refilled_ms=now_ms)
        return known

    def _restarted(self, known: _Job, now_ms: float) -> None:
        known.stepped = False
        if now_ms - known.told.get("job_restart", -_SAME_RESTART_MS) >= _SAME_RESTART_MS:
            known.told["job_restart"] = known.restarted_ms = now_ms

    def _tell_restart(self, job: str, known: _Job, step: int | None) -> None:
        at_ms, known.restarted_ms = known.restarted_ms, None
        if at_ms is None:
            return
        if step is None or known.step is None:
            text = "started again; how many steps are lost is not known"
        else:
            text = f"started again at step {step}: {max(0, known.step - step)} steps lost"
        known.step = step
        self._tell(job, known, "job_restart", at_ms, step, text, severity="warning")

    def _took(
        self, job: str, known: _Job, message: Message, step: int | None, now_ms: float
    ) -> None:
        kind = _KINDS[message.event or ""]
        took_ms = message.event_ms
        if took_ms is None or not 0.0 <= took_ms <= _DURATION_MS_MAX:
            took_ms = 0.0
        began_ms = now_ms - took_ms
        if began_ms < known.told.get(kind, -_OVERLAP_MS) + _OVERLAP_MS:
            known.told[kind] = now_ms
            return  # another rank's word for the same
        known.told[kind] = now_ms
        self._tell(job, known, kind, began_ms, step, f"took {took_ms / 1e3:.1f} s")

    def _tell(
        self,
        job: str,
        known: _Job,
        kind: str,
        at_ms: float,
        step: int | None,
        text: str,
        *,
        severity: str = "info",
    ) -> None:
        refill = max(0.0, known.heard_ms - known.refilled_ms) / REFILL_MS
        known.allowance = min(BURST, known.allowance + refill)
        known.refilled_ms = known.heard_ms
        if known.allowance < 1.0 or len(self._pending) >= _PENDING_MAX:
            self._drops["events"] += 1
            return
        known.allowance -= 1.0
        code = _NO_STEP if step is None else step
        event = pb.Event(kind=kind, code=code, severity=severity, text=text, job=job)
        self._pending.append((at_ms, event))

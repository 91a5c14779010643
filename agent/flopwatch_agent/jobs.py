"""What jobs say of themselves: the table of declarations.

A job's process sends one small JSON datagram a second to a unix socket (`flopwatch` SDK, or anything
that can write one), or by OpenTelemetry: see `job_intake` and `otlp`. Pure. Invariants:

- A counter in a message is the process's own since it started. An account per (device, job) sums their
  increases, so it never falls while the job lives, whoever joins or leaves: see `job_accounts`.
- A process first heard in the middle of its life adds nothing with its first message: what it did
  before was not watched. Only ``"event": "start"`` begins at zero.
- The sender is who the kernel says (SCM_CREDENTIALS, in the agent's pid namespace), so nobody speaks
  for another process and a container's pids are right. Only where the kernel cannot say, the message's
  own pid counts.
- Everything is bounded, and whatever is dropped is counted by reason in `JobTable.drops`.
- An account whose last process left stays readable in `finals` for `SILENT_MS_MAX`, so that the last
  increase reaches the row that it belongs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from flopwatch_agent.job_accounts import Account, Accounts, Key
from flopwatch_agent.job_events import JobEvents
from flopwatch_agent.job_message import EVERY_CARD, DropReason, Message, counters
from flopwatch_agent.labels import (
    Labels,
    clean_class,
    clean_convention,
    clean_dtype,
    clean_phase,
    clean_text,
)
from flopwatch_agent.reading import Device
from flopwatch_agent.shares import Holder
from flopwatch_proto.v1 import telemetry_pb2 as pb

__all__ = ["Declared", "JobTable", "Message", "device_key"]

PROCESSES_MAX: Final = 4096
SILENT_MS_MAX: Final = 60_000
"""A process silent for longer leaves, if its pid is gone; an account without processes is forgotten."""
SPEAKING_MS_MAX: Final = 3_000
"""A process not heard for longer may be dead: whoever starts beside it may replace it."""
EXPORTER_SILENT_MS_MAX: Final = 300_000
"""The same for whoever sends metrics: exporters speak once a minute, and have no pid to look for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What one process declares.

    Attributes:
        device: as `device_key` writes it; None when the process did not say.
        job: never None; ``pid-<pid>`` where nothing names it.
    """

    pid: int
    job: str
    device: str | None
    labels: Labels


@dataclass(slots=True, kw_only=True)
class _Process:
    """What is remembered of a process.

    Attributes:
        environment: read when first heard, as at exit it may be gone.
        start: it was heard from its start on.
    """

    declared: Declared
    environment: Labels
    heard_ms: float
    counters: Mapping[str, float]
    start: bool


def device_key(device: Device) -> str:
    """Return how messages name a device: ``cpu`` or its UUID in lower case."""
    return "cpu" if device.kind == "cpu" else _key(device.uuid or device.slot)


def _key(text: str) -> str:
    text = text.removeprefix("cuda:").lower()
    return text if text == "cpu" else text.removeprefix("gpu-")


class JobTable:
    """Who declared what; pure.

    Args:
        labels_of: pid → labels of its environment, for what a message leaves out.

    Attributes:
        drops: counts by reason what is dropped; messages_total: what is not.
    """

    def __init__(self, labels_of: Callable[[int], Labels] | None = None) -> None:
        self.drops: Counter[DropReason] = Counter()
        self.messages_total = 0
        self._labels_of = labels_of
        self._processes: dict[int, _Process] = {}
        self._accounts = Accounts()
        self._spoken_for: dict[Key, Labels] = {}  # by who is no process on the card
        self._events = JobEvents(self.drops)

    def __len__(self) -> int:
        return len(self._processes)

    def apply(self, message: Message, now_ms: float, *, exporter: bool = False) -> None:
        """Take a message. A message that makes no sense is dropped and counted, never raised.

        Args:
            message: its ``pid`` is the sender's, in the agent's pid namespace.
            now_ms: a monotonic clock.
            exporter: the sender is no process known here; ``pid`` is a negative number given to it.
        """
        if message.v != 1 or (message.pid <= 0) != exporter:
            self.drops["version" if message.v != 1 else "pid"] += 1
            return
        process = self._processes.get(message.pid)
        if process is None and len(self._processes) >= PROCESSES_MAX:
            self.drops["table_full"] += 1
            return
        self.messages_total += 1
        started = message.event == "start"
        if process is not None and started:
            self._leave(message.pid)  # the pid is another process's now
            process = None
        environment = self._environment(process, message.pid)
        declared = _declared(message, environment)
        found, nonsense = counters(message, environment)
        if nonsense:
            self.drops["counter"] += nonsense
        start = started or (process is not None and process.start)
        if self._count(process, declared, found, now_ms, start=start) is None:
            return
        alone = started and not any(
            other.declared.job == declared.job and now_ms - other.heard_ms <= SPEAKING_MS_MAX
            for other in self._processes.values()
        )
        kind = declared.labels.workload_class
        steps = found.get("steps_count", 0.0)
        self._events.heard(declared.job, kind, message, now_ms, steps=steps, alone=alone)
        self._processes[message.pid] = _Process(
            declared=declared,
            environment=environment,
            heard_ms=now_ms,
            counters=found,
            start=start,
        )
        if exporter or declared.device == EVERY_CARD:
            self._spoken_for[declared.device, declared.job] = declared.labels
        if message.event == "exit":
            self._leave(message.pid)
            self._told_if_last(declared.job, now_ms, "its last process said goodbye")

    def expire(self, now_ms: float, alive: Callable[[int], bool]) -> None:
        """Forget processes silent for `SILENT_MS_MAX` whose pid is gone, and accounts without any."""
        for pid, process in list(self._processes.items()):
            silent_ms = now_ms - process.heard_ms
            if silent_ms > (SILENT_MS_MAX if pid > 0 else EXPORTER_SILENT_MS_MAX) and (
                pid < 0 or not alive(pid)
            ):
                self._leave(pid)
                text = "its last process is gone without a word"
                self._told_if_last(process.declared.job, process.heard_ms, text)
        held = {(p.declared.device, p.declared.job) for p in self._processes.values()}
        self._accounts.expire(held, now_ms, SILENT_MS_MAX)
        self._events.expire(now_ms)

    def events(self, now_ms: float, now_unix_ms: int) -> list[pb.Event]:
        """Return the jobs' goodput events since the last call.

        Args:
            now_ms: the clock of `apply`.
            now_unix_ms: the wall clock at that moment.
        """
        return self._events.take(now_ms, now_unix_ms)

    def for_pids(self, pids: Iterable[int]) -> dict[int, Declared]:
        """Return what the processes of a card declare, those that do."""
        return {pid: self._processes[pid].declared for pid in pids if pid in self._processes}

    def for_device(self, device: str) -> tuple[Declared, ...]:
        """Return the processes that say they hold a device, by `device_key`; in order of arrival."""
        return tuple(
            process.declared
            for process in self._processes.values()
            if process.declared.device == device
        )

    def completed(self, labels: Labels, device: str, job: str) -> Labels:
        """Return labels with the rest of what a job's exporter or log says of it on a device."""
        for key in ((device, job), (EVERY_CARD, job)):
            said = self._spoken_for.get(key)
            if said is not None:
                kept = {k: v for k, v in asdict(labels).items() if v is not None}
                labels = replace(said, **kept)
        return labels

    def counters(self, device: str, job: str) -> Mapping[str, float]:
        """Return a job's counters on a device by their column; empty: it declares none."""
        return self._accounts.totals(device, job)

    def flops_total(self, device: str, job: str) -> float | None:
        """Return the counter of a job's model FLOPs on a device; None: it declares none."""
        return self.counters(device, job).get("model_flops")

    def finals(self, device: str) -> dict[Holder, Mapping[str, float]]:
        """Return the counters of every account of a device, by (job, instance), those just ended too."""
        found = {(job, None): self.counters(device, job) for job in self._accounts.jobs(device)}
        return {holder: totals for holder, totals in found.items() if totals}

    def _leave(self, pid: int) -> None:
        declared = self._processes.pop(pid).declared
        self._accounts.left((declared.device, declared.job), pid)
        self._spoken_for.pop((declared.device, declared.job), None)

    def _told_if_last(self, job: str, at_ms: float, text: str) -> None:
        if not any(process.declared.job == job for process in self._processes.values()):
            self._events.left(job, at_ms, text)

    def _environment(self, process: _Process | None, pid: int) -> Labels:
        if process is not None:
            return process.environment
        return self._labels_of(pid) if self._labels_of is not None and pid > 0 else Labels()

    def _count(
        self,
        process: _Process | None,
        declared: Declared,
        found: Mapping[str, float],
        now_ms: float,
        *,
        start: bool,
    ) -> Account | None:
        """Add what a process counted to its account; None where there are too many accounts."""
        key = (declared.device, declared.job)
        account = self._accounts.open(key, now_ms)
        if account is None:
            self.drops["accounts_full"] += 1
            return None
        before = None
        if process is not None:
            before = process.counters
            held = (process.declared.device, process.declared.job)
            if held != key:
                self._accounts.left(held, declared.pid)
                self._spoken_for.pop(held, None)
        account.add(declared.pid, found, before, start=start)
        return account


def _declared(message: Message, environment: Labels) -> Declared:
    def first(said: str | None, fallback: str | None) -> str | None:
        return clean_text(said) or fallback

    labels = Labels(
        team=first(message.team, environment.team),
        user=environment.user,
        dtype=clean_dtype(message.dtype) or environment.dtype,
        convention=clean_convention(message.convention) or environment.convention,
        workload_class=clean_class(message.workload_class) or environment.workload_class,
        phase=clean_phase(message.phase) or environment.phase,
    )
    return Declared(
        pid=message.pid,
        job=first(message.job, environment.job) or f"pid-{message.pid}",
        device=None if message.device is None else _key(message.device[:128]),
        labels=labels,
    )

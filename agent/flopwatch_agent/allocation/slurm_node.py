"""The traces of Slurm on its node: files only, no daemon is asked.

Which jobs are here: their control groups (`cgroup`), and the files that a prolog left (`prolog`); with
``proctrack/linuxproc`` there are no groups, then the children of slurmstepd. Which cards a job has, the first
that says so: the device list of its control group where that can be read back (v1, and only where all is
denied but what is listed; v2 never), its prolog file, the environment that slurmstepd gave its processes.
CUDA_VISIBLE_DEVICES counts anew inside a job and NVML's order is its own: neither is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flopwatch_agent.allocation import cgroup
from flopwatch_agent.allocation.holders import GRES, MINOR, Holder, Place
from flopwatch_agent.allocation.prolog import PrologJob, numbers, read_prolog
from flopwatch_agent.labels import clean_text

Environ = Callable[[int], Mapping[str, str]]

LOOK_MS: Final = 60_000
"""How often it is looked for Slurm's control groups, or where there are none for its daemons."""

GROUP_GONE_MS: Final = 60_000

_PIDS_MAX: Final = 256
_ENVIRONS_PER_JOB_MAX: Final = 8
_ENVIRON_RETRY_MS: Final = 60_000
_NVIDIA_MAJOR: Final = 195
_MINOR_MAX: Final = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job on this node.

    Attributes:
        number: Slurm's; a SLUID where only that is known.
        places: its cards, as far as they are known.
        complete: it holds no others here.
    """

    number: str
    places: tuple[Place, ...]
    owners: frozenset[str]
    user: str | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    suspended: bool = False
    complete: bool = True

    def holder(self) -> Holder:
        """Return the job as a holder of cards."""
        return Holder(
            job=self.number,
            team=self.account,
            user=self.user,
            partition=self.partition,
            qos=self.qos,
            owners=self.owners,
            suspended=self.suspended,
        )


class Environments:
    """The SLURM_* variables of processes, each read once while it lives; a failure is tried again."""

    def __init__(self, environ: Environ) -> None:
        self._environ = environ
        self._known: dict[int, tuple[float, Mapping[str, str] | None]] = {}

    def read(self, pid: int, now_ms: float) -> Mapping[str, str] | None:
        """Return the variables; None where they cannot be read."""
        known = self._known.get(pid)
        if known is not None and (known[1] is not None or now_ms - known[0] < _ENVIRON_RETRY_MS):
            return known[1]
        try:
            found = {k: v for k, v in self._environ(pid).items() if k.startswith("SLURM")}
        except OSError:
            found = None
        self._known[pid] = (now_ms, found)
        return found

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all other processes: a number that comes back is another process."""
        alive = set(pids)
        self._known = {pid: known for pid, known in self._known.items() if pid in alive}


@dataclass(slots=True)
class Node:
    """What Slurm's traces on one host say. Reads files, asks nobody.

    Args:
        name: of the node in Slurm, where several run on this host; None takes all.
    """

    cgroup_root: Path
    proc: Path
    environ: Environ
    prolog_directory: Path
    name: str | None = None
    wrong_files: dict[str, str] = field(default_factory=dict)
    _environments: Environments = field(init=False)
    _roots: list[Path] = field(default_factory=list)
    _looked_ms: float | None = None
    _daemon: bool = False
    _group_seen_ms: dict[str, float] = field(default_factory=dict)
    _steps: Steps = field(init=False)

    def __post_init__(self) -> None:
        self._environments = Environments(self.environ)
        self._steps = Steps(self.proc)

    @property
    def grouped(self) -> bool:
        """Whether Slurm keeps its jobs in control groups here."""
        return bool(self._roots)

    def jobs(self, now_ms: float) -> tuple[Job, ...] | None:
        """Return the jobs of this node; None where nothing shows that this host is one.

        Raises:
            OSError: what should show it may not be read.
        """
        if self._looked_ms is None or now_ms - self._looked_ms >= LOOK_MS:
            self._roots, self._looked_ms = cgroup.slurm_roots(self.cgroup_root), now_ms
            self._daemon = not self._roots and self._steps.read() is not None
        prolog, self.wrong_files = read_prolog(self.prolog_directory, self.name)
        groups: dict[str, list[tuple[int, str]]] = {}
        directories: dict[str, list[Path]] = {}
        for root in self._roots:
            for job, found in cgroup.job_directories(root, self.name).items():
                directories.setdefault(job, []).extend(found)
                groups.setdefault(job, []).extend(
                    pid for path in found for pid in cgroup.pids(path, _PIDS_MAX)
                )
        if not self._roots:
            steps = self._steps.read() if self._daemon else None
            if steps is None and not self.prolog_directory.is_dir():
                return None
            groups = self._by_environ(steps or (), now_ms)
        self._environments.keep(pid for pids in groups.values() for pid, _ in pids)
        result = [
            self._job(name, pids, directories.get(name, ()), prolog, now_ms)
            for name, pids in groups.items()
            if pids
        ]
        told = {job.number for job in result}
        result += [
            _told(job)
            for number, job in prolog.items()
            if number not in told and not self._ended(number, job, directories, now_ms)
        ]
        left = {*prolog, *(job.sluid for job in prolog.values())}
        seen = {name: ms for name, ms in self._group_seen_ms.items() if name in left}
        self._group_seen_ms = seen | dict.fromkeys(directories.keys() & left, now_ms)
        return tuple(result)

    def _by_environ(self, pids: Iterable[int], now_ms: float) -> dict[str, list[tuple[int, str]]]:
        found: dict[str, list[tuple[int, str]]] = {}
        for pid in pids:
            said = self._environments.read(pid, now_ms)
            if said and (job := said.get("SLURM_JOB_ID")):
                found.setdefault(job, []).append((pid, ""))
        return found

    def _ended(
        self, number: str, job: PrologJob, directories: Mapping[str, list[Path]], now_ms: float
    ) -> bool:
        """A prolog file whose control group came and went: its epilog has failed."""
        names = [name for name in (number, job.sluid) if name in self._group_seen_ms]
        if not names or any(name in directories for name in names):
            return False
        return all(now_ms - self._group_seen_ms[name] >= GROUP_GONE_MS for name in names)

    def _job(
        self,
        name: str,
        pids: list[tuple[int, str]],
        directories: Iterable[Path],
        prolog: Mapping[str, PrologJob],
        now_ms: float,
    ) -> Job:
        said = list(self._said(name, pids, now_ms))
        number = next((s["SLURM_JOB_ID"] for s in said), name)
        left = prolog.get(number) or next((j for j in prolog.values() if j.sluid == name), None)
        if left is not None:
            number = str(left.job)

        def first(told: str, *variables: str) -> str | None:
            texts = (told, *(s.get(v) for s in said for v in variables))
            return next((text for t in texts if (text := clean_text(t))), None)

        places, complete = device_list(directories), True
        if places is None and left is not None:
            places = left.places()
        if places is None:
            places, complete = _environ_places(said)
        return Job(
            number=number,
            places=places,
            complete=complete,
            owners=frozenset((f"slurm:{name}", f"slurm:{number}")),
            user=first(left.user if left else "", "SLURM_JOB_USER"),
            account=first(left.account if left else "", "SLURM_JOB_ACCOUNT"),
            partition=first(left.partition if left else "", "SLURM_JOB_PARTITION"),
            qos=first(left.qos if left else "", "SLURM_JOB_QOS"),
            suspended=_stopped(self.proc, (pid for pid, _ in pids)),
        )

    def _said(
        self, name: str, pids: list[tuple[int, str]], now_ms: float
    ) -> Iterator[Mapping[str, str]]:
        """Yield what the job's own processes have in their environment, a few of them."""
        count = 0
        for pid, group in sorted(set(pids)):
            if "step_extern" in group or count >= _ENVIRONS_PER_JOB_MAX:
                continue
            said = self._environments.read(pid, now_ms)
            if not said or "SLURM_JOB_ID" not in said:
                continue  # slurmstepd itself, or hidden
            # A process may say what it likes: only what agrees with its control group is heard.
            if name.isdigit() and said["SLURM_JOB_ID"] != name:
                continue
            if not name.isdigit() and said.get("SLURM_JOB_SLUID", name) != name:
                continue
            count += 1
            yield said


@dataclass(slots=True)
class Steps:
    """The processes that slurmstepd started, where no control groups tell. Each process is looked at once."""

    proc: Path
    _known: dict[int, tuple[str, int]] = field(default_factory=dict)

    def read(self) -> tuple[int, ...] | None:
        """Return their pids; None where no daemon of Slurm runs."""
        pids = [int(name) for name in os.listdir(self.proc) if name.isdigit()]
        # A fork has its parent's name until it has become something else.
        known = {
            pid: found
            for pid in pids
            if (found := self._known.get(pid)) and not found[0].startswith("slurm")
        }
        for pid in pids:
            if pid not in known and (stat := _stat(self.proc, pid)) is not None:
                known[pid] = (stat[0], stat[2])
        self._known = known
        daemons = {pid for pid, (name, _) in known.items() if name.startswith("slurm")}
        if not any(known[pid][0] in ("slurmd", "slurmstepd") for pid in daemons):
            return None
        return tuple(
            pid for pid, (_, parent) in known.items() if parent in daemons and pid not in daemons
        )


def device_list(directories: Iterable[Path]) -> tuple[Place, ...] | None:
    """Return the cards that a v1 device list names.

    None where it cannot be read, or allows everything: the kernel shows ``a *:* rwm`` also where
    devices were denied one by one, which is how Slurm constrains them.
    """
    for directory in directories:
        try:
            lines = (directory / "devices.list").read_text().splitlines()
        except OSError:
            continue
        found = []
        for line in lines:
            kind, _, rest = line.partition(" ")
            major, _, minor = rest.partition(" ")[0].partition(":")
            if kind == "a" or (major == str(_NVIDIA_MAJOR) and minor == "*"):
                return None
            if kind == "c" and major == str(_NVIDIA_MAJOR) and minor.isdigit():
                found += [int(minor)]
        return tuple(Place(MINOR, minor) for minor in found if minor <= _MINOR_MAX)
    return None


def _environ_places(said: Iterable[Mapping[str, str]]) -> tuple[tuple[Place, ...], bool]:
    """Return the cards that processes of a job name, and whether these are all.

    A batch script has SLURM_JOB_GPUS of its own node. A step inherits that from the script, which may be
    another node's: it counts only by its own SLURM_STEP_GPUS, and the job may hold more than it uses.
    """
    steps: set[int] = set()
    for one in said:
        if "SLURM_STEP_ID" not in one and "SLURM_STEPID" not in one:
            numbered = numbers(one.get("SLURM_JOB_GPUS", ""))
            return tuple(Place(GRES, number) for number in numbered), True
        steps.update(numbers(one.get("SLURM_STEP_GPUS", "")))
    return tuple(Place(GRES, number) for number in sorted(steps)), False


def _told(job: PrologJob) -> Job:
    """Return a job that only its prolog file tells of: allocated, and not started."""
    names = (str(job.job), job.sluid)
    return Job(
        number=str(job.job),
        places=job.places(),
        owners=frozenset(f"slurm:{name}" for name in names if name),
        user=clean_text(job.user),
        account=clean_text(job.account),
        partition=clean_text(job.partition),
        qos=clean_text(job.qos),
    )


def _stopped(proc: Path, pids: Iterable[int]) -> bool:
    """Return whether what slurmstepd started is stopped; `scontrol suspend` may leave its children be."""
    stats = [_stat(proc, pid) for pid, _ in zip(pids, range(_PIDS_MAX), strict=False)]
    found = [stat for stat in stats if stat is not None and stat[0] != "slurmstepd"]
    daemons = {
        parent
        for parent in {parent for _, _, parent in found}
        if (stat := _stat(proc, parent)) is not None and stat[0] == "slurmstepd"
    }
    states = [state for _, state, parent in found if parent in daemons]
    return bool(states) and all(state == "T" for state in states)


def _stat(proc: Path, pid: int) -> tuple[str, str, int] | None:
    """Return name, state and parent of a process; the name may hold blanks and brackets."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
        name, _, rest = text.partition("(")[2].rpartition(")")
        state, parent = rest.split()[:2]
        return name, state, int(parent)
    except (OSError, ValueError):
        return None

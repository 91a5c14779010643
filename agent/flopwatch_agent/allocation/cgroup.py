"""Control groups: which job or pod a process is in, by its ``/proc/<pid>/cgroup``.

    v1  5:devices:/slurm_n1/uid_1000/job_6/step_batch/task_0          Slurm; ``slurm`` or ``slurm_<node>``
    v2  0::/system.slice/slurmstepd.scope/job_6/step_0/user/task_0    or ``<node>_slurmstepd.scope``
    v2  0::/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/…     Slurm from 26.05 on: by SLUID
    v2  0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/…-<id>.scope
    v1  4:memory:/kubepods/besteffort/pod<uid>/<id>                   cgroupfs driver

A *mark* is the short text that says whose a process is: ``slurm:6``, ``slurm:s5K1KKYAYG5D00``, ``pod:<uid>``.
Sources: slurm.schedmd.com/cgroup_v2.html; the kubelet's names of pod cgroups.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SLURM_V1: Final = re.compile(r"/slurm(?:_([^/]+))?/uid_\d+/job_(\d+)(?:/|$)")
_SLURM_V2: Final = re.compile(
    r"/(?:([^/]+)_)?slurmstepd\.scope/(?:job_(\d+)|(s[0-9A-Z]{13}))(?:/|$)"
)
_POD_SLICE: Final = re.compile(r"kubepods(?:-[a-z]+)?-pod([0-9a-f_]{32,36})\.slice(?:/|$)")
_POD_PLAIN: Final = re.compile(r"/kubepods(?:/[a-z]+)?/pod([0-9a-f-]{32,36})(?:/|$)")
_JOB: Final = re.compile(r"job_(\d+)|(s[0-9A-Z]{13})")
_OURS: Final = re.compile(r"/flopwatch[^/]*\.(?:service|slice|scope)(?:/|$)")
_SLURMD: Final = re.compile(r"/slurmd\.service(?:/|$)")

V1_CONTROLLERS: Final = (
    "freezer",
    "devices",
    "cpuset",
    "memory",
    "cpuacct",
    "cpu",
    "pids",
    "systemd",
)
_WALK_DIRECTORIES_MAX: Final = 5_000
_WALK_DEPTH_MAX: Final = 8

OURS: Final = "flopwatch"
SCHEDULER: Final = "scheduler"
"""Marks of processes that are nobody's job: this program's own, and the scheduler's checks of the node."""


def marks(text: str) -> frozenset[str]:
    """Return whose a process is, by its ``/proc/<pid>/cgroup``; empty: nobody's that is known here."""
    found: set[str] = set()
    for line in text.splitlines():
        path = line.partition(":")[2].partition(":")[2]
        for pattern in (_SLURM_V1, _SLURM_V2):
            if match := pattern.search(path):
                found.add("slurm:" + next(group for group in match.groups()[1:] if group))
        for pattern in (_POD_SLICE, _POD_PLAIN):
            if match := pattern.search(path):
                found.add("pod:" + pod_uid(match[1]))
        if _OURS.search(path):
            found.add(OURS)
        if _SLURMD.search(path):
            found.add(SCHEDULER)
    return frozenset(found)


def pod_uid(text: str) -> str:
    """Return a pod's uid as the API writes it; systemd's names have ``_`` for ``-``."""
    return text.replace("_", "-")


def job_directories(root: Path, node: str | None) -> dict[str, list[Path]]:
    """Return the control groups of the Slurm jobs below one of `slurm_roots`, by job id or SLUID."""
    found: dict[str, list[Path]] = {}
    named = root.name.removeprefix("slurm").removeprefix("_")
    if root.name.endswith("slurmstepd.scope"):
        named = root.name.removesuffix("slurmstepd.scope").removesuffix("_")
    if node is not None and named not in ("", node):
        return found
    parents = [root, *(Path(entry.path) for entry in _entries(root) if entry.name[:4] == "uid_")]
    for parent in parents:
        for entry in _entries(parent):
            if match := _JOB.fullmatch(entry.name):
                found.setdefault(match[1] or match[2], []).append(Path(entry.path))
    return found


def slurm_roots(cgroup_root: Path) -> list[Path]:
    """Return the control groups that Slurm keeps its jobs in, those inside of containers too."""
    roots = [
        Path(entry.path)
        for controller in V1_CONTROLLERS
        for entry in _entries(cgroup_root / controller)
        if entry.name == "slurm" or entry.name.startswith("slurm_")
    ]
    for unified in (cgroup_root / "unified", cgroup_root):
        if (unified / "cgroup.controllers").exists():
            roots += (path for path in walk(unified) if path.name.endswith("slurmstepd.scope"))
            break
    return roots


def pods(cgroup_root: Path) -> dict[str, Path]:
    """Return the control group of every pod, by uid, in the first hierarchy that has any."""
    hierarchies = (cgroup_root, cgroup_root / "unified")
    for root in (*hierarchies, *(cgroup_root / name for name in V1_CONTROLLERS)):
        found: dict[str, Path] = {}
        tops = [root, root / "kubelet", root / "kubelet.slice"]
        tops += [p for top in tops for p in _named(top, "kubepods", "kubelet-kubepods")]
        tops += [p for top in tops[3:] for p in _named(top, "kube", "burst", "best", "guar")]
        for top in tops[3:]:
            for entry in _entries(top):
                path = f"{entry.path}/"
                if match := _POD_SLICE.search(path) or _POD_PLAIN.search(path):
                    found[pod_uid(match[1])] = Path(entry.path)
        if found:
            return found
    return {}


def pids(directory: Path, count_max: int) -> list[tuple[int, str]]:
    """Return the processes in a control group and below, each with its group relative to the directory."""
    found: list[tuple[int, str]] = []
    for group in (directory, *walk(directory)):
        try:
            text = (group / "cgroup.procs").read_text()
        except OSError:
            continue
        relative = str(group.relative_to(directory))
        found += ((int(word), relative) for word in text.split() if word.isdigit())
        if len(found) >= count_max:
            return found[:count_max]
    return found


def walk(root: Path) -> Iterator[Path]:
    """Yield the control groups below one; bounded in depth and number."""
    pending = [(root, 0)]
    for _ in range(_WALK_DIRECTORIES_MAX):
        if not pending:
            return
        parent, depth = pending.pop()
        for entry in _entries(parent):
            path = Path(entry.path)
            yield path
            deeper = not entry.name.endswith((".service", "slurmstepd.scope"))
            if deeper and depth < _WALK_DEPTH_MAX:
                pending.append((path, depth + 1))


def _named(parent: Path, *starts: str) -> list[Path]:
    return [Path(e.path) for e in _entries(parent) if e.name.startswith(starts)]


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    """Return the folders in a folder; none where it is gone or hidden."""
    try:
        with os.scandir(directory) as entries:
            return [e for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []

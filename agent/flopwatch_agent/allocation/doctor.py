"""Why the allocation of this host may not be known: every right that is missing, in words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from flopwatch_agent.access import Access
from flopwatch_agent.allocation import cgroup
from flopwatch_agent.allocation.registry import build_access
from flopwatch_agent.allocation.slurm import GRES_CONFS
from flopwatch_agent.allocation.slurm_node import Node
from flopwatch_agent.config import AgentConfig, AllocationConfig
from flopwatch_agent.podresources import message

_PROCESSES_MAX: Final = 10_000


class Finding(NamedTuple):
    """One thing that was looked at. Attributes: ok: None is a fact that is neither good nor bad."""

    what: str
    ok: bool | None
    text: str


def doctor(config: AgentConfig) -> list[Finding]:
    """Return what can and cannot be known of who holds the cards of this host. Not from an event loop."""
    of, access = config.allocation, build_access(config)
    found = [*_processes(of), *_environments(of, access)]
    if of.slurm != "off":
        found += _slurm(of, access)
    if of.kubernetes != "off":
        found += _kubernetes(of, access)
    return found


def _processes(of: AllocationConfig) -> Iterator[Finding]:
    try:
        text = (of.proc / "1" / "cgroup").read_text()
    except FileNotFoundError:
        yield Finding(
            "processes",
            False,
            f"{of.proc} hides other users' processes (hidepid) or is not the host's: whose a process"
            " on a card is cannot be told; give the agent the group named in hidepid's gid=, or mount"
            " the host's /proc and name it in [allocation] proc",
        )
        return
    except OSError as exc:
        yield Finding("processes", False, f"{of.proc}/1/cgroup: {exc.strerror}")
        return
    if "/.." in text:
        yield Finding(
            "processes",
            False,
            "the agent has a cgroup namespace of its own: jobs' control groups have no names here;"
            " run it in the host's (hostPID and cgroupns: host)",
        )
        return
    yield Finding("processes", True, "processes and their control groups can be seen")


def _environments(of: AllocationConfig, access: Access) -> Iterator[Finding]:
    foreign = _foreign_process(of.proc)
    if foreign is None:
        yield Finding("environments", None, "no process of another user to try")
        return
    try:
        access.environ(foreign)
    except PermissionError as exc:
        yield Finding(
            "environments",
            False,
            f"other users' environments may not be read ({exc.strerror}): jobs without a prolog file"
            " keep their cards to themselves; start flopwatch-privileged.socket or install"
            " deploy/slurm/prolog.sh",
        )
    except OSError as exc:
        yield Finding("environments", None, f"of pid {foreign}: {exc}")
    else:
        yield Finding("environments", True, "other users' environments can be read")


def _foreign_process(proc: Path) -> int | None:
    """Return a process of another user, of this one as root (who may read all)."""
    own = os.geteuid()
    try:
        names = [path.name for path in proc.iterdir() if path.name.isdigit()][:_PROCESSES_MAX]
    except OSError:
        return None
    for name in names:
        try:
            # Kernel threads have no environment, and anybody may read that nothing.
            if (proc / name).stat().st_uid != own and (proc / name / "cmdline").read_bytes():
                return int(name)
        except OSError:
            continue
    return os.getpid() if own == 0 else None


def _slurm(of: AllocationConfig, access: Access) -> Iterator[Finding]:
    node = Node(of.cgroup, of.proc, access.environ, of.prolog, of.slurm_node or None)
    try:
        jobs = node.jobs(0.0)
    except OSError as exc:
        yield Finding("slurm", False, f"its traces cannot be read: {exc}")
        return
    if jobs is None:
        missing = "no control group, prolog file or daemon of Slurm on this host"
        yield Finding("slurm", False if of.slurm == "on" else None, missing)
        return
    unknown = sorted(job.number for job in jobs if not job.complete)
    if unknown:
        yield Finding(
            "slurm",
            False,
            f"which cards jobs {', '.join(unknown[:8])} hold cannot be told in full, so no card"
            " is called free: install deploy/slurm/prolog.sh",
        )
    else:
        yield Finding("slurm", True, f"a node of Slurm, {len(jobs)} jobs, the cards of each known")
    confs = (Path(of.gres_conf),) if of.gres_conf else GRES_CONFS
    if not any(os.access(path, os.R_OK) for path in confs):
        yield Finding(
            "gres.conf", None, "none can be read: GPU indexes are taken in order of PCI addresses"
        )
    if not of.prolog.is_dir():
        yield Finding(
            "prolog",
            None,
            f"{of.prolog} is not there: a job that has no process yet is not seen;"
            " install deploy/slurm/prolog.sh",
        )
    for name, why in sorted(node.wrong_files.items()):
        yield Finding("prolog", False, f"{of.prolog / name}: {why}")


def _kubernetes(of: AllocationConfig, access: Access) -> Iterator[Finding]:
    try:
        data = asyncio.run(access.podresources())
        pods = message("ListPodResourcesResponse").FromString(data).pod_resources
    except (OSError, DecodeError) as exc:
        there = _exists(of.kubelet_socket)
        if of.kubernetes == "auto" and there is False:
            yield Finding("kubernetes", None, "no kubelet on this host")
            return
        hint = "" if of.helper.exists() else "; root's only: start flopwatch-privileged.socket"
        yield Finding("kubernetes", False, f"{of.kubelet_socket}: {exc}{hint}")
        return
    yield Finding("kubernetes", True, f"the kubelet answers: {len(pods)} pods")
    if not os.access(of.pod_logs, os.R_OK | os.X_OK):
        yield Finding(
            "pods",
            False,
            f"{of.pod_logs} cannot be listed: terminated pods and strangers cannot be told",
        )
    elif not cgroup.pods(of.cgroup):
        yield Finding(
            "pods", False, f"no pod's control group below {of.cgroup}: mount the host's there"
        )


def _exists(path: Path) -> bool | None:
    """Return whether a path exists; None where that may not be known."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return True

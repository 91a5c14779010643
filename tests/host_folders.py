"""A host's /proc and /sys/fs/cgroup as folders, for tests of who holds what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

UID_1 = "0f5a3c1e-1111-4c7b-9d1e-0a1b2c3d4e5f"
UID_2 = "7b2f9d84-2222-4b1a-8c3d-9e8f7a6b5c4d"


class FakeHost:
    """Processes and control groups that a test writes. ``v2`` false: one folder per controller."""

    def __init__(self, root: Path, *, v2: bool) -> None:
        self.proc = root / "proc"
        self.cgroup = root / "cgroup"
        self.prolog = root / "prolog"
        self.pod_logs = root / "pods"
        self.v2 = v2
        self.hidden: set[int] = set()
        self.proc.mkdir(parents=True)
        self.cgroup.mkdir()
        if v2:
            (self.cgroup / "cgroup.controllers").write_text("cpu memory\n")

    def process(
        self,
        pid: int,
        name: str = "python",
        *,
        group: str = "/user.slice",
        state: str = "S",
        parent: int = 1,
        **environ: str,
    ) -> None:
        """Start a process in a control group, by its path in it."""
        at = self.proc / str(pid)
        at.mkdir(exist_ok=True)
        fields = " ".join([state, str(parent), *["0"] * 17, "77", "0"])
        (at / "stat").write_text(f"{pid} ({name}) {fields}")
        (at / "comm").write_text(f"{name[:15]}\n")
        (at / "environ").write_text("\0".join(f"{k}={v}" for k, v in environ.items()))
        lines = [f"0::{group}"] if self.v2 else [f"5:devices:{group}", f"6:freezer:{group}", "0::/"]
        (at / "cgroup").write_text("\n".join(lines) + "\n")
        for folder in self.group(group):
            with (folder / "cgroup.procs").open("a") as file:
                file.write(f"{pid}\n")

    def group(self, path: str) -> list[Path]:
        """Make a control group; return its folders."""
        roots = [self.cgroup] if self.v2 else [self.cgroup / "devices", self.cgroup / "freezer"]
        folders = [root / path.lstrip("/") for root in roots]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return folders

    def end(self, pid: int, group: str = "") -> None:
        """End a process, and its control group with all below."""
        shutil.rmtree(self.proc / str(pid), ignore_errors=True)
        if group:
            for folder in self.group(group):
                shutil.rmtree(folder)

    def environ(self, pid: int) -> dict[str, str]:
        """Return an environment, as `Access.environ` does."""
        if pid in self.hidden:
            raise PermissionError(13, "hidden")
        text = (self.proc / str(pid) / "environ").read_text()
        return dict(entry.split("=", 1) for entry in text.split("\0") if entry)

    def slurm(self, job: str, task: str = "step_batch/task_0", scope: str = "") -> str:
        """Return the path of a Slurm job's control group."""
        if self.v2:
            name = job if job.startswith("s") else f"job_{job}"
            return f"/system.slice/{scope or 'slurmstepd.scope'}/{name}/{task}"
        return f"/{scope or 'slurm'}/uid_1000/job_{job}/{task}"

    def pod(self, namespace: str, name: str, uid: str) -> str:
        """Make a pod's log folder and control group; return the path of a container in it."""
        (self.pod_logs / f"{namespace}_{name}_{uid}").mkdir(parents=True)
        slice_ = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
        path = f"/kubepods.slice/kubepods-burstable.slice/{slice_}/cri-containerd-abc.scope"
        if not self.v2:
            path = f"/kubepods/burstable/pod{uid}/abc"
        self.group(path)
        return path

    def pod_ends(self, path: str) -> None:
        """Take a pod's control group away."""
        for folder in self.group(os.path.dirname(path)):
            shutil.rmtree(folder)

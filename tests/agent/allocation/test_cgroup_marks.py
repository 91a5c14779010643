"""Whose a process is, by recorded texts of /proc/<pid>/cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from flopwatch_agent.allocation import cgroup
from host_folders import UID_1, FakeHost

POD = f"pod:{UID_1}"
SLICE = UID_1.replace("-", "_")

RECORDED = {
    # Slurm 22.05 of Debian 12 (multiple slurmd), cgroup v1 with an empty v2 beside it
    "slurm-22.05-v1": (
        "9:name=systemd:/\n8:pids:/\n6:freezer:/slurm_lab001/uid_0/job_1/step_batch\n"
        "5:devices:/slurm_lab001/uid_0/job_1/step_batch/task_0\n3:cpuset:/\n0::/\n",
        {"slurm:1"},
    ),
    "slurm-v1-one-slurmd": (
        "5:devices:/slurm/uid_55/job_280678/step_interactive\n",
        {"slurm:280678"},
    ),
    "slurm-23.11-v2": (
        "0::/system.slice/slurmstepd.scope/job_1392969/step_0/user/task_0\n",
        {"slurm:1392969"},
    ),
    "slurm-v2-node-in-scope": (
        "0::/system.slice/gpu7_slurmstepd.scope/job_4/step_batch/user/task_special\n",
        {"slurm:4"},
    ),
    "slurm-26.05-sluid": (
        "0::/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0\n",
        {"slurm:s5K1KKYAYG5D00"},
    ),
    "ssh-adopted": (
        "0::/system.slice/slurmstepd.scope/job_42/step_extern/user/task_0",
        {"slurm:42"},
    ),
    "slurmstepd-itself": ("0::/system.slice/slurmstepd.scope/system\n", set()),
    "slurmd-checks-the-node": ("0::/system.slice/slurmd.service\n", {cgroup.SCHEDULER}),
    "containerd-systemd-v2": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice"
        "/cri-containerd-0123abcd.scope\n",
        {POD},
    ),
    "cri-o-systemd-v2-guaranteed": (
        f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/crio-0123abcd.scope/container\n",
        {POD},
    ),
    "containerd-cgroupfs-v1": (f"4:memory:/kubepods/besteffort/pod{UID_1}/0123abcd\n", {POD}),
    "cgroupfs-v2-guaranteed": (f"0::/kubepods/pod{UID_1}/0123abcd\n", {POD}),
    "kubelet-in-a-slice": (
        "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
        f"/kubelet-kubepods-besteffort-pod{SLICE}.slice/cri-containerd-0.scope\n",
        {POD},
    ),
    "static-pod": (
        "0::/kubepods.slice/kubepods-burstable.slice"
        "/kubepods-burstable-pod1c9e5a3d7f2b4c6d8e0f1a2b3c4d5e6f.slice/crio-1.scope\n",
        {"pod:1c9e5a3d7f2b4c6d8e0f1a2b3c4d5e6f"},
    ),
    "slurmd-in-a-pod": (
        f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-1.scope"
        "/system.slice/slurmstepd.scope/job_9/step_0/user/task_0\n",
        {POD, "slurm:9"},
    ),
    "login-session": ("0::/user.slice/user-1000.slice/session-3.scope\n", set()),
    "docker": ("0::/system.slice/docker-0123abcd.scope\n", set()),
    "our-probe": ("0::/system.slice/system-flopwatch/flopwatch-probe@0.service\n", {cgroup.OURS}),
    "a-user-called-slurm": ("0::/home/slurm/uid_x/job_1\n", set()),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_control_groups_say_whose_a_process_is(name: str) -> None:
    text, expected = RECORDED[name]
    assert cgroup.marks(text) == expected


@pytest.mark.parametrize("v2", [True, False])
def test_pods_are_found_by_their_control_groups(tmp_path: Path, v2: bool) -> None:
    host = FakeHost(tmp_path, v2=v2)
    host.pod("ml", "train-0", UID_1)
    assert set(cgroup.pods(host.cgroup)) == {UID_1}


def test_slurm_is_found_inside_of_a_pod(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=True)
    inside = host.pod("slinky", "slurmd-0", UID_1) + "/system.slice/slurmstepd.scope"
    host.process(7, group=f"{inside}/job_9/step_0/user/task_0")
    (root,) = cgroup.slurm_roots(host.cgroup)
    (directories,) = cgroup.job_directories(root, None).values()
    assert cgroup.pids(directories[0], 10) == [(7, "step_0/user/task_0")]

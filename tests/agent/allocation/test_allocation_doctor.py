"""Every right that is missing is said in words; and the allocation of a configuration."""

from __future__ import annotations

import asyncio
import os
import pwd
import threading
from pathlib import Path
from typing import Any

import pytest

from fake_kubelet import FakeKubelet, pod
from flopwatch_agent.allocation import doctor as module
from flopwatch_agent.allocation.doctor import doctor
from flopwatch_agent.allocation.registry import build_access, build_allocation
from flopwatch_agent.config import AgentConfig, AllocationConfig, load_config
from flopwatch_agent.jobs import JobTable
from flopwatch_agent.labels import Environments
from flopwatch_agent.reading import Device, Process, Reading
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Bucket
from host_folders import UID_1, FakeHost

_MYSELF = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path, v2=True)
    host.process(1, "systemd", group="/init.scope")
    (host.proc / "1" / "cmdline").write_text("/sbin/init")
    return host


def config(host: FakeHost, **more: Any) -> AgentConfig:
    return AgentConfig(
        allocation=AllocationConfig(
            proc=host.proc,
            cgroup=host.cgroup,
            prolog=host.prolog,
            pod_logs=host.pod_logs,
            gres_conf=str(host.proc / "gres.conf"),
            kubelet_socket=host.proc / "kubelet.sock",
            helper=host.proc / "privileged.sock",
            **more,
        )
    )


def found(host: FakeHost, **more: Any) -> dict[str, tuple[bool | None, str]]:
    return {what: (ok, text) for what, ok, text in doctor(config(host, **more))}


def test_a_host_without_a_scheduler_lacks_nothing(host: FakeHost) -> None:
    said = found(host)
    assert {what: ok for what, (ok, _) in said.items()} == {
        "processes": True,
        "environments": None,
        "slurm": None,
        "kubernetes": None,
    }


def test_a_hidden_proc_and_a_cgroup_namespace_are_told(host: FakeHost) -> None:
    (host.proc / "1" / "cgroup").write_text("0::/../../init.scope\n")
    assert found(host)["processes"][0] is False
    assert "cgroup namespace" in found(host)["processes"][1]
    (host.proc / "1" / "cgroup").unlink()
    assert "hidepid" in found(host)["processes"][1]


def test_environments_that_may_not_be_read_are_told_with_the_way_out(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, pid: int) -> dict[str, str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flopwatch_agent.access.Direct.environ", refuse)
    monkeypatch.setattr(module, "_foreign_process", lambda proc: 1)
    ok, text = found(host)["environments"]
    assert ok is False
    assert "flopwatch-privileged.socket" in text
    assert "prolog.sh" in text


def test_a_node_of_slurm_says_what_it_cannot_know(host: FakeHost) -> None:
    host.process(10, group=host.slurm("6"))
    said = found(host)
    assert (said["slurm"][0], "jobs 6 " in said["slurm"][1]) == (False, True)
    assert said["gres.conf"][0] is None
    assert "prolog.sh" in said["prolog"][1]
    host.prolog.mkdir()
    (host.prolog / "6.json").write_text('{"job": "6", "gpus": "0"}')
    assert found(host)["slurm"] == (True, "a node of Slurm, 1 jobs, the cards of each known")
    (host.prolog / "7.json").write_text("{")
    assert found(host)["prolog"][0] is False


def test_schedulers_that_are_configured_and_not_there_are_failures(host: FakeHost) -> None:
    said = found(host, slurm="on", kubernetes="on")
    assert (said["slurm"][0], said["kubernetes"][0]) == (False, False)
    assert "flopwatch-privileged.socket" in said["kubernetes"][1]


def test_a_kubelet_that_answers_and_pods_that_cannot_be_seen(host: FakeHost) -> None:
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with FakeKubelet(host.proc / "kubelet.sock") as kubelet:
            kubelet.pods = [pod("ml", "a", "GPU-1")]
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    try:
        said = found(host)
        assert said["kubernetes"] == (True, "the kubelet answers: 1 pods")
        assert "cannot be listed" in said["pods"][1]
        host.pod_logs.mkdir()
        assert "no pod's control group" in found(host)["pods"][1]
        host.pod("ml", "a", UID_1)
        assert "pods" not in found(host)
    finally:
        stop.set()
        thread.join()


# ---- what a configuration makes -----------------------------------------------------------------


async def test_the_allocation_of_a_configuration(host: FakeHost, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
        [allocation]
        proc = "{host.proc}"
        cgroup = "{host.cgroup}"
        prolog = "{host.prolog}"
        gres_conf = "{host.proc}/gres.conf"
        kubernetes = "off"
        [[classes]]
        partition = "int*"
        workload_class = "interactive"
        """
    )
    (host.proc / "gres.conf").write_text("Name=gpu File=/dev/nvidia[4-5]")
    host.process(
        10,
        group=host.slurm("6"),
        SLURM_JOB_ID="6",
        SLURM_JOB_GPUS="1",
        SLURM_JOB_PARTITION="interactive",
        SLURM_JOB_ACCOUNT="pre",
    )
    loaded = load_config(path, {})
    allocation = build_allocation(loaded, Environments(host.proc, build_access(loaded)))
    await allocation.refresh()
    reading = Reading(
        device=Device(slot="0000:18:00.0", kind="gpu", sku="H100", uuid="GPU-5", minor=5),
        taken_unix_ms=0,
        boottime_ns=0,
        processes=(Process(pid=10),),
    )
    (share,) = allocation.shares(reading, JobTable())
    assert (share.job, share.bucket, share.source) == ("6", Bucket.ACTIVE, "slurm")
    assert (share.team, share.workload_class) == ("pre", "interactive")
    assert list(allocation.events()) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[classes]]\nworkload_class = 'training'\n", "needs a pattern"),
        ("[[classes]]\npartition = 'a'\nworkload_class = 'fun'\n", "allowed are training"),
        ("[[classes]]\npartitions = 'a'\nworkload_class = 'eval'\n", "partition"),
        ("[allocation]\nslurm = true\n", "allowed are auto, on, off"),
        ("[allocation]\nslurmnode = 'n1'\n", "nearest known key is allocation.slurm_node"),
    ],
)
def test_a_wrong_key_or_class_is_told(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        load_config(path, {})


def test_a_wrong_file_of_holds_ends_the_start(tmp_path: Path) -> None:
    wrong = AgentConfig(allocation=AllocationConfig(file=str(tmp_path / "nowhere.toml")))
    with pytest.raises(UsageError, match="nowhere"):
        build_allocation(wrong, Environments())


def test_a_process_whose_environment_is_hidden_is_still_its_owners(host: FakeHost) -> None:
    host.process(10)
    (host.proc / "10" / "environ").unlink()
    assert Environments(host.proc, build_access(config(host))).labels(10).user == _MYSELF

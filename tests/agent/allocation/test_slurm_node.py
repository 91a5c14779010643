"""Slurm by its traces on the node: control groups, prolog files, environments."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from flopwatch_agent.allocation.holders import GRES, MINOR, UUID, Place, SilentError
from flopwatch_agent.allocation.slurm import UNPLACED_GRACE_MS, Slurm
from flopwatch_agent.allocation.slurm_node import GROUP_GONE_MS, LOOK_MS, Job, Node, device_list
from flopwatch_agent.clock import SystemClock
from host_folders import FakeHost

SCRIPTS = Path(__file__).parents[3] / "deploy" / "slurm"
SLUID = "s5K1KKYAYG5D00"


class Stopped(SystemClock):
    """A clock that a test moves."""

    seconds = 1000.0

    def monotonic_seconds(self) -> float:
        return self.seconds


@pytest.fixture(params=["v1", "v2"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path, v2=request.param == "v2")


@pytest.fixture
def v2(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path, v2=True)


def node(host: FakeHost, name: str | None = None) -> Node:
    return Node(host.cgroup, host.proc, host.environ, host.prolog, name)


def the_job(host: FakeHost, now_ms: float = 0.0) -> Job:
    (job,) = node(host).jobs(now_ms) or ()
    return job


def left(host: FakeHost, job: str, **said: object) -> None:
    host.prolog.mkdir(exist_ok=True)
    (host.prolog / f"{job}.json").write_text(json.dumps({"job": job, **said}))


def gpus(*numbers: int) -> tuple[Place, ...]:
    return tuple(Place(GRES, number) for number in numbers)


def test_a_job_is_its_control_group_and_its_cards_are_those_of_slurm_job_gpus(
    host: FakeHost,
) -> None:
    host.process(
        10,
        group=host.slurm("6"),
        SLURM_JOB_ID="6",
        SLURM_JOB_GPUS="2,3,4",
        CUDA_VISIBLE_DEVICES="0,1,2",
        SLURM_JOB_USER="ada",
        SLURM_JOB_ACCOUNT="pre",
        SLURM_JOB_PARTITION="h100",
        SLURM_JOB_QOS="high",
    )
    job = the_job(host)
    assert (job.number, job.places, job.complete) == ("6", gpus(2, 3, 4), True)
    assert job.owners == frozenset({"slurm:6"})
    assert (job.user, job.account, job.partition, job.qos) == ("ada", "pre", "h100", "high")


def test_a_prolog_file_stands_before_the_environment_which_its_user_may_write(
    host: FakeHost,
) -> None:
    host.process(10, group=host.slurm("6"), SLURM_JOB_ID="6", SLURM_JOB_GPUS="7")
    left(host, "6", gpus="0-1", account="pre", user="ada")
    job = the_job(host)
    assert (job.places, job.account, job.user) == (gpus(0, 1), "pre", "ada")


def test_another_jobs_number_in_an_environment_is_not_heard(host: FakeHost) -> None:
    host.process(10, group=host.slurm("6"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0")
    assert (the_job(host).places, the_job(host).complete) == ((), False)


def test_minor_numbers_and_uuids_of_a_prolog_file_are_taken_first(v2: FakeHost) -> None:
    left(v2, "6", gpus="0", minors="5")
    assert the_job(v2).places == (Place(MINOR, 5),)
    left(v2, "6", gpus="0", minors="5", uuids="MIG-Aa,MIG-bB")
    assert the_job(v2).places == (Place(UUID, "mig-aa"), Place(UUID, "mig-bb"))


def test_a_job_without_gpus_holds_none_and_one_that_is_hidden_is_not_known(host: FakeHost) -> None:
    host.process(10, group=host.slurm("6"), SLURM_JOB_ID="6")
    host.process(11, group=host.slurm("7"), SLURM_JOB_ID="7", SLURM_JOB_GPUS="1")
    host.hidden.add(11)
    jobs = {job.number: (job.places, job.complete) for job in node(host).jobs(0.0) or ()}
    assert jobs == {"6": ((), True), "7": ((), False)}


def test_a_step_counts_by_its_own_cards_not_by_those_of_the_script_on_another_node(
    host: FakeHost,
) -> None:
    for pid, step, gpu in ((10, "0", "1"), (11, "1", "3")):
        group = host.slurm("6", f"step_{step}/task_0")
        host.process(
            pid,
            group=group,
            SLURM_JOB_ID="6",
            SLURM_JOB_GPUS="4,5",
            SLURM_STEP_ID=step,
            SLURM_STEP_GPUS=gpu,
        )
    host.process(12, group=host.slurm("6", "step_extern/task_0"), SLURM_JOB_ID="6")
    assert (the_job(host).places, the_job(host).complete) == (gpus(1, 3), False)
    host.process(13, group=host.slurm("6"), SLURM_JOB_ID="6", SLURM_JOB_GPUS="1-3")
    assert (the_job(host).places, the_job(host).complete) == (gpus(1, 2, 3), True)


def test_a_sluid_in_the_path_is_the_job_that_its_processes_name(v2: FakeHost) -> None:
    v2.process(9, "slurmstepd", group=v2.slurm(SLUID, "step_batch/slurm"))
    v2.process(
        10,
        group=v2.slurm(SLUID, "step_batch/user/task_0"),
        SLURM_JOB_ID="77",
        SLURM_JOB_SLUID=SLUID,
        SLURM_JOB_GPUS="0",
    )
    job = the_job(v2)
    assert (job.number, job.places) == ("77", gpus(0))
    assert job.owners == {"slurm:77", f"slurm:{SLUID}"}


def test_a_sluid_that_only_a_prolog_file_knows(v2: FakeHost) -> None:
    v2.process(10, group=v2.slurm(SLUID))
    assert (the_job(v2).number, the_job(v2).complete) == (SLUID, False)
    left(v2, "77", sluid=SLUID, gpus="4")
    assert (the_job(v2).number, the_job(v2).places) == ("77", gpus(4))


def test_of_several_nodes_on_one_host_only_ours(host: FakeHost) -> None:
    scopes = ("n1_slurmstepd.scope", "n2_slurmstepd.scope") if host.v2 else ("slurm_n1", "slurm_n2")
    for pid, (job, scope) in enumerate(zip("67", scopes, strict=True), 10):
        group = host.slurm(job, scope=scope)
        host.process(pid, group=group, SLURM_JOB_ID=job, SLURM_JOB_GPUS="0")
    left(host, "8", node="n1", gpus="3")
    left(host, "9", node="n2", gpus="3")
    assert {job.number for job in node(host, "n1").jobs(0.0) or ()} == {"6", "8"}
    assert {job.number for job in node(host).jobs(0.0) or ()} == {"6", "7", "8", "9"}


def test_an_allocation_without_a_process_is_held_by_its_prolog_file(host: FakeHost) -> None:
    left(host, "6", gpus="0,1", sluid="")
    assert the_job(host).places == gpus(0, 1)


def test_a_prolog_file_without_its_epilog_ends_after_its_control_group(host: FakeHost) -> None:
    group = host.slurm("6")
    host.process(10, group=group, SLURM_JOB_ID="6")
    left(host, "6", gpus="0")
    reader = node(host)
    assert reader.jobs(0.0)
    host.end(10, os.path.dirname(os.path.dirname(group)))
    assert reader.jobs(GROUP_GONE_MS - 1)
    assert reader.jobs(GROUP_GONE_MS) == ()


def test_linuxproc_jobs_are_the_children_of_slurmstepd(v2: FakeHost) -> None:
    reader = node(v2)
    assert reader.jobs(0.0) is None
    v2.process(2, "slurmd")
    assert reader.jobs(LOOK_MS - 1) is None  # looking costs: not every time
    assert reader.jobs(LOOK_MS) == ()
    v2.process(9, "slurmstepd")
    v2.process(10, "slurmstepd", parent=9)  # a fork that has not become the task yet
    assert reader.jobs(LOOK_MS) == ()
    v2.process(10, "python", parent=9, SLURM_JOB_ID="6", SLURM_JOB_GPUS="5")
    v2.process(11, "python", parent=1, SLURM_JOB_ID="7", SLURM_JOB_GPUS="6")
    (job,) = reader.jobs(LOOK_MS) or ()
    assert (job.number, job.places) == ("6", gpus(5))
    assert not reader.grouped


def test_a_job_is_suspended_where_what_slurmstepd_started_is_stopped(host: FakeHost) -> None:
    host.process(9, "slurmstepd", group=host.slurm("6", "step_batch"))
    host.process(10, group=host.slurm("6"), parent=9, state="T", SLURM_JOB_ID="6")
    host.process(11, group=host.slurm("6"), parent=10)  # Slurm 22.05 leaves children be
    assert the_job(host).suspended
    host.process(12, group=host.slurm("6", "step_0/task_0"), parent=9)
    assert not the_job(host).suspended


def test_a_pid_that_comes_back_is_read_again(v2: FakeHost) -> None:
    reader, group = node(v2), v2.slurm("6")
    v2.process(10, group=group, SLURM_JOB_ID="6", SLURM_JOB_GPUS="0")
    assert reader.jobs(0.0)
    v2.end(10, os.path.dirname(os.path.dirname(group)))
    assert reader.jobs(LOOK_MS) == ()
    v2.process(10, group=v2.slurm("7"), SLURM_JOB_ID="7", SLURM_JOB_GPUS="1")
    (job,) = reader.jobs(LOOK_MS) or ()
    assert (job.number, job.places) == ("7", gpus(1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a *:* rwm\n", None),  # all devices were denied one by one: the kernel shows none of it
        ("c 195:* rw\n", None),
        ("c 1:3 rwm\nc 195:2 rw\nc 195:5 rw\nc 195:255 rw\n", (Place(MINOR, 2), Place(MINOR, 5))),
        ("c 1:3 rwm\n", ()),
    ],
)
def test_a_device_list_counts_where_it_can_be_read_back(
    tmp_path: Path, text: str, expected: tuple[Place, ...] | None
) -> None:
    (tmp_path / "devices.list").write_text(text)
    assert device_list([tmp_path / "freezer", tmp_path]) == expected


async def test_slurm_speaks_where_its_traces_are_and_must_where_it_is_configured(
    host: FakeHost,
) -> None:
    clock = Stopped()
    assert await Slurm(node(host), clock, required=False).ask() is None
    with pytest.raises(SilentError, match="no control group"):
        await Slurm(node(host), clock, required=True).ask()
    host.group("/slurm" if not host.v2 else "/system.slice/slurmstepd.scope")
    word = await Slurm(node(host), clock, required=False).ask()
    assert word is not None
    assert (word.held, word.only) == ({}, None)


async def test_a_job_of_unknown_cards_is_unplaced_once_it_has_not_just_begun(
    host: FakeHost,
) -> None:
    clock = Stopped()
    slurm = Slurm(node(host), clock, required=False, gres_confs=())
    host.process(10, group=host.slurm("6"), SLURM_JOB_ID="6")
    host.hidden.add(10)
    word = await slurm.ask()
    assert word is not None
    assert word.unplaced == ()
    clock.seconds += UNPLACED_GRACE_MS / 1000
    word = await slurm.ask()
    assert word is not None
    assert [holder.job for holder in word.unplaced] == ["6"]


async def test_gres_conf_counts_by_the_lines_of_this_node(v2: FakeHost, tmp_path: Path) -> None:
    conf = tmp_path / "gres.conf"
    conf.write_text(
        "NodeName=m[1-2] Name=gpu File=/dev/nvidia[0-3]\n"
        "NodeName=n[1-8] Name=gpu File=/dev/nvidia[4-5]\n"
    )
    v2.process(10, group=v2.slurm("6"), SLURM_JOB_ID="6", SLURM_JOB_GPUS="1")
    for hostname, place in (("n7", Place(MINOR, 5)), ("m1", Place(MINOR, 1)), ("x", gpus(1)[0])):
        slurm = Slurm(*(node(v2), Stopped()), required=False, gres_confs=(conf,), hostname=hostname)
        word = await slurm.ask()
        assert word is not None
        assert list(word.held) == [place]


def test_what_is_remembered_of_jobs_goes_with_them(v2: FakeHost) -> None:
    reader = node(v2)
    for number in range(50):
        group = v2.slurm(str(number))
        v2.process(10, group=group, SLURM_JOB_ID=str(number))
        left(v2, str(number), gpus="0")
        assert len(reader.jobs(0.0) or ()) == 1
        v2.end(10, os.path.dirname(os.path.dirname(group)))
        (v2.prolog / f"{number}.json").unlink()
        assert reader.jobs(0.0) == ()
    assert reader._group_seen_ms == {}
    assert reader._environments._known == {}


async def test_a_prolog_file_that_makes_no_sense_is_told_once(host: FakeHost) -> None:
    slurm = Slurm(node(host), Stopped(), required=False)
    host.prolog.mkdir()
    (host.prolog / "6.json").write_text('{"job": ')
    await slurm.ask()
    (event,) = slurm.events()
    assert (event.kind, event.text[:6]) == ("prolog_file", "6.json")
    await slurm.ask()
    assert slurm.events() == ()


@pytest.mark.parametrize(
    ("gpu", "places"),
    [
        ({"SLURM_JOB_GPUS": "0,2-3", "CUDA_VISIBLE_DEVICES": "0,2,3"}, gpus(0, 2, 3)),
        ({"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "MIG-a1"}, (Place(UUID, "mig-a1"),)),
        ({}, ()),
    ],
)
def test_the_shipped_scripts_say_it_and_take_it_back(
    v2: FakeHost, gpu: dict[str, str], places: tuple[Place, ...]
) -> None:
    environ = {
        "FLOPWATCH_PROLOG_DIRECTORY": str(v2.prolog),
        "SLURM_JOB_ID": "81",
        "SLURM_JOB_USER": "ada",
        "SLURM_JOB_ACCOUNT": 'x", "uuids": "GPU-1',  # no name: left out, not quoted
        "SLURM_JOB_PARTITION": "h100",
        "SLURMD_NODENAME": "n1",
        **gpu,
    }
    subprocess.run([SCRIPTS / "prolog.sh"], env=environ, check=True)
    job = the_job(v2)
    assert (job.number, job.places, job.user, job.account) == ("81", places, "ada", None)
    subprocess.run([SCRIPTS / "epilog.sh"], env=environ, check=True)
    assert list(v2.prolog.iterdir()) == []


def test_the_scripts_never_fail_a_job(tmp_path: Path) -> None:
    nowhere = {"SLURM_JOB_ID": "81", "FLOPWATCH_PROLOG_DIRECTORY": "/proc/nowhere"}
    for environ in (nowhere, {}, {"SLURM_JOB_ID": "../../etc"}):
        for script in ("prolog.sh", "epilog.sh"):
            done = subprocess.run([SCRIPTS / script], env=environ, cwd=tmp_path, check=True)
            assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []

"""Who holds a card where no scheduler speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flopwatch_agent.allocation import Allocation
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.interval import Fold
from flopwatch_agent.jobs import JobTable, Message
from flopwatch_agent.labels import Environments, Labels
from flopwatch_agent.reading import Device, Process, Reading
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence, Bucket

CARD = Device(slot="0000:18:00.0", kind="gpu", sku="NVIDIA H100 80GB HBM3", uuid="GPU-Aa")
HOST = Device(slot="cpu", kind="cpu", sku="EPYC")
MINUTE = 60


def reading(
    second: float, pids: tuple[int, ...] | None = (), sm: Value | None = 0.5, **more: Any
) -> Reading:
    """Return a reading with these processes."""
    return Reading(
        taken_unix_ms=1_793_534_400_000 + int(second * 1000),
        boottime_ns=int(second * 1e9),
        values={} if sm is None else {"sm_active_ratio": sm},
        processes=None if pids is None else tuple(Process(pid=pid) for pid in pids),
        **{"device": CARD, **more},
    )


def processes(**labels: Labels) -> Processes:
    """Return the source; labels are named p<pid>."""
    return Processes(lambda pid: labels.get(f"p{pid}", Labels()))


def test_it_is_an_allocation() -> None:
    source: Allocation = processes()
    assert source.name == "processes"


def test_a_process_holds_its_card_from_its_first_reading_to_the_first_without_it() -> None:
    source, table, fold = processes(), JobTable(), Fold()
    rows = []
    for second, pids in enumerate([(), (5,), (5,), (), (), ()]):
        now = reading(second, pids)
        rows += fold.add(now, source.shares(now, table))
    rows += fold.close(2_000_000_000_000)
    assert [(row.bucket, row.duration_ms, row.texts["job"]) for row in rows] == [
        (Bucket.FREE, 1000, None),
        (Bucket.ACTIVE, 2000, "pid-5"),
        (Bucket.FREE, 2000, None),
    ]


def test_processes_of_one_job_are_one_share_and_jobs_share_equally() -> None:
    source = processes(p1=Labels(job="a", team="t"), p2=Labels(job="a"), p3=Labels(job="b"))
    shares = source.shares(reading(0, (1, 2, 3)), JobTable())
    assert [(s.job, s.team, s.weight) for s in shares] == [("a", "t", 0.5), ("b", None, 0.5)]


def test_sms_at_zero_for_half_an_hour_make_a_held_card_idle_from_then_on() -> None:
    source, table = processes(), JobTable()
    buckets = [
        source.shares(reading(minute * MINUTE, (5,), 0.0), table)[0].bucket for minute in range(32)
    ]
    assert buckets == [Bucket.ACTIVE] * 30 + [Bucket.IDLE_ALLOC] * 2
    assert source.shares(reading(1980, (5,), 0.2), table)[0].bucket is Bucket.ACTIVE


@pytest.mark.parametrize("unknown", [None, Absence.FAILED, Absence.NOT_SUPPORTED])
def test_not_known_is_not_idle(unknown: Value | None) -> None:
    source, table = processes(), JobTable()
    for minute in range(60):
        share = source.shares(reading(minute * MINUTE, (5,), unknown), table)[0]
        assert share.bucket is Bucket.ACTIVE


def test_a_declared_job_names_the_share_and_brings_its_flops() -> None:
    source, table = processes(p5=Labels(job="from-env")), JobTable()
    declared: dict[str, Any] = {"v": 1, "pid": 5, "job": "llama", "device": "cuda:GPU-aA"}
    table.apply(Message(**declared, event="start", dtype="bf16", model_flops_total=0.0), 0)
    table.apply(Message(**declared, dtype="bf16", model_flops_total=4e12), 1000)
    (share,) = source.shares(reading(0, (5,)), table)
    assert (share.job, share.dtype, share.model_flops_total) == ("llama", "bf16", 4e12)


def test_a_card_declared_without_a_process_is_idle_alloc_and_active_if_nobody_can_list_them() -> (
    None
):
    source, table = processes(), JobTable()
    table.apply(Message(v=1, pid=5, job="llama", device="cuda:GPU-Aa"), 0)
    (share,) = source.shares(reading(0, ()), table)
    assert (share.bucket, share.job, share.resident) == (Bucket.IDLE_ALLOC, "llama", False)
    (share,) = processes().shares(reading(0, None), table)
    assert (share.bucket, share.resident) == (Bucket.ACTIVE, True)


def test_a_processor_is_held_exactly_while_a_declared_job_holds_it() -> None:
    source, table = processes(), JobTable()
    idle = reading(0, (1, 2), device=HOST)
    assert source.shares(idle, table)[0].bucket is Bucket.FREE
    table.apply(Message(v=1, pid=5, job="toy", device="cpu", event="start"), 0)
    assert source.shares(idle, table)[0].bucket is Bucket.ACTIVE
    table.apply(Message(v=1, pid=5, job="toy", device="cpu", event="exit"), 0)
    assert source.shares(idle, table)[0].bucket is Bucket.FREE


def proc_entry(proc: Path, pid: int, started: int, environ: bytes) -> None:
    """Write what /proc says of a process."""
    (proc / str(pid)).mkdir(parents=True, exist_ok=True)
    fields = " ".join(["S", *["0"] * 18, str(started), "0"])
    (proc / str(pid) / "stat").write_text(f"{pid} (a (b) c) {fields}")
    (proc / str(pid) / "environ").write_bytes(environ)


def test_labels_come_from_the_environment_once_per_pid_and_start_time(tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    proc_entry(tmp_path, 5, 100, b"SLURM_JOB_ID=81\0SLURM_JOB_ACCOUNT=pre\0FLOPWATCH_DTYPE=fp8\0X")
    labels = environments.labels(5)
    assert (labels.job, labels.team, labels.dtype) == ("81", "pre", "fp8")
    proc_entry(tmp_path, 5, 100, b"FLOPWATCH_JOB=other")
    assert environments.labels(5).job == "81"
    proc_entry(tmp_path, 5, 200, b"FLOPWATCH_JOB=other\0SLURM_JOB_ID=82")
    seen = [environments.labels(5).job for _ in range(20)]
    assert seen[-1] == "other"  # looked at again, if not at every question
    assert environments.labels(6) == Labels()


def test_this_process_can_be_read() -> None:
    environments = Environments()
    environments.labels(1)
    assert environments.unreadable_total <= 1

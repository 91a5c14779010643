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


def held(seconds: list[tuple[int, ...] | None], **labels: Labels) -> list[tuple[Bucket, str, int]]:
    """Return (bucket, job, ms) of a card with these processes, a second apart; of like neighbours the sum."""
    source, fold, rows = processes(**labels), Fold(), []
    for second, pids in enumerate(seconds):
        now = reading(second, pids)
        rows += fold.add(now, source.shares(now, JobTable()))
    rows += fold.close(2_000_000_000_000)
    spans: list[tuple[Bucket, str, int]] = []
    for row in sorted(rows, key=lambda row: (row.start_unix_ms, row.texts["job"] or "")):
        card_ms = row.card_times["card_ms"]
        span = (row.bucket, row.texts["job"] or "", card_ms)
        if spans and spans[-1][:2] == span[:2]:
            span = (*span[:2], spans.pop()[2] + card_ms)
        spans.append(span)
    return spans


def test_a_process_in_one_reading_alone_holds_nothing() -> None:
    free, active = Bucket.FREE, Bucket.ACTIVE
    assert held([(), (5,), (), ()]) == [(free, "", 3000)]
    assert held([(5,), (), ()]) == [(free, "", 2000)]  # also in the agent's first reading
    assert held([(), (5,), (6,), ()]) == [(free, "", 3000)]
    assert held([(), (5,), (5, 6), (5,), ()]) == [
        *((free, "", 1000), (active, "pid-5", 3000))
    ]  # a flash takes nothing of who stays
    assert held([(), (5,)]) == [(free, "", 1000)]  # not decided yet: not accounted for


def test_a_reading_without_a_list_confirms_nobody_and_ends_nobody() -> None:
    free, active = Bucket.FREE, Bucket.ACTIVE
    assert held([(), (5,), None, None, ()]) == [(free, "", 4000)]
    assert held([(), (5,), None, (5,), ()]) == [(free, "", 3000), (active, "pid-5", 1000)]
    assert held([(5,), (5,), None, None, ()]) == [(active, "pid-5", 4000)]
    assert held([(5,), (5, 6), None, (5,), ()]) == [(active, "pid-5", 4000)]


@pytest.mark.parametrize("failure", ["released", "unresponsive"])
def test_a_flash_before_the_driver_is_let_go_or_falls_silent_holds_nothing(failure: str) -> None:
    source, fold, rows = processes(), Fold(), []
    silent: dict[str, Any] = {"pids": None, "sm": None, "alive": False, "failure": failure}
    for second, said in enumerate([{"pids": (5,)}, silent, silent, {"pids": ()}, {"pids": ()}]):
        now = reading(second, **said)
        rows += fold.add(now, source.shares(now, JobTable()))
    rows += fold.close(2_000_000_000_000)
    assert {row.bucket for row in rows} == {Bucket.FREE}
    assert sum(row.duration_ms for row in rows) == 4000


def test_a_process_that_declares_itself_counts_at_once() -> None:
    source, table, fold, rows = processes(), JobTable(), Fold(), []
    table.apply(Message(v=1, pid=5, job="llama"), 0)
    for second, pids in enumerate([(), (5, 6), (), ()]):
        now = reading(second, pids)
        rows += fold.add(now, source.shares(now, table))
    rows += fold.close(2_000_000_000_000)
    assert [(row.bucket, row.duration_ms, row.texts["job"]) for row in rows] == [
        (Bucket.FREE, 1000, None),
        (Bucket.ACTIVE, 1000, "llama"),
        (Bucket.FREE, 1000, None),
    ]


def test_a_job_whose_next_process_is_a_flash_ends_with_its_last_one() -> None:
    same = {"p5": Labels(job="a"), "p6": Labels(job="a")}
    assert held([(5,), (5,), (6,), (), ()], **same) == [
        *((Bucket.ACTIVE, "a", 2000), (Bucket.FREE, "", 2000))
    ]
    assert held([(5,), (5,), (6,), (6,), ()], **same) == [(Bucket.ACTIVE, "a", 4000)]


def test_a_flash_leaves_a_declared_card_to_its_declaration() -> None:
    source, table, fold, rows = processes(), JobTable(), Fold(), []
    table.apply(Message(v=1, pid=9, job="llama", device="cuda:GPU-Aa"), 0)
    for second, pids in enumerate([(), (5,), (), ()]):
        now = reading(second, pids)
        rows += fold.add(now, source.shares(now, table))
    rows += fold.close(2_000_000_000_000)
    assert {(row.bucket, row.texts["job"]) for row in rows} == {(Bucket.IDLE_ALLOC, "llama")}
    assert sum(row.card_times["resident_ms"] for row in rows) == 0


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


def test_what_is_said_of_every_card_of_a_job_counts_where_its_processes_are() -> None:
    source, table = processes(p5=Labels(job="llama", dtype="bf16")), JobTable()
    said: dict[str, Any] = {"v": 1, "pid": 99, "job": "llama", "device": "*", "phase": "eval"}
    table.apply(Message(**said, event="start", steps_total=0), 0)
    source.shares(reading(0, (5,)), table)
    table.apply(Message(**said, steps_total=7), 1000)
    (share,) = source.shares(reading(1, (5,)), table)
    assert (share.job, share.dtype, share.phase) == ("llama", "bf16", "eval")
    assert share.counters == {"steps_count": 7}
    (free,) = source.shares(reading(2, ()), table)
    assert (free.bucket, free.counters) == (Bucket.FREE, None)


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

"""What jobs declare: the table's accounts, and the socket's manners."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flopwatch_agent import jobs
from flopwatch_agent.jobs import Intake, JobTable, Message
from flopwatch_agent.labels import Labels
from flopwatch_proto.errors import UsageError


def message(pid: int = 7, **keys: Any) -> Message:
    """Return a message of a job on the processor."""
    return Message(**{"v": 1, "pid": pid, "job": "llama", "device": "cpu", **keys})


def nobody(pid: int) -> bool:
    return False


def everybody(pid: int) -> bool:
    return True


def test_several_ranks_of_a_job_on_one_device_are_summed() -> None:
    table = JobTable()
    for pid in (7, 8):
        table.apply(message(pid, event="start", model_flops_total=0.0), 0)
    table.apply(message(7, model_flops_total=3e12), 1000)
    table.apply(message(8, model_flops_total=4e12), 1000)
    assert table.flops_total("cpu", "llama") == pytest.approx(7e12)


def test_an_account_never_falls_when_a_rank_leaves_or_restarts_its_counter() -> None:
    table = JobTable()
    table.apply(message(7, event="start", model_flops_total=0.0), 0)
    table.apply(message(7, model_flops_total=9e12), 1000)
    table.apply(message(7, event="start", model_flops_total=1e12), 2000)
    table.apply(message(7, event="exit", model_flops_total=2e12), 3000)
    assert table.flops_total("cpu", "llama") == pytest.approx(11e12)
    assert table.for_device("cpu") == ()
    assert table.finals("cpu") == {("llama", None): pytest.approx(11e12)}


def test_what_a_process_did_before_it_was_first_heard_is_not_counted() -> None:
    table = JobTable()
    table.apply(message(7, model_flops_total=5e18), 0)
    table.apply(message(8, model_flops_total=6e18), 0)
    table.apply(message(7, model_flops_total=5e18 + 1e15), 1000)
    assert table.flops_total("cpu", "llama") == pytest.approx(1e15)


def test_a_silent_process_leaves_only_when_its_pid_is_gone() -> None:
    table = JobTable()
    table.apply(message(event="start"), 0)
    table.expire(61_000, everybody)
    assert len(table) == 1
    table.expire(61_001, nobody)
    assert len(table) == 0
    assert table.finals("cpu") == {}


def test_an_account_without_processes_is_forgotten_after_a_minute() -> None:
    table = JobTable()
    table.apply(message(event="start", model_flops_total=1.0), 0)
    table.apply(message(event="exit", model_flops_total=2.0), 1000)
    table.expire(60_000, everybody)
    assert table.finals("cpu")
    table.expire(61_001, everybody)
    assert not table.finals("cpu")


def test_a_token_counter_gives_flops_where_the_environment_says_flops_per_token() -> None:
    table = JobTable(lambda pid: Labels(job="env-job", flops_per_token=6e9))
    table.apply(message(job=None, event="start", tokens_total=0), 0)
    table.apply(message(job=None, tokens_total=1000), 1000)
    assert table.flops_total("cpu", "env-job") == pytest.approx(6e12)


def test_flops_per_token_without_a_token_counter_declare_nothing() -> None:
    table = JobTable(lambda pid: Labels(flops_per_token=6e9))
    table.apply(message(event="start"), 0)
    table.apply(message(), 1000)
    assert table.flops_total("cpu", "llama") is None


def test_labels_are_cleaned_bounded_and_unknown_names_are_not_believed() -> None:
    table = JobTable()
    table.apply(message(job="a\n" * 500, dtype="torch.bfloat16", convention="mine"), 0)
    (declared,) = table.for_device("cpu")
    assert declared.job == "a" * 128
    assert (declared.labels.dtype, declared.labels.convention) == ("bf16", None)


def test_a_nameless_job_is_called_by_its_pid() -> None:
    table = JobTable()
    table.apply(message(9, job=None, device="cuda:GPU-ABC"), 0)
    assert table.for_device("abc")[0].job == "pid-9"
    assert set(table.for_pids([8, 9])) == {9}


@pytest.mark.parametrize("counter", [-1.0, 1e31, float("nan")])
def test_a_counter_that_makes_no_sense_is_dropped_and_counted(counter: float) -> None:
    table = JobTable()
    table.apply(message(event="start", model_flops_total=counter), 0)
    assert table.drops == {"counter": 1}
    assert table.flops_total("cpu", "llama") is None


def test_the_table_is_bounded_and_counts_what_it_turns_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "PROCESSES_MAX", 2)
    table = JobTable()
    for pid in (1, 2, 3):
        table.apply(message(pid), 0)
    assert (len(table), table.drops) == (2, {"table_full": 1})


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    """Return an intake that listens."""
    listener = Intake(tmp_path / "run" / "jobs.sock", JobTable(), lambda: 0.0)
    await listener.start()
    yield listener
    await listener.close()


async def send(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, str(path))
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_sender_is_who_the_kernel_says(intake: Intake) -> None:
    await send(intake.path, json.dumps({"v": 1, "pid": 1, "job": "x", "device": "cpu"}).encode())
    (declared,) = intake.table.for_device("cpu")
    assert declared.pid == os.getpid()


async def test_junk_is_dropped_and_counted_by_reason(intake: Intake) -> None:
    for junk in (b"", b"\xff", b"[]", b'{"v": 1, "pid": "x"}', b"[" * 4000, b'{"v":2,"pid":1}'):
        await send(intake.path, junk)
    await send(intake.path, b"x" * 5000)
    assert intake.table.drops == {"malformed": 5, "version": 1, "too_large": 1}
    assert len(intake.table) == 0


async def test_a_second_agent_does_not_take_the_socket_but_a_dead_ones_is_replaced(
    intake: Intake, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="socket"):
        await Intake(intake.path, JobTable(), lambda: 0.0).start()
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(stale))
    replaced = Intake(stale, JobTable(), lambda: 0.0)
    await replaced.start()
    await replaced.close()
    await replaced.close()
    assert not stale.exists()

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
from flopwatch_agent.job_intake import Intake
from flopwatch_agent.jobs import JobTable, Message
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
    assert table.finals("cpu")["llama", None] == {"model_flops": pytest.approx(11e12)}


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


def test_steps_and_their_time_are_of_one_rank_and_tokens_of_all() -> None:
    table = JobTable()
    for pid in (7, 8):
        table.apply(message(pid, event="start", steps_total=0, step_ms_total=0, tokens_total=0), 0)
        table.apply(message(pid, steps_total=10, step_ms_total=900.0, tokens_total=500), 1000)
    counted = {"steps_count": 10, "step_ms": 900.0, "tokens_count": 1000}
    assert table.counters("cpu", "llama") == counted
    table.apply(
        message(7, event="exit", steps_total=10, step_ms_total=900.0, tokens_total=500), 2000
    )
    table.apply(message(8, steps_total=12, step_ms_total=1100.0, tokens_total=600), 3000)
    assert table.counters("cpu", "llama") == {
        "steps_count": 12, "step_ms": 1100.0, "tokens_count": 1100,
    }  # fmt: skip


def test_what_is_said_of_every_card_counts_on_each_from_the_first_look_on() -> None:
    table = JobTable()
    table.apply(message(device="*", event="start", model_flops_total=0.0), 0)
    table.apply(message(device="*", model_flops_total=5e12), 1000)
    assert table.counters("a", "llama") == {"model_flops": 0.0}
    table.apply(message(device="*", model_flops_total=7e12), 2000)
    assert table.counters("a", "llama") == {"model_flops": 2e12}
    assert table.counters("b", "llama") == {"model_flops": 0.0}
    assert table.counters("a", "another") == {}
    assert table.finals("a")["llama", None] == {"model_flops": 2e12}


def test_a_card_whose_own_process_counts_takes_nothing_from_the_word_for_every_card() -> None:
    table = JobTable()
    table.apply(message(7, device="*", event="start", model_flops_total=0.0, tokens_total=0), 0)
    table.apply(message(8, device="a", event="start", model_flops_total=0.0), 0)
    table.counters("a", "llama")
    table.apply(message(7, device="*", model_flops_total=9e12, tokens_total=50), 1000)
    table.apply(message(8, device="a", model_flops_total=1e12), 1000)
    assert table.counters("a", "llama") == {"model_flops": 1e12, "tokens_count": 50}


def test_a_process_that_finds_its_card_later_counts_there_what_it_did_meanwhile() -> None:
    table = JobTable()
    table.apply(message(device=None, event="start", model_flops_total=0.0), 0)
    table.apply(message(device="cuda:GPU-A", model_flops_total=3e12), 1000)
    table.apply(message(device="cuda:GPU-A", model_flops_total=4e12, reported_ms_total=50.0), 2000)
    assert table.counters("a", "llama") == {"model_flops": 4e12, "reported_ms": 50.0}


def test_what_others_say_of_a_job_completes_what_its_processes_on_the_card_say() -> None:
    table = JobTable()
    said = {"phase": "checkpoint", "convention": "full", "dtype": "fp8"}
    table.apply(message(7, device="*", **said), 0)
    found = table.completed(Labels(team="nlp", dtype="bf16"), "a", "llama")
    assert (found.team, found.dtype, found.phase, found.convention) == (
        "nlp", "bf16", "checkpoint", "full",
    )  # fmt: skip
    assert table.completed(Labels(), "a", "another") == Labels()
    table.apply(message(7, device="*", event="exit"), 1000)
    assert table.completed(Labels(), "a", "llama") == Labels()

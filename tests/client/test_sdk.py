"""The SDK: what a step costs, what is counted, and that an absent agent changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flopwatch
from flopwatch import sdk
from flopwatch.sender import Sender
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.interval import Fold
from flopwatch_agent.job_intake import Intake
from flopwatch_agent.jobs import JobTable
from flopwatch_agent.labels import Labels
from flopwatch_agent.reading import Device, Reading
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Bucket


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every variable away that the SDK reads."""
    for name in list(os.environ):
        if name.startswith(("FLOPWATCH_", "SLURM_")) or name == "WORLD_SIZE":
            monkeypatch.delenv(name)
    monkeypatch.setattr(sdk, "_SENDER", Sender())


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point the SDK at a socket that nobody made."""
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(tmp_path / "absent.sock"))


@pytest.fixture
async def intake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Intake]:
    """Return an agent's intake that the SDK finds."""
    listener = Intake(tmp_path / "jobs.sock", JobTable(), lambda: 0.0)
    await listener.start()
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(listener.path))
    yield listener
    await listener.close()


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_importing_it_loads_neither_torch_nor_the_command_line() -> None:
    code = "import sys, flopwatch; print([m for m in ('torch','typer','rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_what_a_loop_counts_arrives_in_the_agents_table(intake: Intake) -> None:
    meter = flopwatch.meter(
        flops_per_token=6e9, job="toy", team="t", dtype="fp32", convention="causal_half",
        device="cpu",
    )  # fmt: skip
    await settle()
    (declared,) = intake.table.for_device("cpu")
    assert (declared.job, declared.pid, declared.labels.dtype) == ("toy", os.getpid(), "fp32")
    for _ in range(5):
        meter.step(tokens=1000)
    meter.close()
    meter.close()
    await settle()
    assert intake.table.flops_total("cpu", "toy") == pytest.approx(5 * 1000 * 6e9)
    assert intake.table.for_device("cpu") == ()
    assert intake.table.drops == {}


async def test_a_loop_on_the_processor_becomes_a_row_with_its_model_flops(intake: Intake) -> None:
    source, fold, host = Processes(lambda pid: Labels()), Fold(), Device(
        slot="cpu", kind="cpu", sku="EPYC"
    )  # fmt: skip

    def read(second: int) -> Reading:
        return Reading(
            device=host, taken_unix_ms=1_793_534_400_000 + 1000 * second, boottime_ns=second * 10**9
        )

    def fold_in(second: int) -> list[Any]:
        now = read(second)
        return fold.add(now, source.shares(now, intake.table), intake.table.finals("cpu"))

    meter = flopwatch.meter(flops_per_step=2e12, job="toy", dtype="fp32", device="cpu")
    await settle()
    fold_in(0)
    meter.step()
    meter.step()
    meter.close()
    await settle()
    (row,) = fold_in(5)
    assert (row.bucket, row.texts["job"], row.texts["dtype"]) == (Bucket.ACTIVE, "toy", "fp32")
    assert row.values["model_flops"] == pytest.approx(4e12)
    (free,) = fold_in(10)
    assert free.bucket is Bucket.FREE


def test_each_rank_counts_its_own_share(absent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with flopwatch.meter(flops_per_token=10.0) as by_token:
        by_token.step(tokens=400)
        by_token.step(local_tokens=100)
        assert (by_token.model_flops_total, by_token.tokens_total) == (2000.0, 200.0)
    with flopwatch.meter(flops_per_step=400.0) as by_step:
        by_step.step()
        assert by_step.model_flops_total == 100.0


def test_without_an_agent_nothing_is_raised_and_the_drop_is_counted(absent: None) -> None:
    meter = flopwatch.meter(flops_per_step=1.0)
    for _ in range(1000):
        meter.step()
    meter.close()
    assert meter.model_flops_total == 1000.0
    assert (sdk._SENDER.sent, sdk._SENDER.dropped) == (0, 2)


def test_a_full_socket_drops_instead_of_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "full.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        monkeypatch.setenv("FLOPWATCH_SOCKET", str(path))
        meter = flopwatch.meter(flops_per_step=1.0)
        for _ in range(5000):
            sdk._SENDER._send(event=None)
        meter.close()
        assert sdk._SENDER.dropped > 0
        assert sdk._SENDER.sent > 0


def test_a_step_without_its_tokens_warns_once_and_is_counted(absent: None) -> None:
    meter = flopwatch.meter(flops_per_token=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        meter.step()
        meter.step()
    meter.close()
    assert (len(caught), meter.uncounted_steps, meter.model_flops_total) == (1, 2, 0.0)


def test_the_environment_wins_over_arguments(absent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOPWATCH_JOB", "from-env")
    monkeypatch.setenv("FLOPWATCH_DTYPE", "fp8")
    monkeypatch.setenv("FLOPWATCH_MODEL_FLOPS_PER_TOKEN", "7e9")
    with flopwatch.meter(flops_per_token=1.0, job="argument", dtype="bf16") as meter:
        assert (meter.labels()["job"], meter.labels()["dtype"]) == ("from-env", "fp8")
        assert meter.flops_per_token == 7e9


@pytest.mark.parametrize(
    "arguments",
    [{}, {"flops_per_step": 1.0, "flops_per_token": 1.0}, {"flops_per_step": float("nan")}],
)
def test_a_meter_without_one_sane_flop_count_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="flops_per_step"):
        flopwatch.meter(**arguments)  # type: ignore[arg-type]


async def test_leaving_the_process_sends_the_last_counters(intake: Intake) -> None:
    code = """
        import flopwatch
        meter = flopwatch.meter(flops_per_step=5e9, job="leaver", device="cpu")
        meter.step()
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(code), env=dict(os.environ)
    )
    assert await child.wait() == 0
    await settle()
    assert intake.table.flops_total("cpu", "leaver") == pytest.approx(5e9)


def test_several_meters_of_a_process_are_one_stream_of_datagrams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(str(tmp_path / "s"))
        monkeypatch.setenv("FLOPWATCH_SOCKET", str(tmp_path / "s"))
        train = flopwatch.meter(flops_per_step=1.0, job="train")
        evaluation = flopwatch.meter(flops_per_step=10.0, job="train")
        train.step()
        evaluation.step()
        evaluation.close()
        train.close()
        messages = [json.loads(agent.recv(4096)) for _ in range(2)]
    assert [(m["event"], m["model_flops_total"]) for m in messages] == [("start", 0), ("exit", 11)]


def test_what_a_step_costs_is_shown(absent: None, capsys: pytest.CaptureFixture[str]) -> None:
    meter = flopwatch.meter(flops_per_token=6e9)
    start = time.perf_counter()
    for _ in range(100_000):
        meter.step(tokens=4096)
    cost_us = (time.perf_counter() - start) * 10
    meter.close()
    with capsys.disabled():
        sys.stdout.write(f"\nmeter.step: {cost_us:.2f} µs\n")
    assert meter.steps_total == 100_000


class Cuda:
    """torch.cuda on a host whose second card is selected."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 1

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"0000000{index}-aaaa")


def test_the_card_that_the_training_thread_selected_is_named_by_its_uuid(
    absent: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Cuda()))
    with flopwatch.meter(flops_per_step=1.0) as meter:
        assert meter.labels()["device"] == "cuda:GPU-00000001-aaaa"


def test_a_card_chosen_after_the_meter_was_made_is_found_at_the_next_step(
    absent: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(cuda, "is_initialized", lambda: False)
    with flopwatch.meter(flops_per_step=1.0) as meter:
        assert meter.labels()["device"] is None
        monkeypatch.setattr(cuda, "is_initialized", lambda: True)
        meter.step()
        assert meter.labels()["device"] == "cuda:GPU-00000001-aaaa"

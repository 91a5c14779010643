"""What a loop says of its steps: their time, its own MFU, checkpoints, evaluations, restarts."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import flopwatch
from flopwatch import sdk, steps
from flopwatch.sender import EVENTS_MAX, Sender
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.interval import Fold
from flopwatch_agent.job_intake import Intake
from flopwatch_agent.jobs import JobTable
from flopwatch_agent.labels import Labels
from flopwatch_agent.reading import Device, Reading
from flopwatch_kernels.flops import ModelShape, train_flops_per_token
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.errors import UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb

SHAPE = ModelShape(parameters=8e9, layers=32, attention_width=4096, sequence_tokens=8192)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put the meter's clock into the test's hands."""
    clock = Clock()
    monkeypatch.setattr(steps, "perf_counter", clock)
    return clock


@pytest.fixture(autouse=True)
def sender(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sender:
    """Return a sender of the test's own, whose agent is absent."""
    for name in ("FLOPWATCH_JOB", "SLURM_JOB_ID", "WORLD_SIZE", "FLOPWATCH_PHASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(tmp_path / "jobs.sock"))
    monkeypatch.setattr(sdk, "_SENDER", sender := Sender())
    return sender


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    """Return an agent's intake that the SDK finds."""
    listener = Intake(tmp_path / "jobs.sock", JobTable(), lambda: time.monotonic() * 1e3)
    await listener.start()
    yield listener
    await listener.close()


def test_the_time_of_steps_leaves_out_start_up_checkpoints_and_evaluations(clock: Clock) -> None:
    with flopwatch.meter(flops_per_step=1.0, device="cpu") as meter:
        clock.now += 60.0
        meter.step()  # compiling: nobody saw this step begin
        for _ in range(3):
            clock.now += 2.0
            meter.step()
        with meter.checkpoint():
            clock.now += 30.0
        with meter.evaluating():
            clock.now += 10.0
        clock.now += 2.0
        meter.step()
        meter.step(seconds=0.5)
    assert (meter.steps_total, meter.step_seconds_total) == (6, 8.5)


def test_an_mfu_holds_for_the_steps_since_the_one_before(clock: Clock) -> None:
    with flopwatch.meter(flops_per_step=1.0, device="cpu") as meter:
        meter.step()
        for mfu in (None, 0.4, None, None, 0.5, None):
            clock.now += 1.0
            meter.step(mfu=mfu)
    assert meter.reported_seconds_total == 5.0
    assert meter.reported_mfu_seconds_total == pytest.approx(2 * 0.4 + 3 * 0.5)
    assert meter.step_seconds_total == 6.0


def test_an_mfu_in_percent_is_not_believed_and_said_once(clock: Clock) -> None:
    with (
        flopwatch.meter(flops_per_step=1.0, device="cpu") as meter,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for _ in range(2):
            clock.now += 1.0
            meter.step(mfu=42.0)
    assert (len(caught), meter.reported_seconds_total) == (1, 0.0)


def test_phases_follow_from_what_the_loop_does_unless_it_says_one() -> None:
    with flopwatch.meter(flops_per_step=1.0, device="cpu") as meter:
        seen = [meter.phase]
        meter.step()
        seen.append(meter.phase)
        with meter.evaluating():
            seen.append(meter.phase)
            with meter.checkpoint():
                seen.append(meter.phase)
        seen.append(meter.phase)
    assert seen == ["startup", "steady", "eval", "checkpoint", "steady"]
    with flopwatch.meter(flops_per_step=1.0, device="cpu", phase="eval") as fixed:
        fixed.step()
        assert fixed.phase == "eval"


def test_flops_by_another_convention_are_converted_and_the_jobs_own_is_kept() -> None:
    full, half = (train_flops_per_token(SHAPE, c) for c in ("full", "causal_half"))
    with flopwatch.meter(
        flops_per_token=full, convention="full", shape=SHAPE, reports="full", device="cpu"
    ) as meter:
        assert meter.flops_per_token == pytest.approx(half)
        assert meter.convention == "causal_half"
        assert meter.reported_factor == pytest.approx(full / half)
    with flopwatch.meter(flops_per_token=full, convention="full", device="cpu") as meter:
        assert (meter.flops_per_token, meter.convention) == (full, "full")
        assert meter.reported_factor is None


def test_a_convention_that_nobody_knows_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="causal_half, full, params_only"):
        flopwatch.meter(flops_per_token=1.0, convention="palm")


def test_events_that_nobody_takes_are_bounded_and_counted(sender: Sender) -> None:
    for _ in range(EVENTS_MAX + 5):
        sender.tell("checkpoint", 1.0)
    assert sender.dropped == 5


async def test_what_happens_to_a_run_reaches_the_agent(intake: Intake) -> None:
    events: list[pb.Event] = []

    async def await_kinds(*kinds: str) -> None:
        for _ in range(500):
            events.extend(intake.table.events(time.monotonic() * 1e3, 1_793_534_400_000))
            if [event.kind for event in events] == list(kinds):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{kinds} wanted after 10 s, not {events}")

    meter = flopwatch.meter(flops_per_step=1.0, job="run", device="cpu", start_step=100)
    await await_kinds("job_start")
    meter.step()
    with meter.checkpoint():
        await asyncio.sleep(0.05)
    await await_kinds("job_start", "job_checkpoint")
    with meter.evaluating():
        await asyncio.sleep(0.05)
    await await_kinds("job_start", "job_checkpoint", "job_eval")
    meter.step(step=90)
    meter.close()
    await await_kinds("job_start", "job_checkpoint", "job_eval", "job_restart", "job_exit")
    assert [event.code for event in events] == [100, 101, 101, 89, 90]
    assert events[3].text == "started again at step 89: 12 steps lost"
    assert {event.job for event in events} == {"run"}


async def test_what_a_loop_says_becomes_the_columns_of_its_row(
    intake: Intake, clock: Clock
) -> None:
    source, fold = Processes(lambda pid: Labels()), Fold()
    host = Device(slot="cpu", kind="cpu", sku="EPYC")

    def fold_in(second: int) -> list[IntervalRow]:
        now = Reading(
            device=host, taken_unix_ms=1_793_534_400_000 + 1000 * second, boottime_ns=second * 10**9
        )
        return fold.add(now, source.shares(now, intake.table), intake.table.finals("cpu"))

    meter = flopwatch.meter(
        flops_per_token=6e9, convention="causal_half", reports="causal_half", job="toy",
        device="cpu", phase="steady",
    )  # fmt: skip
    await asyncio.sleep(0.01)
    fold_in(0)
    for _ in range(3):
        clock.now += 1.0
        meter.step(tokens=500, mfu=0.25)
    meter.close()
    await asyncio.sleep(0.01)
    (row,) = fold_in(5)
    said = {
        "steps_count": 3, "step_ms": 2000, "tokens_count": 1500, "model_flops": 9e12,
        "reported_ms": 2000, "reported_mfu_ms": 500, "reported_flops": 9e12,
    }  # fmt: skip
    assert {name: row.values[name] for name in said} == {
        n: pytest.approx(v) for n, v in said.items()
    }

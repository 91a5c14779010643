"""A real training job on this host's processor: what it says, what the probe says, and the MFU shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from flopwatch_agent.clock import SystemClock, wall_unix_ms
from processes import Collector, agent, awaited, done, environment, running

PROGRAM: Final = Path(__file__).with_name("train.py")
BATCH, WIDE, OUT = 64, 256, 16
STEP_FLOPS: Final = (
    2 * BATCH * WIDE * WIDE * 2  # first layer: forward and its weights' gradient; inputs need none
    + 2 * BATCH * WIDE * OUT * 3  # second layer: forward and both gradients
)
READ_S: Final = 2.5
"""How exactly a job's beginning and end are seen: one datagram and one reading a second."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A job that is over.

    Attributes:
        ceiling_flops: what the probe reached, FLOP/s, as it printed it.
        steps, seconds: by the job's own count and clock.
        step_flops: of one step, counted live by torch while it ran.
        loop_seconds: of the steps after the first, by the job's own clock.
        start, end: a window that holds all of the job, as the API takes it.
        cluster: what the API answers about that window.
    """

    ceiling_flops: float
    steps: int
    seconds: float
    step_flops: float
    loop_seconds: float
    start: str
    end: str
    cluster: Any


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def trained(shared: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    directory = tmp_path_factory.mktemp("training")
    env = environment(
        FLOPWATCH_SOCKET=str(directory / "jobs.sock"), FLOPWATCH_NVML__ENABLED="false"
    )
    probed = done(
        *("probe", "--device", "cpu", "--kind", "gemm", "--dtype", "fp32"),
        *("--save", str(directory / "data"), "--json"),
    )
    assert probed.returncode == 0, probed.stderr
    arguments = agent(shared.grpc, directory / "data", cluster="lab", node="lab-0")
    with running(*arguments, log=directory / "agent.log", env=env):
        awaited(lambda: (directory / "jobs.sock").exists(), "the agent's socket")
        said = train(env)
        first, last = said[0], said[-1]
        start = first["unix_ms"] // 10_000 * 10_000
        end = last["unix_ms"] // 10_000 * 10_000 + 20_000
        awaited(lambda: seen_until(shared, end - 10_000), "the rows of the job")
        awaited(lambda: wall_unix_ms(SystemClock()) > end, "the window's end")
        awaited(lambda: seen_until(shared, end), "the rows of the window")
        yield Trained(
            ceiling_flops=json.loads(probed.stdout)["median_flops"],
            steps=last["steps"],
            seconds=(last["unix_ms"] - first["unix_ms"]) / 1000,
            step_flops=last["step_flops"],
            loop_seconds=last["loop_seconds"],
            start=moment(start),
            end=moment(end),
            cluster=shared.cluster("lab", moment(start), moment(end)),
        )


def train(env: dict[str, str]) -> list[dict[str, Any]]:
    """Run the job for about 15 s; return what it said."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**env, "PYTHONUNBUFFERED": "1"},
        text=True,
    ) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        said = [json.loads(job.stdout.readline()) for _ in range(16)]
        job.stdin.close()
        said += [json.loads(line) for line in job.stdout]
    assert job.returncode == os.EX_OK
    return said


def seen_until(shared: Collector, unix_ms: int) -> bool:
    (row,) = shared.sql(
        "SELECT max(start_unix_ms + duration_ms) AS n FROM interval WHERE node = 'lab-0'"
    )
    return bool(row["n"] >= unix_ms)


def test_the_host_stands_there_as_a_processor_beside_no_card(trained: Trained) -> None:
    assert trained.cluster["device_kind"] == "cpu"
    assert trained.cluster["simulated"] is False


def test_every_flop_that_the_job_declared_is_stored(shared: Collector, trained: Trained) -> None:
    (row,) = shared.sql(
        "SELECT sum(model_flops) AS flops, uniqExact(job) AS jobs, any(team) AS team, any(dtype) AS dtype "
        "FROM interval FINAL WHERE node = 'lab-0' AND job != ''"
    )
    assert row["flops"] == pytest.approx(trained.steps * STEP_FLOPS, rel=1e-9)
    assert (row["jobs"], row["team"], row["dtype"]) == (1, "ci", "fp32")


def test_the_processor_is_allocated_as_long_as_the_job_lived(trained: Trained) -> None:
    window_s = shown_window_s(trained)
    cards = trained.cluster["cards"]
    assert cards["allocated"] * window_s == pytest.approx(trained.seconds, abs=READ_S)
    assert cards["active"] == cards["allocated"]


def test_mfu_is_flops_over_time_over_the_probed_peak(trained: Trained) -> None:
    shown = trained.cluster["mfu_achievable"]["value"]
    flops = trained.steps * STEP_FLOPS
    allocated_s = trained.cluster["cards"]["allocated"] * shown_window_s(trained)
    assert shown == pytest.approx(flops / allocated_s / trained.ceiling_flops, rel=1e-9)
    slack = READ_S / trained.seconds
    assert shown == pytest.approx(flops / trained.seconds / trained.ceiling_flops, rel=slack)


def test_declared_mfu_is_within_two_percent_of_one_measured_without_us(
    shared: Collector, trained: Trained
) -> None:
    (row,) = shared.sql(
        "SELECT sum(model_flops) AS flops, sum(steps_count) AS steps, sum(step_ms) AS ms "
        "FROM interval FINAL WHERE node = 'lab-0' AND job != ''"
    )
    assert row["steps"] == pytest.approx(trained.steps)
    declared = row["flops"] / (row["ms"] / 1e3) / trained.ceiling_flops
    alone = (trained.steps - 1) * trained.step_flops / trained.loop_seconds / trained.ceiling_flops
    assert declared == pytest.approx(alone, rel=0.02)


def test_what_happened_to_the_run_is_told(shared: Collector, trained: Trained) -> None:
    rows = shared.sql(
        "SELECT kind FROM event FINAL WHERE node = 'lab-0' AND job = 'toy' ORDER BY time_unix_ms"
    )
    assert [row["kind"] for row in rows] == ["job_start", "job_exit"]


def test_no_figure_by_a_datasheet_is_made_up_for_a_processor(trained: Trained) -> None:
    assert trained.cluster["mfu"]["value"] is None
    assert trained.cluster["hfu"]["value"] is None
    assert trained.cluster["yield"]["value"] is None


def shown_window_s(trained: Trained) -> float:
    start, end = (datetime.fromisoformat(text) for text in (trained.start, trained.end))
    return (end - start).total_seconds()

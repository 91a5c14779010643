"""A job at full resolution: fake drivers, real agents, a real collector, and the command that asks."""

from __future__ import annotations

import csv
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from fakenvml import Script, device
from processes import Collector, agent, awaited, collector, done, environment, running

JOB: Final = "vector-run"
NODES: Final = ("rank-0", "rank-1")
GPM: Final[dict[int, float]] = {2: 90, 5: 45, 7: 45, 10: 30}


@pytest.fixture(scope="module")
def ranks(
    job: subprocess.Popen[bytes], fake_driver: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Collector]:
    """A collector that hears of the job on both cards of two nodes."""
    directory = tmp_path_factory.mktemp("capture")
    with ExitStack() as stack:
        started = stack.enter_context(collector(directory / "collector"))
        for node in NODES:
            script = Script(directory / f"{node}.txt").write(
                *(device(card, gpm=GPM, sm_clock_mhz=1650) for card in (0, 1)),
                *(f"device {card} process {job.pid} compute {40 << 30}" for card in (0, 1)),
            )
            paths = [str(fake_driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
            env = environment(
                LD_LIBRARY_PATH=os.pathsep.join(paths),
                FAKENVML_SCRIPT=str(script.path),
                FLOPWATCH_SOCKET=str(directory / f"{node}.sock"),
                FLOPWATCH_ALLOCATION__SLURM="off",  # this host may carry traces of other tests' Slurm
            )
            arguments = agent(
                started.grpc, directory / node, cluster="ranks", node=node, interval="1s"
            )
            stack.enter_context(running(*arguments, log=directory / f"{node}.log", env=env))
        held = "SELECT DISTINCT node, slot FROM interval WHERE job = {job:String}"
        awaited(lambda: len(started.sql(held, job=JOB)) == 4, "rows of every rank")
        yield started


def post(of: Collector, **body: Any) -> dict[str, Any]:
    url = f"{of.url}/api/v1/captures"
    response = httpx.post(url, json=body, timeout=30, trust_env=False)
    assert response.status_code == httpx.codes.CREATED, response.text
    said: dict[str, Any] = response.json()
    return said


def test_every_rank_of_a_job_is_captured_at_ten_readings_a_second(
    ranks: Collector, tmp_path: Path
) -> None:
    asked = ("job", "capture", JOB, "--for", "3s", "--api", ranks.url)
    table = done(*asked, "--output", str(tmp_path / "out.csv"))
    assert table.returncode == 0, table.stderr
    assert all(node in table.stdout for node in NODES)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        readings = list(csv.DictReader(file))
    of_slots = Counter((reading["node"], reading["slot"]) for reading in readings)
    assert len(of_slots) == 4
    # One a second would be at most four; the machine may be too busy for all thirty.
    assert min(of_slots.values()) > 6
    times = [int(r["taken_unix_ms"]) for r in readings]
    assert max(times) - min(times) < 3000
    active = [float(r["sm_active_ratio"]) for r in readings if r["sm_active_ratio"]]
    assert active == pytest.approx([0.9] * len(active), abs=0.01)
    assert len(active) > 4 * 4  # the driver's counters come at most five times a second
    rows = ranks.sql(
        "SELECT sum(card_ms) AS all, sum(counted_ms) AS counted FROM interval FINAL "
        "WHERE job = {job:String} AND start_unix_ms >= {a:Int64} AND start_unix_ms < {b:Int64}",
        job=JOB,
        a=min(times),
        b=max(times),
    )
    assert rows[0]["counted"] > 0.9 * rows[0]["all"] > 0


def test_what_nodes_answer_survives_a_collector_that_is_killed_meanwhile(
    ranks: Collector,
) -> None:
    capture_id = post(ranks, job=JOB, seconds=2, readings_per_second=10)["id"]
    path = f"/api/v1/captures/{capture_id}"
    awaited(lambda: ranks.get(path)["state"] != "asked", "the request on its way")
    ranks.kill()
    ranks.restart()
    awaited(lambda: ranks.get(path)["state"] == "answered", "answers after the kill")
    readings = ranks.get(path)["readings"]
    assert len(readings) == 4
    assert min(len(slot["taken_unix_ms"]) for slot in readings) > 4

"""A probe of ours on a card of the fake driver: counted for nobody, and its result is in the collector."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from fakenvml import Script, device
from flopwatch_agent.probing.guard import Order
from flopwatch_proto.rows import Bucket
from processes import Collector, agent, await_readings, awaited, environment, running

UUID: Final = "GPU-00000000-0000-4000-8000-00000000000a"
CLUSTER: Final = "probed"


@pytest.fixture(scope="module")
def rows(
    shared: Collector, fake_driver: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, Any]]]:
    """Rows of a card on which a probe ran, then a process of somebody else that ended it."""
    directory = tmp_path_factory.mktemp("probed")
    script = Script(directory / "script.txt").write(
        device(0, uuid=UUID, gpm={2: 90, 5: 45}, sm_clock_mhz=1650)
    )
    paths = [str(fake_driver), os.environ.get("LD_LIBRARY_PATH", "")]
    env = environment(
        LD_LIBRARY_PATH=os.pathsep.join(filter(None, paths)),
        FAKENVML_SCRIPT=str(script.path),
        FLOPWATCH_SOCKET=str(directory / "jobs.sock"),
    )
    order = Order(
        device=UUID,
        dtype="fp32",
        sustained=True,
        locks=str(directory / "probing"),
        data=str(directory / "data"),
        measured="cpu",
    )
    arguments = agent(shared.grpc, directory / "data", cluster=CLUSTER, node="n1", interval="5s")
    with ExitStack() as stack:
        started = stack.enter_context(running(*arguments, log=directory / "agent.log", env=env))
        await_readings(started, "nvml")
        guard = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "flopwatch_agent.probing", msgspec.json.encode(order)],
                env=env,
            )
        )
        lock = directory / "probing" / f"{UUID}.lock"
        awaited(lambda: lock.exists() and b"ended" in lock.read_bytes(), "a probe")
        script.add(f"device 0 process {guard.pid} compute 1073741824")
        time.sleep(3)
        assert guard.poll() is None  # its own process is no stranger
        script.write(device(0, uuid=UUID, gpm={2: 90, 5: 45}, sm_clock_mhz=1650))
        script.add(f"device 0 process {os.getpid()} compute 1073741824")
        assert guard.wait(60) == 0
        script.write(device(0, uuid=UUID, gpm={2: 90, 5: 45}, sm_clock_mhz=1650))
        query = (
            "SELECT * FROM interval FINAL WHERE cluster = {cluster:String} ORDER BY start_unix_ms"
        )

        def settled() -> list[dict[str, Any]]:
            found = shared.sql(query, cluster=CLUSTER)
            after = [row for row in found if not row["probing_ms"]]
            return found if after and after[-1] is found[-1] and len(found) > 2 else []

        yield awaited(settled, "rows after the probe")


def test_a_probe_of_ours_allocates_nothing_and_works_for_nobody(rows: list[dict[str, Any]]) -> None:
    probed = [row for row in rows if row["probing_ms"]]
    assert sum(row["probing_ms"] for row in probed) >= 3_000
    for row in rows:
        assert not row["rogue"]
        watched = row["counted_ms"] + (row["probing_ms"] or 0.0)
        assert watched == pytest.approx(row["covered_ms"])
        assert (row["sm_active_ms"] or 0.0) == pytest.approx(0.9 * row["counted_ms"])
    # Whoever came while it ran holds the card from then on, and nobody before.
    ours = [row for row in probed if row["bucket"] == Bucket.FREE]
    assert sum(row["probing_ms"] for row in ours) >= 3_000
    assert {row["resident_ms"] for row in ours} == {0}


def test_the_result_says_who_came(rows: list[dict[str, Any]], shared: Collector) -> None:
    def probes() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = shared.get("/api/v1/probes", cluster=CLUSTER)["probes"]
        return found

    (probe,) = awaited(probes, "the probe")
    assert (probe["kind"], probe["outcome"], probe["device_uuid"]) == ("gemm", "aborted", UUID)
    assert probe["reason"] == f"process {os.getpid()} is on the card"
    assert shared.get("/api/v1/ceilings", cluster=CLUSTER)["fleets"] == []

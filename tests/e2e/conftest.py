"""What several modules share: one collector, and what takes a while and so begins before it is asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.stage import Stage, staged
from fakenvml import Script, build, device
from processes import FLOPWATCH, Collector, agent, collector, environment, running

GPM: dict[int, float] = {2: 90, 5: 45, 7: 45, 10: 30}
"""NVML's numbers of the metrics: SMs, any tensor pipe, its half-precision part, memory; in percent."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """A collector for every test that only adds a cluster of its own to it."""
    with collector(tmp_path_factory.mktemp("shared") / "data") as started:
        yield started


@pytest.fixture(scope="session")
def job() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives and says in its environment what it is for."""
    names = {"FLOPWATCH_JOB": "vector-run", "FLOPWATCH_TEAM": "physics", "FLOPWATCH_DTYPE": "bf16"}
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        env=environment(**names),
    )
    yield sleeper
    sleeper.communicate()


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake NVML."""
    return build(tmp_path_factory.getbasetemp() / "fakenvml")


@pytest.fixture(scope="session")
def driven(
    shared: Collector,
    job: subprocess.Popen[bytes],
    fake_driver: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The name of a node whose real agent reads a driver with two cards.

    Card 0 is the worked vector. Card 1 is free, counts no energy, and its tensor counter answers with an
    error.
    """
    directory = tmp_path_factory.mktemp("driven")
    script = Script(directory / "script.txt").write(
        device(0, gpm=GPM, sm_clock_mhz=1650, graphics_clock_mhz=1650, util_gpu=100),
        f"device 0 process {job.pid} compute {40 << 30}",
        device(1, gpm=GPM, energy_millijoules=None),
        "device 1 gpm_return 5 UNKNOWN",
    )
    paths = [str(fake_driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = environment(
        LD_LIBRARY_PATH=os.pathsep.join(paths),
        FAKENVML_SCRIPT=str(script.path),
        FLOPWATCH_SOCKET=str(directory / "jobs.sock"),
    )
    arguments = agent(shared.grpc, directory / "data", cluster="driven", node="driven-0")
    with running(*arguments, log=directory / "agent.log", env=env):
        yield "driven-0"


@pytest.fixture(scope="session")
def nobody() -> str:
    """An address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("small") / "small.toml"
    file.write_text(
        """
        [scenario]
        duration = "1m"
        [[cluster]]
        name = "small"
        sku = "NVIDIA H100 80GB HBM3"
        nodes = 1
        """,
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="session")
def in_vain(nobody: str, small: Path) -> Iterator[subprocess.Popen[str]]:
    """A simulator that looks for a collector where there is none; it gives up after a minute."""
    with subprocess.Popen(
        (
            *(*FLOPWATCH, "simulate", "--collector", nobody, "--backfill"),
            *("--scenario", str(small), "--api", f"http://{nobody}"),
        ),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as simulate:
        yield simulate
        simulate.kill()


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, fake_driver: Path) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("stage"), fake_driver) as playing:
        yield playing

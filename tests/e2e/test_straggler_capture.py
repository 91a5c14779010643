"""Who keeps a job waiting, from the driver to the terminal: real agents, a real collector, two commands.

Sixteen cards of four nodes run one synchronous job, by script: compute, wait for the last rank, exchange. One
rank is planted that begins late: idle while the others compute, and computing while they spin.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from fakenvml import Script, device
from processes import Collector, agent, awaited, collector, done, environment, running

JOB: Final = "vector-run"
NODES: Final = 4
CARDS: Final = 4
CULPRIT: Final = (2, 2)
"""Node and card."""
STEP_S: Final = 2.0
COMPUTE_S: Final = 1.2
LATE_S: Final = 0.4
EXCHANGE_S: Final = STEP_S - LATE_S - COMPUTE_S


def rank(card: int, number: int, *, late: bool) -> list[str]:
    """The lines of one card; tensor activity differs a little from card to card, as in every fleet."""
    begins = LATE_S if late else 0.0
    ends, exchange = begins + COMPUTE_S, STEP_S - EXCHANGE_S
    tensor = 80 + number * 7 % 5 / 2
    return device(
        card,
        gpm={
            2: f"0 @{begins} 95 repeat {STEP_S}" if late else 95,
            5: f"0 @{begins} {tensor} @{ends} 0 repeat {STEP_S}",
            7: f"0 @{begins} {tensor} @{ends} 0 repeat {STEP_S}",
            61: f"0 @{exchange} 100000 repeat {STEP_S}",
        },
        sm_clock_mhz=1650 + number * 3 % 7,
    )


@pytest.fixture(scope="module")
def ranks(
    job: subprocess.Popen[bytes], fake_driver: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Collector]:
    """A collector that hears of the job on every card."""
    directory = tmp_path_factory.mktemp("straggler")
    paths = [str(fake_driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    with ExitStack() as stack:
        started = stack.enter_context(collector(directory / "collector"))
        scripts = [Script(directory / f"node-{n}.txt") for n in range(NODES)]
        for n, script in enumerate(scripts):
            script.epoch = scripts[0].epoch
            script.write(
                *(rank(c, CARDS * n + c, late=(n, c) == CULPRIT) for c in range(CARDS)),
                *(f"device {c} process {job.pid} compute {40 << 30}" for c in range(CARDS)),
            )
            env = environment(
                LD_LIBRARY_PATH=os.pathsep.join(paths),
                FAKENVML_SCRIPT=str(script.path),
                FLOPWATCH_SOCKET=str(directory / f"node-{n}.sock"),
            )
            node = f"node-{n}"
            arguments = agent(
                started.grpc, directory / node, cluster="ranks", node=node, interval="1s"
            )
            stack.enter_context(running(*arguments, log=directory / f"{node}.log", env=env))
        held = "SELECT DISTINCT node, slot FROM interval WHERE job = {job:String}"
        awaited(lambda: len(started.sql(held, job=JOB)) == NODES * CARDS, "rows of every rank")
        yield started


def test_the_rank_that_keeps_all_others_waiting_is_named_first(ranks: Collector) -> None:
    recorded = done("job", "capture", JOB, "--for", "7s", "--api", ranks.url, "--json")
    assert recorded.returncode == 0, recorded.stderr
    culprit = f"node-{CULPRIT[0]}", slot_of(recorded.stdout)
    named = f"1. {' '.join(culprit)}: late rank"

    def answer() -> str | None:
        said = done("job", JOB, "--api", ranks.url).stdout
        return said if named in said and "(16 cards, capture every" in said else None

    # The newest rows of a job come some seconds after its captures, and not of all nodes at once.
    awaited(answer, f"an answer that says {named!r} of 16 cards")


def slot_of(capture: str) -> str:
    """The slot of the culprit, as the answer to a capture lists it."""
    node = f"node-{CULPRIT[0]}"
    slots = sorted(rank["slot"] for rank in json.loads(capture)["ranks"] if rank["node"] == node)
    return str(slots[CULPRIT[1]])

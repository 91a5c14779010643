"""The stage of the outages: what plays in real time while tests of other things run.

Two scenarios and four real agents, each in a cluster of its own, and one collector with short holds that
pages a real receiver.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fakenvml import Script, device
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from processes import FLOPWATCH, Collector, Process, agent, awaited, collector, environment, running
from webhook import Receiver, receiving

SECRET: Final = "the word that both know"
AGENTS: Final = 4
TICKS_SECONDS: Final = 35
"""Three ticks of the rules and what it takes for rows to arrive."""

SPEAKS_MS: Final = 90_000
"""How long the cluster `muted` speaks, from its start."""

CONFIG: Final = """
[rules]
page_simulated = true
settle_s = 0
[rules.allocation]
for_s = 10
clear_s = 10
[rules.clusters.rolling.blind]
nodes_min = 2
[rules.clusters.rolling.data_missing]
for_s = 10
[[paging.route]]
name = "receiver"
url = "{url}"
secret_env = "PAGE_SECRET"
"""

DROPS: Final = """
[scenario]
duration = "10m"
interval = "5s"

# 20 cards; one of them is free for a minute: 95 %.
[[cluster]]
name = "drops"
sku = "NVIDIA H100 80GB HBM3"
nodes = 20
cards_per_node = 1
[[cluster.phase]]
job = "run"
sm_active = 0.9
tensor_active = 0.45
[[cluster.phase]]
nodes = "19"
from = "15s"
to = "90s"
state = "free"

# A fifth of the agents falls silent; the scheduler goes on saying that their cards are allocated.
[[cluster]]
name = "unwatched"
sku = "NVIDIA H100 80GB HBM3"
nodes = 10
cards_per_node = 1
[[cluster.phase]]
job = "run"
sm_active = 0.9
tensor_active = 0.45
[[cluster.phase]]
nodes = "8-9"
from = "20s"
state = "unwatched"
job = "run"
"""

MUTED: Final = """
[scenario]
duration = "10m"
interval = "5s"
[[cluster]]
name = "muted"
sku = "NVIDIA H100 80GB HBM3"
nodes = 20
cards_per_node = 1
# 90 % from the start; after about a minute nobody says anything any more, nor does a scheduler for them.
[[cluster.phase]]
nodes = "0-17"
job = "run"
sm_active = 0.9
tensor_active = 0.45
[[cluster.phase]]
from = "90s"
state = "silent"
"""


@dataclass(kw_only=True)
class Stage:
    """Everything that plays.

    Attributes:
        began_unix_ms: when the scenario of `drops` and `unwatched` began, at the latest.
        muted: the simulator of the cluster that will fall silent.
        agents: of the cluster `rolling`.
        restarted: their restart, which goes on in a thread.
    """

    collector: Collector
    receiver: Receiver
    directory: Path
    began_unix_ms: int = 0
    muted: Process | None = None
    agents: list[Process] = field(default_factory=list)
    agent_env: dict[str, str] = field(default_factory=dict)
    restarted: Future[None] = field(default_factory=Future)

    def outages(self, cluster: str, rule: str = "allocation") -> list[Any]:
        listed = self.collector.get("/api/v1/outages")["outages"]
        return [o for o in listed if (o["cluster"], o["rule"]) == (cluster, rule)]

    def states(self, cluster: str, rule: str = "allocation") -> list[str]:
        return [outage["state"] for outage in self.outages(cluster, rule)]

    def judged(self, cluster: str, unix_ms: int) -> Any:
        """The allocation outage of a cluster, once it was judged again after a moment."""
        (outage,) = self.outages(cluster)
        return (
            outage
            if datetime.fromisoformat(outage["judged"]).timestamp() * 1000 > unix_ms
            else None
        )

    def restart_agents(self) -> None:
        """Let every agent say goodbye; start them again when the rules have judged their silence."""
        awaited(self.allocated, "all agents report their card as allocated")
        for each in self.agents:
            each.send(signal.SIGHUP)
            assert each.wait() == 0, each.said()
        time.sleep(TICKS_SECONDS)
        self.agents = [self.start_agent(number) for number in range(AGENTS)]
        awaited(self.allocated, "all agents are back")

    def allocated(self) -> bool:
        """Whether every agent's card is seen and in use."""
        clusters = self.collector.get("/api/v1/fleet", window="10s")["clusters"]
        shown = [c for c in clusters if c["name"] == "rolling"]
        return bool(shown) and shown[0]["cards"]["allocated"] == AGENTS

    def start_agent(self, number: int) -> Process:
        name = f"rolling-{number}"
        env = self.agent_env | {"FLOPWATCH_SOCKET": str(self.directory / f"{name}.sock")}
        arguments = agent(
            self.collector.grpc, self.directory / name, cluster="rolling", node=name, interval="5s"
        )
        return Process((*FLOPWATCH, *arguments), self.directory / f"{name}.log", env)


@contextmanager
def staged(directory: Path, fake_driver: Path) -> Iterator[Stage]:
    """Everything plays for the length of a block."""
    for name, text in (("drops", DROPS), ("muted", MUTED)):
        (directory / f"{name}.toml").write_text(text, encoding="utf-8")
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving(SECRET))
        paging = stack.enter_context(
            collector(
                directory / "data",
                CONFIG.format(url=receiver.url),
                environment(PAGE_SECRET=SECRET),
            )
        )
        stage = Stage(collector=paging, receiver=receiver, directory=directory)
        stage.agent_env = driver_environment(stack, directory, fake_driver)
        for name in ("drops", "muted"):
            stage.muted = stack.enter_context(
                running(
                    *("simulate", "--collector", paging.grpc),
                    *("--scenario", str(directory / f"{name}.toml")),
                    log=directory / f"{name}.log",
                )
            )
        stage.agents = [stage.start_agent(number) for number in range(AGENTS)]
        stack.callback(lambda: [each.end() for each in stage.agents])
        awaited(lambda: paging.rows("drops"), "rows of the scenario")
        stage.began_unix_ms = wall_unix_ms(SystemClock())
        threads = stack.enter_context(ThreadPoolExecutor(1))
        stage.restarted = threads.submit(stage.restart_agents)
        yield stage


def driver_environment(stack: ExitStack, directory: Path, fake_driver: Path) -> dict[str, str]:
    """An environment in which NVML is a card with a process that lives as long as the stage."""
    job = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            env=environment(FLOPWATCH_JOB="steady"),
        )
    )
    assert job.stdin is not None
    stack.callback(job.stdin.close)
    script = Script(directory / "script.txt").write(
        device(0, gpm={2: 90, 5: 45}, sm_clock_mhz=1650, util_gpu=100),
        f"device 0 process {job.pid} compute {1 << 30}",
    )
    paths = [str(fake_driver), os.environ.get("LD_LIBRARY_PATH", "")]
    return environment(
        LD_LIBRARY_PATH=os.pathsep.join(filter(None, paths)), FAKENVML_SCRIPT=str(script.path)
    )

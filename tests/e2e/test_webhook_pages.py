"""Outages in real time, with short holds: what pages, what it says, and what never ends one.

Everything plays at once, in clusters of its own: two scenarios, four real agents, one collector that
pages a real receiver. The tests look at it in the order in which it happens.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from fakenvml import Script, build, device
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from processes import FLOPWATCH, Collector, Process, agent, awaited, collector, environment, running
from webhook import Receiver, receiving

SECRET: Final = "the word that both know"
AGENTS: Final = 4
TICKS_SECONDS: Final = 35
"""Three ticks of the rules and what it takes for rows to arrive."""

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
to = "70s"
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
from = "65s"
state = "silent"
"""


@dataclass(kw_only=True)
class Stage:
    """Everything that plays.

    Attributes:
        began_unix_ms: when the scenario of `drops` and `unwatched` began, at the latest.
        muted: the simulator of the cluster that will fall silent.
        agents: of the cluster `rolling`.
    """

    collector: Collector
    receiver: Receiver
    directory: Path
    began_unix_ms: int = 0
    muted: Process | None = None
    agents: list[Process] = field(default_factory=list)
    agent_env: dict[str, str] = field(default_factory=dict)

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

    def start_agent(self, number: int) -> Process:
        name = f"rolling-{number}"
        env = self.agent_env | {"FLOPWATCH_SOCKET": str(self.directory / f"{name}.sock")}
        arguments = agent(
            self.collector.grpc, self.directory / name, cluster="rolling", node=name, interval="5s"
        )
        return Process((*FLOPWATCH, *arguments), self.directory / f"{name}.log", env)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("outages")
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
        stage.agent_env = driver_environment(stack, directory)
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
        yield stage


def driver_environment(stack: ExitStack, directory: Path) -> dict[str, str]:
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
    paths = [str(build(directory / "fakenvml")), os.environ.get("LD_LIBRARY_PATH", "")]
    return environment(
        LD_LIBRARY_PATH=os.pathsep.join(filter(None, paths)), FAKENVML_SCRIPT=str(script.path)
    )


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_rolling_restart_of_all_agents_with_goodbye_pages_nobody(stage: Stage) -> None:
    def allocated() -> bool:
        clusters = stage.collector.get("/api/v1/fleet", window="10s")["clusters"]
        shown = [c for c in clusters if c["name"] == "rolling"]
        return bool(shown) and shown[0]["cards"]["allocated"] == AGENTS

    awaited(allocated, "all agents report their card as allocated")
    for each in stage.agents:
        each.send(signal.SIGHUP)
        assert each.wait() == 0, each.said()
    time.sleep(TICKS_SECONDS)
    stage.agents = [stage.start_agent(number) for number in range(AGENTS)]
    awaited(allocated, "all agents are back")
    assert stage.receiver.pages("rolling") == []
    assert stage.states("rolling") == stage.states("rolling", "blind") == []


def test_a_drop_to_95_percent_pages_once_and_says_why(stage: Stage) -> None:
    (page,) = awaited(lambda: stage.receiver.pages("drops"), "the page of the drop")
    assert (page["rule"], page["action"], page["state"]) == ("allocation", "trigger", "firing")
    assert page["simulated"] is True
    assert page["threshold"] == 0.96
    assert page["value"] == pytest.approx(0.95, abs=0.001)
    assert page["lost_points"] == {"FREE": pytest.approx(5.0, abs=0.1)}
    assert page["largest_losses"] == [{"step": "FREE", "points": pytest.approx(5.0, abs=0.1)}]
    assert [(cause["kind"], cause["name"]) for cause in page["causes"]] == [("node", "drops-0019")]


def test_a_fifth_of_the_agents_stopped_while_the_roster_speaks_costs_only_coverage(
    stage: Stage,
) -> None:
    start = (stage.began_unix_ms + 30_000) // 10_000 * 10_000
    window = (moment(start), moment(start + 20_000))
    awaited(lambda: wall_unix_ms(SystemClock()) > start + 35_000, "the window has passed")
    shown = stage.collector.cluster("unwatched", *window)
    assert shown["allocation"] == {
        "value": 1.0, "lo": 1.0, "hi": 1.0, "coverage": pytest.approx(0.80, abs=1e-9),
    }  # fmt: skip
    assert shown["hfu"]["coverage"] == pytest.approx(0.80, abs=1e-9)
    assert stage.receiver.pages("unwatched", "allocation") == []
    assert stage.outages("unwatched") == []


def test_agents_that_fall_silent_end_no_outage(stage: Stage) -> None:
    (page,) = awaited(lambda: stage.receiver.pages("muted", "allocation"), "the page of 90 %")
    assert page["lost_points"] == {"FREE": pytest.approx(10.0, abs=0.1)}

    def silent() -> bool:
        shown = stage.collector.get("/api/v1/clusters/muted", window="10s")
        return bool(shown["cards"]["unseen"] == shown["cards"]["in_service"] == 20)

    awaited(silent, "nobody speaks for the cluster")
    since = wall_unix_ms(SystemClock())
    assert stage.muted is not None
    stage.muted.end(signal.SIGKILL)
    judged = awaited(lambda: stage.judged("muted", since + 10_000), "two judgements of the silence")
    assert judged["state"] == "firing"
    assert stage.states("muted") == ["firing"]
    assert [p["action"] for p in stage.receiver.pages("muted", "allocation")] == ["trigger"]


def test_the_drop_is_resolved_once_after_recovery(stage: Stage) -> None:
    pages = awaited(
        lambda: found if len(found := stage.receiver.pages("drops")) > 1 else None,
        "the page of the recovery",
    )
    assert [page["action"] for page in pages] == ["trigger", "resolve"]
    assert pages[1]["state"] == "resolved"
    assert pages[0]["dedup_key"] == pages[1]["dedup_key"]
    assert stage.outages("drops") == []
    listed = stage.collector.get("/api/v1/outages", state="resolved")["outages"]
    (ended,) = (o for o in listed if (o["cluster"], o["rule"]) == ("drops", "allocation"))
    assert ended["lost_points"] == {"FREE": pytest.approx(5.0, abs=0.1)}


def test_a_collector_that_was_killed_ends_no_outage(stage: Stage) -> None:
    stage.collector.kill()
    time.sleep(10)
    stage.collector.restart()
    time.sleep(TICKS_SECONDS)
    assert stage.states("muted") == ["firing"]
    assert [p["action"] for p in stage.receiver.pages("muted", "allocation")] == ["trigger"]
    assert [p["action"] for p in stage.receiver.pages("drops")] == ["trigger", "resolve"]
    assert stage.receiver.pages("unwatched", "allocation") == []
    assert stage.receiver.pages("rolling") == []


def test_every_page_is_signed_and_sent_under_a_key_of_its_own(stage: Stage) -> None:
    received = stage.receiver.received
    assert received
    assert all(each.genuine for each in received)
    assert len({each.key for each in received}) == len(received)

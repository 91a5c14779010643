"""Two collectors on one PostgreSQL and one store, agents through a balancer; one of the two is killed.

Everything is real but the ClickHouse server, which is its engine behind its protocol.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import create_server
from typing import Any, Final

import pytest

from clickhouse_http import clickhouse
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from postgres import Postgres, postgres
from processes import Collector, Process, awaited, environment, running
from webhook import Receiver, receiving

SECRET: Final = "the word that both know"
BALANCER: Final = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
NODES: Final = 10
STREAMS: Final = 2 * (NODES + 1)
"""Of each cluster its nodes and the host that speaks for its scheduler."""

CONFIG: Final = """
[telemetry]
dsn = "{telemetry}"
[control]
dsn = "{control}"
[rules]
page_simulated = true
settle_s = 0
[rules.allocation]
for_s = 0
[rules.clusters.late.allocation]
for_s = 30
[[paging.route]]
name = "receiver"
url = "{url}"
secret_env = "PAGE_SECRET"
"""

# 90 % from the beginning: an outage that pages at once, and one whose hold is not over when a collector dies.
CLUSTER: Final = """
[[cluster]]
name = "{name}"
sku = "NVIDIA H100 80GB HBM3"
nodes = 10
cards_per_node = 1
[[cluster.phase]]
nodes = "0-8"
job = "run"
sm_active = 0.9
tensor_active = 0.45
"""
SCENARIO: Final = '[scenario]\nduration = "10m"\ninterval = "5s"\n' + "".join(
    CLUSTER.format(name=name) for name in ("early", "late")
)


@dataclass(kw_only=True)
class Stage:
    """What plays. Attributes: window: the 10 s that every figure is asked of, before the kill."""

    server: Postgres
    control: str
    receiver: Receiver
    collectors: list[Collector]
    window: tuple[str, str] = ("", "")
    killed_unix_ms: int = 0

    def pager(self) -> Collector | None:
        """Whoever holds the pager's lease."""
        found = self.server.rows(self.control, "SELECT holder FROM lease WHERE name = 'pager'")
        pids = [int(holder.split("/")[1]) for (holder,) in found]
        return next((c for c in self.collectors if c.process.pid in pids), None)

    def sent(self, cluster: str) -> list[Any]:
        """The pages about a cluster that the control store holds for sent."""
        return self.server.rows(
            self.control,
            f"SELECT action FROM outbox WHERE cluster = '{cluster}' AND sent_unix_ms IS NOT NULL",
        )

    def streams(self, collector: Collector) -> int:
        lines = collector.ask("/metrics").text.splitlines()
        found = [x.split()[1] for x in lines if x.startswith("flopwatch_ingest_streams ")]
        return int(float(found[0])) if found else 0

    def figures(self, collector: Collector) -> dict[str, Any]:
        """What the window's figures are, by this collector."""
        shown = {name: collector.cluster(name, *self.window) for name in ("early", "late")}
        return {name: (s["allocation"], s["hfu"], s["cards"]) for name, s in shown.items()}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        server = stack.enter_context(postgres())
        store = stack.enter_context(clickhouse(directory))
        receiver = stack.enter_context(receiving(SECRET))
        control = server.database()
        config = CONFIG.format(telemetry=store, control=control, url=receiver.url)
        env = environment(PAGE_SECRET=SECRET)
        with ThreadPoolExecutor(2) as threads:  # side by side, as they may start
            started = [
                threads.submit(Collector, directory / name, config, env) for name in ("a", "b")
            ]
            collectors = [each.result() for each in started]
        for each in collectors:
            stack.callback(each.stop)
        stage = Stage(server=server, control=control, receiver=receiver, collectors=collectors)
        address = stack.enter_context(balanced(directory, collectors))
        (directory / "scenario.toml").write_text(SCENARIO, encoding="utf-8")
        stack.enter_context(
            running(
                *("simulate", "--collector", address),
                *("--scenario", str(directory / "scenario.toml")),
                log=directory / "simulate.log",
            )
        )
        yield stage


@contextmanager
def balanced(directory: Path, collectors: list[Collector]) -> Iterator[str]:
    """HAProxy as it is deployed, for the length of a block; yield its address."""
    with create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = environment(
        FLOPWATCH_INGEST=address,
        FLOPWATCH_COLLECTOR_1=collectors[0].grpc,
        FLOPWATCH_COLLECTOR_2=collectors[1].grpc,
    )
    balancer = Process(("haproxy", "-db", "-f", str(BALANCER)), directory / "haproxy.log", env)
    try:
        yield address
    finally:
        balancer.end()


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_agents_are_spread_and_either_collector_shows_all_of_them(stage: Stage) -> None:
    def spread() -> bool:
        streams = [stage.streams(each) for each in stage.collectors]
        return sum(streams) == STREAMS and min(streams) >= NODES // 2

    awaited(spread, "all agents, on both collectors")

    def everybody() -> bool:
        listed = [each.ask("/api/v1/agents").json()["agents"] for each in stage.collectors]
        hearers = [{agent["collector"] for agent in of} for of in listed]
        return [len(of) for of in listed] == [STREAMS] * 2 and len(set.union(*hearers)) == 2

    awaited(everybody, "either collector lists the agents of both")
    awaited(lambda: stage.sent("early"), "the page of the outage")
    first = stage.collectors[0].sql("SELECT min(start_unix_ms) AS t FROM interval")[0]["t"]
    start = -(-first // 10_000) * 10_000
    stage.window = moment(start), moment(start + 10_000)
    one, other = (stage.figures(each) for each in stage.collectors)
    assert one == other
    allocation, _, cards = one["early"]
    assert (allocation["value"], allocation["coverage"]) == (0.9, 1.0)
    assert cards["in_service"] == NODES


def test_one_is_killed_and_no_page_is_lost_or_doubled(stage: Stage) -> None:
    killed = awaited(stage.pager, "the pager's lease is held")
    (left,) = (each for each in stage.collectors if each is not killed)
    before = stage.figures(left)
    stage.killed_unix_ms = wall_unix_ms(SystemClock())
    killed.process.send(signal.SIGKILL)
    killed.process.wait()
    awaited(lambda: stage.streams(left) == STREAMS, "the agents have moved")
    awaited(lambda: stage.sent("late"), "the page whose hold began before the kill")
    assert stage.pager() is left
    assert stage.figures(left) == before
    actions = [(each.page["cluster"], each.page["action"]) for each in stage.receiver.received]
    assert sorted(actions) == [("early", "trigger"), ("late", "trigger")]
    assert all(each.genuine for each in stage.receiver.received)


def test_no_row_is_missing_over_the_kill(stage: Stage) -> None:
    (left,) = (each for each in stage.collectors if each.process.running)
    said = (
        "SELECT max(first) AS first, min(last) AS last, count() AS nodes FROM ("
        "SELECT min(start_unix_ms) AS first, max(start_unix_ms + duration_ms) AS last"
        " FROM interval GROUP BY cluster, node)"
    )

    def after_the_kill() -> dict[str, int] | None:
        (found,) = left.sql(said)
        return found if found["last"] > stage.killed_unix_ms + 5_000 else None

    found = awaited(after_the_kill, "rows of every node after the kill")
    assert found["nodes"] == 2 * NODES
    start, end = -(-found["first"] // 5_000) * 5_000, found["last"] // 5_000 * 5_000
    spoken = (
        "SELECT sum(duration_ms) AS ms FROM interval FINAL"
        " WHERE start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64}"
    )
    assert start < stage.killed_unix_ms < end
    assert left.sql(spoken, start=start, end=end) == [{"ms": 2 * NODES * (end - start)}]

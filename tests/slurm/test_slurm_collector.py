"""A real collector beside a real Slurm: what it accounts, what it says, and what `check` finds."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fakenvml import Script, build, device
from flopwatch.cli import doctor_slurm
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.window import sheet_of_window
from flopwatch_collector.roster.slurm import SILENT_ROSTERS_MAX
from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket
from processes import FLOPWATCH, Collector, agent, awaited, collector, environment, running
from slurm.lab import CARDS, Lab
from slurm.test_slurm_roster import buckets, check_partitioned, held_by_the_node, said_by

CONFIG = """
inventory = "{inventory}"
[slurm]
interval = "1s"
deadline = "2s"
cluster = "real"
partition_classes = {{ base = "training" }}
"""
INVENTORY = """
[[slot]]
cluster = "real"
nodes = "{nodes}"
slots = {slots}
sku = "NVIDIA H100 80GB HBM3"
"""


@pytest.fixture(scope="module")
def beside(whole_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """A collector on a host of the cluster: it finds Slurm by itself."""
    directory = tmp_path_factory.mktemp("beside")
    inventory = directory / "inventory.toml"
    slots = next(iter(whole_lab.slots().values()))
    inventory.write_text(INVENTORY.format(nodes=whole_lab.node_list, slots=json.dumps(slots)))
    env = environment(SLURM_CONF=whole_lab.environ["SLURM_CONF"])
    with collector(directory / "data", CONFIG.format(inventory=inventory), env=env) as started:
        yield started


def states(beside: Collector, node: str) -> dict[str, int]:
    """Cards by bucket; none until the collector has judged an interval of the node."""
    response = beside.ask("/api/v1/nodes", cluster="real")
    listed = response.json()["nodes"] if response.is_success else []
    found: dict[str, int] = next((one["cards"] for one in listed if one["node"] == node), {})
    return found


def check(lab: Lab, beside: Collector) -> tuple[int, Any]:
    done = subprocess.run(
        [*FLOPWATCH, "check", "allocation", "--cluster", "real", "--api", beside.url, "--json"],
        env=environment(SLURM_CONF=lab.environ["SLURM_CONF"]),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_account_follows_slurm_and_check_finds_no_difference(
    lab: Lab, beside: Collector
) -> None:
    node, drained = lab.nodes[0], lab.nodes[1]
    lab.run("scontrol", "update", f"nodename={drained}", "state=drain", "reason=fan 3")
    job = lab.submit("-A", "red", "-w", node, "--gres=gpu:5")
    lab.until_state(job, "R")
    # Nothing waits, and what ran lately was this job: no more of it fits beside it.
    awaited(lambda: states(beside, node) == {"ALLOCATED": 5, "STRANDED": 3} or None, "the roster")
    awaited(lambda: states(beside, drained) == {"MAINT": CARDS} or None, "the drained node")

    def agrees() -> Any:
        code, said = check(lab, beside)
        return said if code == 0 else None

    said = awaited(agrees, "both agree")
    assert said["differences"] == []
    total = CARDS * len(lab.nodes)
    wanted = {"allocated": 5, "maintenance": CARDS, "free": total - 5 - CARDS}
    assert said["slurm"] == said["flopwatch"] == wanted
    row = beside.sql(
        "SELECT job, team, user, workload_class, count() AS n FROM roster "
        "WHERE job != '' GROUP BY ALL ORDER BY n DESC LIMIT 1"
    )[0]
    assert (row["job"], row["team"], row["user"]) == (job, "red", "root")
    assert row["workload_class"] == "training"
    lab.run("scontrol", "update", f"nodename={drained}", "state=resume")


def test_a_difference_is_told_card_by_card_with_its_reason(lab: Lab, beside: Collector) -> None:
    node = lab.nodes[2]

    def told() -> Any:
        # The collector asks every second: right after a change it has not heard of it.
        lab.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=psu")
        code, said = check(lab, beside)
        lab.run("scontrol", "update", f"nodename={node}", "state=resume")
        awaited(lambda: states(beside, node) == {"FREE": CARDS} or None, "it is back")
        return said if code == 1 else None

    said = awaited(told, "a difference")
    mine = [d for d in said["differences"] if d["node"] == node]
    assert len(mine) == CARDS
    assert (mine[0]["flopwatch"], mine[0]["slurm"]) == ("FREE", "MAINT")
    assert "drained (psu)" in mine[0]["reason"]


@pytest.fixture
def watched(
    lab: Lab, beside: Collector, tmp_path: Path
) -> Iterator[Callable[[str, list[int]], None]]:
    """Start an agent on a node of the lab, whose driver shows these processes on its first three cards."""
    with ExitStack() as stack:

        def start(node: str, pids: list[int]) -> None:
            slots = lab.slots()[node]
            script = Script(tmp_path / "script.txt").write(
                *(device(i, pci=slot, gpm={2: 90, 5: 45}) for i, slot in enumerate(slots)),
                *(f"device {i} process {pid} compute 1073741824" for i in range(3) for pid in pids),
            )
            paths = [str(build(tmp_path / "fakenvml")), os.environ.get("LD_LIBRARY_PATH", "")]
            env = environment(
                LD_LIBRARY_PATH=os.pathsep.join(filter(None, paths)),
                FAKENVML_SCRIPT=str(script.path),
                FLOPWATCH_SOCKET=str(tmp_path / "jobs.sock"),
                FLOPWATCH_ALLOCATION__SLURM="on",
                FLOPWATCH_ALLOCATION__SLURM_NODE=node,
                FLOPWATCH_ALLOCATION__PROLOG=str(lab.home / "prolog"),
                FLOPWATCH_ALLOCATION__GRES_CONF=str(lab.home / "etc" / "gres.conf"),
            )
            arguments = agent(
                beside.grpc, tmp_path / "data", cluster="real", node=node, interval="5s"
            )
            stack.enter_context(running(*arguments, log=tmp_path / "agent.log", env=env))

        yield start


def rows_of(beside: Collector, node: str) -> set[tuple[str, str, str, bool]]:
    """Return (bucket, job, user, rogue) of the newest row of each of the node's first three cards."""
    listed = beside.sql(
        "SELECT bucket, job, user, rogue FROM interval FINAL WHERE cluster = 'real' "
        "AND node = {node:String} ORDER BY slot, start_unix_ms DESC LIMIT 1 BY slot LIMIT 3",
        node=node,
    )
    return {(Bucket(r["bucket"]).name, r["job"], r["user"], r["rogue"]) for r in listed}


def rogue_ms(beside: Collector, node: str, since_unix_ms: int) -> dict[str, int]:
    """Return user → card-milliseconds without an allocation, by the account that the API reads."""
    now = wall_unix_ms(SystemClock())
    window = Window(start=since_unix_ms, end=now)
    sheet = sheet_of_window(RemoteStore(beside.data / "read.sock"), "real", window, now, node)
    rogue = sheet.where(sheet.rogue)
    users = rogue.texts["user"]
    return {str(user): rogue.where(users == user).time() for user in set(users)}


def with_rogues(beside: Collector, node: str) -> Any:
    """Return what the API says of a node; None until it has time of cards there without an allocation."""
    answer = beside.get(f"/api/v1/nodes/{node}", cluster="real", window="1m")
    return answer if answer["cards"]["rogue"] > 0 else None


async def test_a_killed_slurmd_loses_the_node_while_its_processes_are_rogue(
    lab: Lab, beside: Collector, watched: Callable[[str, list[int]], None]
) -> None:
    node = lab.nodes[11]
    job = lab.submit("-A", "red", "-w", node, "--gres=gpu:3")
    lab.until_state(job, "R")
    processes = lab.pids_of(node, job)
    assert processes
    watched(node, processes)
    since = wall_unix_ms(SystemClock())
    awaited(lambda: rows_of(beside, node) == {("ACTIVE", job, "root", False)} or None, "its rows")
    assert rogue_ms(beside, node, since) == {}  # while Slurm covers it
    lab.kill_slurmd(node)
    try:
        lab.until("it is missed", lambda: "NOT_RESPONDING" in _state(lab, node))
        silent: dict[str, int] = {}
        if "DOWN" not in _state(lab, node):
            said = await said_by(lab)
            assert buckets(said, node)[Bucket.ALLOCATED] == 3  # one silence is a moment's weakness
            silent = {node: SILENT_ROSTERS_MAX}
            said = await said_by(lab, silent)
            if said.silent[node] > SILENT_ROSTERS_MAX and "DOWN" not in _state(lab, node):
                assert buckets(said, node) == {Bucket.FAILED: CARDS}
        lab.until("the node is down", lambda: "DOWN" in _state(lab, node))
        lab.until_state(job, "PD")
        said = await said_by(lab)
        check_partitioned(said)
        assert buckets(said, node) == {Bucket.MISSING: CARDS}
        assert not any(w.bucket in ALLOCATED_BUCKETS for w in said.words)
        # The scheduler has let go, the node has not: what the agent reads there is what makes it ROGUE.
        assert lab.pids_of(node, job) == processes
        assert lab.cards_open_to(node, job) == {0, 1, 2}
        assert held_by_the_node(lab, node) == {0: {job}, 1: {job}, 2: {job}}
        down = wall_unix_ms(SystemClock())
        stranger = awaited(lambda: rogue_ms(beside, node, down), "the account calls it ROGUE")
        assert stranger.keys() == {"root"}
        assert 0 < stranger["root"] <= 3 * (wall_unix_ms(SystemClock()) - down)
        answer = awaited(lambda: with_rogues(beside, node), "the API shows it")
        assert {c["user"] for c in answer["cards_list"] if c["user"]} == {"root"}
        assert not answer["cards_list"][0]["row"]["rogue"]  # the node alone cannot know
    finally:
        lab.run("scancel", job)
        lab.start_slurmd(node)
        lab.until("the node is back", lambda: _state(lab, node) == "IDLE")


def _state(lab: Lab, node: str) -> str:
    """The node's state; sinfo by itself may show an old one for minutes after a node went down."""
    found_state = re.search(r"State=(\S+)", lab.run("scontrol", "show", "node", node))
    assert found_state is not None
    return found_state[1]


def test_doctor_says_that_it_answers_and_what_it_hides(lab: Lab) -> None:
    lab.until_state(lab.submit("--gres=gpu:2"), "R")
    facts = {fact[0]: fact for fact in doctor_slurm.slurm(lab.environ)}
    assert facts["slurm"][1:3] == ("ok", f"cluster lab, 22.5: {len(lab.nodes)} nodes, 256 cards")
    assert facts["slurm jobs"][1] == "ok"
    assert facts["gres.conf"][1] == "ok"
    with lab.rest() as url:
        assert doctor_slurm.slurmrestd(url)[1] == "ok"
    assert doctor_slurm.slurmrestd("unix:///nowhere")[1] == "failed"


def test_without_a_slurm_here_nothing_can_be_compared(tmp_path: Path) -> None:
    done = subprocess.run(
        [*FLOPWATCH, "check", "allocation", "--scheduler", "slurm"],
        env=environment(SLURM_CONF=str(tmp_path / "slurm.conf")),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("flopwatch: no slurm.conf")


def test_a_scheduler_that_falls_silent_is_an_event_once_and_another_when_it_is_back(
    lab: Lab, beside: Collector
) -> None:
    def events(kind: str) -> Any:
        listed = beside.get("/api/v1/events", cluster="real", window="15m")
        records = next(value for value in listed.values() if isinstance(value, list))
        return [record for record in records if record["kind"] == kind]

    awaited(lambda: states(beside, lab.nodes[0]) or None, "a roster")
    lab.stop_controller()
    try:
        silent = awaited(lambda: events("scheduler_silent"), "the event")
        taken = beside.sql("SELECT max(taken_unix_ms) AS t FROM roster")[0]["t"]
    finally:
        lab.start_controller()
    awaited(lambda: events("scheduler_answers"), "the other event")
    assert len(events("scheduler_silent")) == len(silent) == 1
    assert silent[0]["severity"] == "error"
    later = "SELECT max(taken_unix_ms) AS t FROM roster"
    awaited(lambda: beside.sql(later)[0]["t"] > taken or None, "rosters come again")
    metrics = beside.ask("/metrics").text
    assert 'flopwatch_roster_failures_total{source="slurm"}' in metrics
    assert 'flopwatch_roster_taken_timestamp_seconds{cluster="real",source="slurm"}' in metrics

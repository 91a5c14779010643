"""A real collector beside a real Slurm: what it accounts, what it says, and what `check` finds."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flopwatch.cli import doctor_slurm
from processes import FLOPWATCH, Collector, awaited, collector, environment
from slurm.lab import CARDS, Lab

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
    awaited(lambda: states(beside, node) == {"ALLOCATED": 5, "FREE": 3} or None, "the roster")
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
        [*FLOPWATCH, "check", "allocation"],
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

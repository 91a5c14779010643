"""The loop that asks Slurm: what it stores, what it says once, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from flopwatch_collector.config import load
from flopwatch_collector.roster.answers import Answers, NotAnsweredError
from flopwatch_collector.roster.gather import SlurmRosters
from flopwatch_collector.roster.metrics import RosterMetrics
from flopwatch_collector.roster.slurm_settings import SlurmConfig
from flopwatch_collector.telemetry.arrival import declared
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

NOW = 1_795_370_000_000


class Asker:
    """Answers what it was given, in turn; the last one for ever."""

    def __init__(self, *answers: Answers | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def ask(self) -> Answers:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise NotAnsweredError("slurm_load_jobs error: Unable to contact slurm controller")
        return answer


class Sink:
    """Remembers rosters."""

    def __init__(self) -> None:
        self.rosters: list[tuple[str, bool, Columns]] = []

    def roster(self, cluster: str, simulated: bool, columns: Columns) -> None:
        self.rosters.append((cluster, simulated, columns))


def answers(used: str, *jobs: dict[str, Any]) -> Answers:
    node = {
        "name": "n1", "state": "mixed", "state_flags": [], "partitions": ["a"],
        "gres": "gpu:h100:2", "gres_used": used,
    }  # fmt: skip
    nodes, listed = {"nodes": [node]}, {"jobs": list(jobs)}
    return Answers(
        cluster="lab",
        version="22.05",
        nodes=json.dumps(nodes).encode(),
        jobs=json.dumps(listed).encode(),
    )


JOB = {
    "job_id": 7, "job_state": "RUNNING", "account": "red", "user_name": "ada", "nodes": "n1",
    "gres_detail": ["gpu:h100:1(IDX:0)"],
}  # fmt: skip
EXPLAINED = answers("gpu:h100:1(IDX:0)", JOB)
HIDDEN = answers("gpu:h100:2(IDX:0-1)", JOB)


def declare(store: TelemetryStore, cluster: str = "lab", *, simulated: bool = False) -> None:
    slots = [
        pb.SlotDeclaration(
            node="n1",
            slot=f"s{i}",
            device_kind="gpu",
            state=pb.SLOT_STATE_IN_SERVICE,
            from_unix_ms=1,
        )
        for i in range(2)
    ]
    columns = declared(cluster, slots, NOW)
    store.append("slot", columns | {"simulated": [simulated] * len(slots)})


def rosters(store: TelemetryStore, asker: Asker, **config: Any) -> tuple[SlurmRosters, Sink]:
    sink = Sink()
    made = SlurmRosters(
        store=store,
        sink=sink,
        config=SlurmConfig(**config),
        metrics=RosterMetrics(CollectorRegistry()),
        now_unix_ms=lambda: NOW,
        asker=asker,
    )
    return made, sink


def events(store: TelemetryStore) -> list[str]:
    found: list[str] = store.query("SELECT kind FROM event FINAL ORDER BY kind")["kind"].to_pylist()
    return found


async def test_a_roster_is_stored_and_handed_over(store: TelemetryStore) -> None:
    declare(store)
    made, sink = rosters(store, Asker(EXPLAINED), partition_classes={"a": "training"})
    assert await made.once() is not None
    (cluster, simulated, columns) = sink.rosters[0]
    assert (cluster, simulated) == ("lab", False)
    assert columns["bucket"] == [0, Bucket.ALLOCATED, Bucket.FREE]
    stored = store.query("SELECT node, slot, job, team, user FROM roster ORDER BY slot, node")
    assert stored.to_pylist()[1] == {
        "node": "n1", "slot": "s0", "job": "7", "team": "red", "user": "ada",
    }  # fmt: skip
    assert events(store) == []


async def test_cards_in_use_without_a_job_are_asked_for_twice_before_they_are_called_hidden(
    store: TelemetryStore,
) -> None:
    declare(store)
    asker = Asker(HIDDEN, EXPLAINED, HIDDEN)
    made, sink = rosters(store, asker)
    said = await made.once()
    assert (asker.asked, said and said.hidden_cards) == (2, 0)
    assert events(store) == []
    for _ in range(2):
        said = await made.once()
        assert said is not None
        assert said.hidden_cards == 1
    assert len(sink.rosters) == 3
    assert events(store) == ["jobs_hidden"]  # said once, while it stands


async def test_a_cluster_without_slots_or_a_simulated_one_gets_no_roster(
    store: TelemetryStore,
) -> None:
    made, sink = rosters(store, Asker(EXPLAINED))
    assert await made.once() is None
    declare(store, "lab", simulated=True)
    assert await made.once() is None
    assert sink.rosters == []
    assert store.query("SELECT count() AS n FROM roster")["n"].to_pylist() == [0]


async def test_a_slurm_that_never_answered_is_nobodys_failure_unless_it_was_named(
    store: TelemetryStore,
) -> None:
    declare(store)
    made, _ = rosters(store, Asker(None), cluster="lab")
    assert await made.once() is None
    assert events(store) == []
    named, _ = rosters(store, Asker(None, None, EXPLAINED), enabled="on", cluster="lab")
    for _ in range(2):
        assert await named.once() is None
    assert events(store) == ["scheduler_silent"]
    assert await named.once() is not None
    assert events(store) == ["scheduler_answers", "scheduler_silent"]


@pytest.mark.parametrize(
    ("key", "text", "complaint"),
    [
        ("INTERVAL", "10m", "interval must be between"),
        ("HOW", "rest", "cluster must be set"),
        ("URL", "slurm:6820", "url must begin with"),
        ("ENABLED", "maybe", "allowed are auto, on, off"),
        ("INTERVALL", "1m", "slurm.interval"),
    ],
)
def test_a_wrong_section_is_one_clear_line(key: str, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        load(None, {f"FLOPWATCH_SLURM__{key}": text}, {})

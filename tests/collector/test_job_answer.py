"""The answer about a job, from a real store of made up rows, lines, captures, events and peers."""

from __future__ import annotations

from typing import Any

import pytest

from evidence_tables import row, slot
from flopwatch.simulate.ranks import generate
from flopwatch_collector.jobs import answer, read
from flopwatch_collector.jobs.lives import lives_of, to_the_second
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.telemetry.store import TelemetryStore
from stored import put, roll_up

HOUR = 3_600_000
START = 1_800_000_000_000 // HOUR * HOUR
NODES = 6


def rows(length_ms: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of 6 nodes × 4 cards; the last card of n3 is at two thirds of its clock, and throttled."""
    made = []
    for at in range(START, START + length_ms, 10_000):
        for n in range(NODES):
            for s in range(4):
                slow = (n, s) == (3, 3)
                said = row(
                    at, node=f"n{n}", name=f"s{s}", sm=0.9, tensor=0.45, clock=0.6 if slow else 0.9,
                    job="llama", team="t", workload_class="training", phase="steady",
                )  # fmt: skip
                said["sm_clock_mhz_seconds"] = (1098.0 if slow else 1647.0 + n + s) * 10
                said["throttled_thermal_hw_ms"] = 9_000.0 if slow else 0.0
                said["achievable_flops"] = said["capacity_flops"] * (0.6 if slow else 0.78)
                made.append(said | more)
    return made


DECLARED = {
    "model_flops": 989.4e12 * 10 * 0.31,
    "reported_flops": 989.4e12 * 10 * 0.31 * 1.125,
    "reported_mfu_ms": 0.38 * 9_000,
    "reported_ms": 9_000.0,
    "step_ms": 9_000.0,
    "steps_count": 3.0,
    "tokens_count": 1e5,
}


@pytest.fixture
def job(store: TelemetryStore) -> dict[str, Any]:
    """The answer about twenty minutes of a job whose card n3 s3 is hot."""
    end = START + 20 * 60_000
    slots = [slot(f"n{n}", f"s{s}", START) for n in range(NODES) for s in range(4)]
    put(store, "slot", slots, end)
    put(store, "interval", rows(20 * 60_000, **DECLARED), end)
    event = {
        "node": "n3", "slot": "s3", "time_unix_ms": START + 60_000, "kind": "xid", "code": 63,
        "severity": "warning", "text": "row remapped",
    }  # fmt: skip
    checkpoint = {
        "node": "n0", "time_unix_ms": START + 90_000, "kind": "job_checkpoint", "code": 400,
        "severity": "info", "job": "llama",
    }  # fmt: skip
    put(store, "event", [event], end)
    put(store, "event", [checkpoint], end)
    roll_up(store, end + 60_000)
    return asked(store, end)


def asked(store: TelemetryStore, now: int, capture: str | None = None) -> dict[str, Any]:
    life = to_the_second(store, "llama", lives_of(store, "llama", None, now)[0][-1])
    window = Window(start=life.start, end=life.end)
    return answer.job(store, "llama", life, window, now, capture=capture)


def test_a_hot_card_is_named_from_rows_alone(job: dict[str, Any]) -> None:
    said = job["answer"]
    first = said["stragglers"]["culprits"][0]
    assert (first["kind"], first["node"], first["slot"]) == ("slow_clock", "n3", "s3")
    assert "thermal hw" in " ".join(first["evidence"])
    assert said["stragglers"]["from"] == "rows"
    assert said["verdict"]["machine"]["state"] == "yes"
    evidence = " ".join(said["verdict"]["machine"]["evidence"])
    for words in ("below their fleet, the worst n3 s3", "xid 63: 1×, first on n3 s3", "slow clock"):
        assert words in evidence
    assert "culprit n3 s3 (slow clock)" in said["receipt"]
    assert said["receipt"].startswith("SIMULATED 24 x H100, 0.3 h, MFU 31.0 %")


def test_the_figures_and_the_bridge_are_of_the_same_sums(job: dict[str, Any]) -> None:
    assert job["simulated"] is True
    assert (job["cluster"], job["team"], job["nodes_count"]) == ("atlas", "t", NODES)
    assert job["cards"]["allocated"] == pytest.approx(24.0)
    assert job["mfu"]["value"] == pytest.approx(0.31)
    bridge = job["answer"]["bridge"]
    assert bridge["reported"] == pytest.approx(0.38)
    assert bridge["ours"] == pytest.approx(job["mfu"]["value"])
    assert sum(s["points"] or 0 for s in bridge["steps"]) == pytest.approx(0.31 - 0.38)
    assert job["answer"]["ceiling"] == pytest.approx((23 * 0.78 + 0.6) / 24)
    assert job["answer"]["events"] == [
        {"time": "2027-01-15T08:01:30Z", "kind": "job_checkpoint", "step": 400}
    ]
    assert job["answer"]["causes"][0]["step"] == "tensor_gap"
    assert isinstance(job["answer"]["flags"], list)


def test_a_capture_is_looked_at_before_rows(
    store: TelemetryStore,
) -> None:
    now = START + 10 * 60_000
    made = generate(42, "late_rank", 0.3, nodes=8)
    places = sorted(set(zip(made.nodes, made.slots, strict=True)))
    put(store, "slot", [slot(n, s, START) for n, s in places], now)
    put(
        store, "interval",
        [
            row(at, node=n, name=s, sm=0.9, tensor=0.4, job="llama")
            for n, s in places for at in range(START, now, 10_000)
        ],
        now,
    )  # fmt: skip
    shift = now - 70_000 - int(made.taken_unix_ms.min())
    parts = [
        {
            "id": "c1", "node": r["node"], "slot": r["slot"], "part": 0, "last": True, "readings": 60,
            "taken_unix_ms": [t + shift for t in r["taken_unix_ms"]],
            "names": list(r["columns"]),
            "values": [
                [float("nan") if v is None else v for v in values] for values in r["columns"].values()
            ],
        }
        for r in made.readings()
    ]  # fmt: skip
    put(store, "capture", [*parts, parts[0] | {"slot": "of another job"}], now)
    found = asked(store, now)["answer"]["stragglers"]
    assert (found["from"], found["capture"], found["cards"]) == ("capture", "c1", 64)
    life = lives_of(store, "llama", None, now)[0][-1]
    # Rows arrive later than captures: the window of a job that runs ends before the newest readings.
    early = Window(start=life.start, end=now - 80_000)
    said = answer.job(store, "llama", life, early, now)["answer"]["stragglers"]
    assert said["capture"] == "c1"
    said = answer.job(store, "llama", life, early, now + 600_000)["answer"]["stragglers"]
    assert said["capture"] is None
    first = found["culprits"][0]
    assert made.fault is not None
    assert made.fault.is_at(first["node"], first["slot"])
    assert first["kind"] == "late_rank"
    assert found["every_s"] == pytest.approx(1.0, abs=0.05)
    assert asked(store, now, "c1")["answer"]["stragglers"] == found
    assert asked(store, now, "other")["answer"]["stragglers"]["judged"] is False


def test_a_capture_too_large_is_refused_with_its_size(
    store: TelemetryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = {
        "id": "c1", "node": "n0", "slot": "s0", "part": 0, "last": True, "readings": 2,
        "taken_unix_ms": [START, START + 1000], "names": ["sm_active_ratio"], "values": [[0.1, 0.2]],
    }  # fmt: skip
    put(store, "capture", [part], START)
    assert not isinstance(read.capture_counters(store, "atlas", "c1", {("n0", "s0")}), str)
    monkeypatch.setattr(read, "COUNTERS_MAX", 1)
    said = read.capture_counters(store, "atlas", "c1", {("n0", "s0")})
    assert said == "2 readings are too many to compare; capture less at once"


def test_jobs_are_listed_and_whole_hours_make_peers(store: TelemetryStore) -> None:
    now = START + HOUR + 120_000
    put(store, "slot", [slot("n0", f"s{s}", START) for s in range(4)], now)
    made = [
        row(at, node="n0", name=f"s{s}", sm=0.9, tensor=0.4, job=job, workload_class="training")
        for at in range(START, START + HOUR, 10_000)
        for s, job in enumerate(("a", "a", "b", ""))
    ]
    put(store, "interval", made, now)
    roll_up(store, now)
    window = Window(start=START, end=START + HOUR)
    listed = answer.jobs(store, "atlas", window, now)
    assert [(j["name"], j["card_seconds"]) for j in listed] == [("a", 7200.0), ("b", 3600.0)]
    assert listed[0]["hfu"]["value"] == pytest.approx(0.4)
    found = read.jobs_of_days(store, True, now)
    assert [(j.job, j.cards, j.card_hours) for j in found] == [("a", 2.0, 2.0), ("b", 1.0, 1.0)]
    assert found[0].hfu == pytest.approx(0.4)
    assert read.jobs_of_days(store, False, now) == []

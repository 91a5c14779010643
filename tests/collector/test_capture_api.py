"""Captures over the API of a real web process: asking, progress, readings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from evidence_tables import row, slot
from flopwatch_collector.control import captures, operations
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.telemetry.capture import capture_columns
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.web import shapes
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from web.web_server import put, reads, running, said

NOW_MS = time.time_ns() // 1_000_000
ROW_MS = NOW_MS // 10_000 * 10_000 + 600_000
"""Rows of jobs lie ahead, so that they are the newest however long this takes."""


@dataclass(slots=True, kw_only=True)
class Asking:
    url: str
    store: TelemetryStore
    control: ControlStore

    def post(self, **body: Any) -> httpx.Response:
        url = f"{self.url}/api/v1/captures"
        return httpx.post(url, json=body, timeout=30, trust_env=False)

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        url = f"{self.url}/api/v1/captures{path}"
        return httpx.get(url, params=parameters, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    directory = tmp_path_factory.mktemp("captures")
    store = TelemetryStore.open(f"chdb://{directory}/telemetry")
    control = ControlStore.open(f"sqlite:///{directory}/control.db")
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        stack.callback(control.close)
        _fill(store)
        stack.enter_context(reads(store, directory, "127.0.0.1:1"))
        url = said(stack.enter_context(running(directory)))
        yield Asking(url=url, store=store, control=control)


def _fill(store: TelemetryStore) -> None:
    """Job `run` on two nodes of atlas, one card of which has gone to `other`; and simulated cards."""
    put(store, "atlas", "slot", [slot(n, s, 1) for n in ("n0", "n1") for s in ("a", "b")], NOW_MS)
    before, now = ROW_MS - 10_000, ROW_MS
    rows = [row(at, node=n, name=s, job="run") for at in (before, now) for n in ("n0", "n1")
            for s in ("a", "b") if (at, n, s) != (now, "n1", "b")]  # fmt: skip
    rows.append(row(now, node="n1", name="b", job="other"))
    put(store, "atlas", "interval", [r | {"simulated": False} for r in rows], NOW_MS)
    twice = [row(now, node="x", job="both") | {"simulated": False}]
    for cluster in ("left", "right"):
        put(store, cluster, "interval", twice, NOW_MS)
    simulated = row(now, node="sim-0", job="played") | {"simulated": True}
    put(store, "toy", "interval", [simulated], NOW_MS)
    taken = (
        time.time_ns() // 1_000_000
    )  # a roster holds for minutes: not from the suite's beginning
    roster = {
        "taken_unix_ms": taken, "valid_until_unix_ms": taken + 3_600_000, "source": "slurm",
        "node": "s0", "slot": "a", "job": "77", "bucket": int(Bucket.ALLOCATED), "weight": 1.0,
        "team": "", "user": "", "workload_class": "", "pending_jobs": 0, "pending_cards": 0,
        "simulated": False,
    }  # fmt: skip
    put(store, "hall", "roster", [roster, roster | {"slot": "b", "job": "78"}], NOW_MS)


def answer(asking: Asking, capture_id: str, *nodes: str) -> None:
    """Store what nodes would answer, as ingest does, and note it."""
    for node in nodes:
        part = pb.Capture(id=capture_id, slot="a", last=True, taken_unix_ms=[NOW_MS, NOW_MS + 100])
        part.columns.add(name="power_watts", values=[300.5, float("nan")])
        part.columns.add(name="sm_active_ratio", values=[0.25, 0.5])
        where: dict[str, list[Any]] = {"cluster": ["atlas"], "node": [node], "simulated": [False]}
        columns = {**capture_columns([part]), **where, "stored_unix_ms": [NOW_MS]}
        asking.store.append("capture", columns)
        captures.note(asking.control, NOW_MS, answered=[(capture_id, "atlas", node, "a")])


def test_a_job_is_asked_where_its_newest_rows_are(asking: Asking) -> None:
    response = asking.post(job="run", seconds=30, readings_per_second=10, by="ann")
    assert response.status_code == 201
    said = response.json()
    shapes.Capture.model_validate(said)
    assert (said["cluster"], said["job"], said["state"]) == ("atlas", "run", "asked")
    assert (said["slots"], said["answered"], said["asked_by"]) == (3, 0, "ann")
    ranks = [(rank["node"], rank["slot"], rank["state"]) for rank in said["ranks"]]
    assert ranks == [("n0", "a", "asked"), ("n0", "b", "asked"), ("n1", "a", "asked")]
    (found,) = (r for r in captures.open_rows(asking.control)[-1:] if r["id"] == said["id"])
    assert found["to_unix_ms"] - found["from_unix_ms"] == 30_000
    assert found["from_unix_ms"] > found["asked_unix_ms"]
    assert found["readings_per_second"] == 10
    newest = operations.audit(asking.control)[0]
    assert (newest["who"], newest["what"]) == ("ann", "capture")
    assert newest["subject"] == f"atlas/{said['id']}"


def test_a_job_that_only_a_roster_knows_is_asked_by_its_word(asking: Asking) -> None:
    said = asking.post(job="77", seconds=1).json()
    assert [(r["node"], r["slot"]) for r in said["ranks"]] == [("s0", "a")]


def test_nodes_are_asked_for_a_window_that_lies_back(asking: Asking) -> None:
    body = {"from": _moment(NOW_MS - 3_600_000), "to": _moment(NOW_MS)}
    said = asking.post(cluster="atlas", nodes=["n1"], **body).json()
    assert [(r["node"], r["slot"]) for r in said["ranks"]] == [("n1", "a"), ("n1", "b")]
    assert (said["to"], said["job"], said["asked_by"]) == (body["to"], None, "127.0.0.1")
    assert said["from"] > body["from"]


def test_progress_and_readings_of_an_answer(asking: Asking) -> None:
    capture_id = asking.post(job="run", cluster="atlas", seconds=1).json()["id"]
    answer(asking, capture_id, "n0", "n1")
    said = asking.get(f"/{capture_id}").json()
    assert (said["slots"], said["answered"], said["state"]) == (3, 2, "sent")
    assert [(r["node"], r["slot"], r["taken_unix_ms"]) for r in said["readings"]] == [
        (node, "a", [NOW_MS, NOW_MS + 100]) for node in ("n0", "n1")
    ]
    columns = {"power_watts": [300.5, None], "sm_active_ratio": [0.25, 0.5]}
    assert said["readings"][0]["columns"] == columns
    one = asking.get(f"/{capture_id}", node="n1").json()
    assert {r["node"] for r in (*one["readings"], *one["ranks"])} == {"n1"}
    assert "readings" not in asking.get(f"/{capture_id}", readings="false").json()
    text = asking.get(f"/{capture_id}.csv")
    assert text.headers["content-type"].startswith("text/csv")
    assert text.text.splitlines() == [
        "node,slot,taken_unix_ms,power_watts,sm_active_ratio",
        f"n0,a,{NOW_MS},300.5,0.25",
        f"n0,a,{NOW_MS + 100},,0.5",
        f"n1,a,{NOW_MS},300.5,0.25",
        f"n1,a,{NOW_MS + 100},,0.5",
    ]
    assert len(asking.get(f"/{capture_id}.csv", node="n0").text.splitlines()) == 3
    listed = asking.get("", cluster="atlas").json()["captures"]
    assert capture_id in [entry["id"] for entry in listed]
    assert asking.get("", cluster="nowhere").json() == {"captures": [], "truncated": False}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"job": "nobody", "seconds": 5}, 404, "job 'nobody' holds no card now"),
        ({"job": "both", "seconds": 5}, 422, "cluster: several have this job: left, right"),
        ({"job": "played", "seconds": 5}, 422, "simulated"),
        ({"nodes": ["n0", "n9"], "cluster": "atlas", "seconds": 5}, 404, "node 'n9' of"),
        ({"nodes": [], "cluster": "atlas", "seconds": 5}, 422, "nodes"),
        ({"nodes": ["n0"], "seconds": 5}, 422, "cluster"),
        ({"job": "run", "nodes": ["n0"], "seconds": 5}, 422, "job"),
        ({"seconds": 5}, 422, "job"),
        ({"job": "run"}, 422, "seconds"),
        ({"job": "run", "seconds": 5, "from": "2026-11-01T00:00:00Z"}, 422, "seconds"),
        ({"job": "run", "seconds": 901}, 422, "seconds"),
        ({"job": "run", "seconds": 5, "readings_per_second": 11}, 422, "readings_per_second"),
        ({"job": "run", "seconds": 5, "rate": 1}, 422, "rate"),
        ({"job": "run", "from": "yesterday", "to": "now"}, 422, "from"),
        ({"job": "run", "from": "2026-11-01T00:00:01Z", "to": "2026-11-01T00:00:00Z"}, 422, "to"),
        ({"job": "run", "from": "2026-11-01T00:00:00Z", "to": "2026-11-01T00:01:00Z"}, 422, "to"),
        ({"job": "run", "from": "2026-11-01T00:00:00Z", "to": "2126-11-01T00:01:00Z"}, 422, "to"),
    ],
)
def test_what_cannot_be_asked_is_a_problem_that_says_why(
    asking: Asking, body: dict[str, Any], status: int, says: str
) -> None:
    response = asking.post(**body)
    assert (response.status_code, response.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert says in response.json()["detail"]


def test_a_form_of_another_site_cannot_ask(asking: Asking) -> None:
    content = b'{"job": "run", "seconds": 5}'
    url = f"{asking.url}/api/v1/captures"
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = httpx.post(url, content=content, headers={"content-type": kind}, trust_env=False)
        assert response.status_code == 422
    bare = httpx.Request("POST", url, content=content)
    with httpx.Client(trust_env=False) as client:
        assert client.send(bare).status_code == 422


def test_the_page_of_the_api_says_what_a_request_holds(asking: Asking) -> None:
    page = httpx.get(f"{asking.url}/api/docs", timeout=30, trust_env=False)
    assert page.status_code == 200
    assert "POST /api/v1/captures</code>" in page.text
    assert "<code>readings_per_second</code></th><td>body</td><td>0: as often as" in page.text


def test_captures_that_nobody_knows_are_not_found(asking: Asking) -> None:
    assert asking.get("/nothing").status_code == 404
    assert asking.get("/nothing.csv").status_code == 404


def test_too_many_open_slots_are_refused(asking: Asking) -> None:
    slots = [("n0", str(i)) for i in range(4 * 4096)]
    filling = captures.CaptureAsk(
        id="filling", cluster="atlas", slots=slots, from_unix_ms=NOW_MS, to_unix_ms=NOW_MS + 1,
        readings_per_second=0, asked_unix_ms=NOW_MS, asked_by="a test",
    )  # fmt: skip
    captures.ask(asking.control, filling)
    response = asking.post(job="run", seconds=5)
    assert response.status_code == 429
    assert response.json()["title"] == "Too many"


def _moment(unix_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_ms / 1000))

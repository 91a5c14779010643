"""Captures between the control store, the streams of real agents, and the telemetry store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from evidence_tables import slot as declared
from flopwatch_agent.reading import Device, Reading
from flopwatch_agent.recorder import Recorder
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_collector.captures import OUTAGE_NODES_MAX, Captures
from flopwatch_collector.control import captures
from flopwatch_collector.control.captures import CaptureAsk
from flopwatch_collector.control.store import DAY_MS, ControlStore
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.rules import Cause
from flopwatch_collector.telemetry.capture import capture_columns, places_of_nodes, readings_held
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import PermanentError, RetryableError
from flopwatch_proto.rows import SlotState
from flopwatch_proto.v1 import telemetry_pb2 as pb
from web.web_server import put

NOW_MS = time.time_ns() // 1_000_000
HOUR_MS = 3_600_000
SOON = Backoff(base_seconds=0.01, max_seconds=0.05)


class Nobody:
    """A Sink that wants to know nothing."""

    def add_many(self, *_: object) -> None: ...
    def roster(self, *_: object) -> None: ...
    def slots(self, *_: object) -> None: ...
    def hello(self, *_: object) -> None: ...
    def status(self, *_: object) -> None: ...
    def goodbye(self, *_: object) -> None: ...


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    yield opened
    opened.close()


class Node:
    """A real stream with a recorder that holds ten readings of each slot. Attributes: heard: requests."""

    def __init__(self, port: int, name: str, slots: Sequence[str] = ("0", "1")) -> None:
        self.recorder = Recorder()
        self.heard: list[pb.CaptureRequest] = []
        for taken in range(NOW_MS - 10_000, NOW_MS, 1000):
            for slot in slots:
                device = Device(slot=slot, kind="gpu", sku=None)
                values = {"power_watts": float(NOW_MS - taken)}
                reading = Reading(
                    device=device, taken_unix_ms=taken, boottime_ns=taken, values=values
                )
                self.recorder.see(reading, ())
        self.spool = Spool.open(None)
        identity = StreamIdentity(cluster="atlas", node_id=name, agent_version="0")
        self.stream = Stream(f"127.0.0.1:{port}", identity, self.spool, backoff=SOON)
        self.stream.on_capture = self._take
        self.task = asyncio.create_task(self.stream.run())

    def _take(self, capture: pb.CaptureRequest) -> None:
        self.heard.append(capture)
        self.recorder.request(capture, NOW_MS)

    async def answer(self) -> None:
        for part in self.recorder.due(NOW_MS + 60_000):
            self.spool.append(pb.Payload(captures=[part]))
        self.stream.wake()
        await asyncio.wait_for(self.stream.drained(), 30)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass(slots=True)
class Ground:
    """A collector's parts that captures need, with a clock that the test moves."""

    store: TelemetryStore
    control: ControlStore
    captures: Captures
    port: int
    nodes: list[Node]
    now_unix_ms: int = NOW_MS

    def node(self, name: str) -> Node:
        self.nodes.append(Node(self.port, name))
        return self.nodes[-1]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Poll, as the collector does every 2 s, until the condition holds."""
        async with asyncio.timeout(30):
            while not condition():
                await self.captures.poll()
                await asyncio.sleep(0.05)

    def states(self, capture_id: str) -> list[tuple[str, str, str]]:
        return captures.places(self.control, capture_id)


@pytest.fixture
async def ground(store: TelemetryStore, control: ControlStore) -> AsyncIterator[Ground]:
    made = Ground(store, control, Captures(control, store, lambda: made.now_unix_ms), 0, [])
    server = IngestServer(store, Nobody(), registry=CollectorRegistry(), captures=made.captures)
    made.port = await server.start("127.0.0.1:0")
    yield made
    for node in made.nodes:
        await node.end()
    await server.stop(5.0)


def wanted(capture_id: str, *places: tuple[str, str], **more: Any) -> CaptureAsk:
    asked = CaptureAsk(
        id=capture_id,
        cluster="atlas",
        slots=places,
        from_unix_ms=NOW_MS - 60_000,
        to_unix_ms=NOW_MS,
        readings_per_second=10,
        asked_unix_ms=NOW_MS,
        asked_by="a test",
    )
    return replace(asked, **more)


async def test_what_is_asked_reaches_the_node_and_its_answer_the_store(ground: Ground) -> None:
    node, other = ground.node("n1"), ground.node("n2")
    captures.ask(ground.control, wanted("c", ("n1", "0"), ("n1", "1")))
    await ground.until(lambda: bool(node.heard))
    (request,) = node.heard
    assert (request.id, list(request.slots)) == ("c", ["0", "1"])
    assert (request.from_unix_ms, request.to_unix_ms) == (NOW_MS - 60_000, NOW_MS)
    assert request.readings_per_second == 10
    await ground.until(lambda: {s for *_, s in ground.states("c")} == {"sent"})
    await node.answer()
    await ground.until(lambda: {s for *_, s in ground.states("c")} == {"answered"})
    first, second = readings_held(ground.store, "atlas", "c", None)
    assert (first["node"], first["slot"], second["slot"]) == ("n1", "0", "1")
    assert first["taken_unix_ms"] == list(range(NOW_MS - 10_000, NOW_MS, 1000))
    assert first["columns"] == {"power_watts": [float(i) for i in range(10_000, 0, -1000)]}
    assert other.heard == []
    (summary,) = captures.summaries(ground.control)
    assert (summary["slots"], summary["answered"], summary["sent"]) == (2, 2, 0)


async def test_a_request_is_sent_again_on_a_new_stream_until_it_is_answered(
    ground: Ground,
) -> None:
    captures.ask(ground.control, wanted("c", ("n1", "0")))
    node = ground.node("n1")
    await ground.until(lambda: len(node.heard) == 1)
    await ground.captures.poll()
    await node.end()
    again = ground.node("n1")
    await ground.until(lambda: len(again.heard) == 1)
    await again.answer()
    await ground.until(lambda: ground.states("c") == [("n1", "0", "answered")])
    await again.end()
    third = ground.node("n1")
    captures.ask(ground.control, wanted("later", ("n1", "0")))
    await ground.until(lambda: bool(third.heard))
    assert [request.id for request in third.heard] == ["later"]


async def test_a_node_that_stays_away_for_an_hour_is_not_asked_any_more(ground: Ground) -> None:
    captures.ask(ground.control, wanted("c", ("away", "0")))
    await ground.captures.poll()
    assert ground.states("c") == [("away", "0", "asked")]
    ground.now_unix_ms = NOW_MS + HOUR_MS + 1
    await ground.captures.poll()
    assert ground.states("c") == [("away", "0", "expired")]
    assert captures.standing(ground.control).slots == 0


async def test_an_answer_that_a_crash_left_unnoted_is_found_at_the_next_start(
    store: TelemetryStore, control: ControlStore
) -> None:
    captures.ask(control, wanted("c", ("n1", "0"), ("n1", "1")))
    parts = [pb.Capture(id="c", slot="0", last=True), pb.Capture(id="c", slot="1", part=0)]
    columns = capture_columns(parts)
    origin: Columns = {"cluster": ["atlas"] * 2, "node": ["n1"] * 2, "simulated": [False] * 2}
    store.append("capture", {**columns, **origin, "stored_unix_ms": [NOW_MS] * 2})
    await Captures(control, store, lambda: NOW_MS).poll()
    assert captures.places(control, "c") == [("n1", "0", "answered"), ("n1", "1", "asked")]


async def test_a_control_store_that_fails_for_a_while_loses_no_answer(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures.ask(ground.control, wanted("c", ("n1", "0")))
    await ground.captures.poll()
    append(ground.store, [part(1, last=True)], NOW_MS)
    where: Columns = {
        "id": ["c"],
        "cluster": ["atlas"],
        "node": ["n1"],
        "slot": ["0"],
        "last": [True],
    }
    ground.captures.answered(where)

    def broken(*_: object, **__: object) -> None:
        raise RetryableError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(captures, "note", broken)
        await ground.captures.poll()
    assert ground.states("c") == [("n1", "0", "asked")]
    await ground.captures.poll()
    assert ground.states("c") == [("n1", "0", "answered")]


async def test_the_newest_stream_of_a_node_is_the_one_that_is_asked(ground: Ground) -> None:
    old: list[pb.CollectorFrame] = []
    new: list[pb.CollectorFrame] = []
    ground.captures.opened("atlas", "n1", old.append)
    ground.captures.opened("atlas", "n1", new.append)
    ground.captures.closed("atlas", "n1", old.append)
    captures.ask(ground.control, wanted("c", ("n1", "0")))
    await ground.captures.poll()
    await ground.captures.poll()
    assert (len(old), len(new)) == (0, 1)


# ---- outages


FIRING = IncidentState(
    rule="allocation",
    cluster="atlas",
    state=State.FIRING,
    episode="2027-01-15T08:00Z",
    began_unix_ms=NOW_MS - 400_000,
    fired_unix_ms=NOW_MS - 100_000,
    last_eval_unix_ms=NOW_MS,
    causes=tuple(Cause(kind="node", name=f"n{i:02}", cards=1, points=1) for i in range(20)),
)


def test_an_outage_that_begins_to_fire_asks_its_nodes_once(
    store: TelemetryStore, control: ControlStore
) -> None:
    nodes = [cause.name for cause in FIRING.causes]
    put(store, "atlas", "slot", [declared(node, "0", 1) for node in nodes], NOW_MS)
    control.save(states=[FIRING, replace(FIRING, cluster="toy", simulated=True)])
    for _ in range(2):
        asking = Captures(control, store, lambda: NOW_MS)
        asyncio.run(asking.poll())
    (asked,) = captures.summaries(control)
    assert (asked["cluster"], asked["slots"]) == ("atlas", OUTAGE_NODES_MAX)
    assert asked["asked_by"] == "outage allocation/atlas/2027-01-15T08:00Z"
    assert asked["from_unix_ms"] == NOW_MS - 700_000
    assert asked["to_unix_ms"] == NOW_MS + 20_000
    assert [node for node, _, _ in captures.places(control, asked["id"])] == nodes[:16]


def test_an_outage_of_nodes_that_are_not_there_asks_nobody(
    store: TelemetryStore, control: ControlStore
) -> None:
    control.save(states=[FIRING, replace(FIRING, rule="mfu", causes=())])
    asyncio.run(Captures(control, store, lambda: NOW_MS).poll())
    assert captures.summaries(control) == []


# ---- the two stores


def test_asking_with_one_id_twice_changes_nothing(control: ControlStore) -> None:
    captures.ask(control, wanted("c", ("n1", "0")))
    captures.note(control, NOW_MS, answered=[("c", "atlas", "n1", "0")])
    captures.ask(control, wanted("c", ("n1", "0"), asked_by="somebody else"))
    captures.note(control, NOW_MS, sent=[("c", "atlas", "n1")])
    assert captures.places(control, "c") == [("n1", "0", "answered")]
    (summary,) = captures.summaries(control)
    assert summary["asked_by"] == "a test"


def test_captures_are_pruned_with_their_readings(control: ControlStore) -> None:
    captures.ask(control, wanted("old", ("n1", "0"), asked_unix_ms=NOW_MS - 36 * DAY_MS))
    captures.ask(control, wanted("new", ("n1", "0")))
    control.prune(NOW_MS)
    assert [summary["id"] for summary in captures.summaries(control)] == ["new"]


def part(count: int, number: int = 0, **more: Any) -> pb.Capture:
    times = range(NOW_MS, NOW_MS + count * 1000, 1000)
    made = pb.Capture(id="c", slot="0", part=number, taken_unix_ms=times, **more)
    made.columns.add(name="power_watts", values=[float("nan"), *range(1, count)])
    return made


def append(store: TelemetryStore, parts: Sequence[pb.Capture], stored_unix_ms: int) -> None:
    constant: dict[str, Any] = {"cluster": "atlas", "node": "n1", "simulated": False}
    constant["stored_unix_ms"] = stored_unix_ms
    columns = capture_columns(parts)
    columns |= {name: [value] * len(parts) for name, value in constant.items()}
    store.append("capture", columns)


def test_of_a_part_that_comes_twice_the_fuller_one_stands(store: TelemetryStore) -> None:
    append(store, [part(5)], NOW_MS)
    append(store, [part(5)], NOW_MS + 1)
    append(store, [part(2), part(3, 1, last=True)], NOW_MS + 2)
    (held,) = readings_held(store, "atlas", "c", "n1")
    assert len(held["taken_unix_ms"]) == 8
    assert held["columns"] == {"power_watts": [None, 1.0, 2.0, 3.0, 4.0, None, 1.0, 2.0]}


def test_parts_with_other_fields_are_put_together(store: TelemetryStore) -> None:
    second = pb.Capture(id="c", slot="0", part=1, last=True, taken_unix_ms=[NOW_MS + 60_000])
    second.columns.add(name="sm_active_ratio", values=[0.3])
    append(store, [part(2), second], NOW_MS)
    (held,) = readings_held(store, "atlas", "c", None)
    assert held["columns"] == {
        "power_watts": [None, 1.0, None],
        "sm_active_ratio": [None, None, 0.3],
    }


@pytest.mark.parametrize(
    "wrong",
    [
        pb.Capture(slot="0"),
        pb.Capture(id="x" * 65),
        pb.Capture(id="c", columns=[pb.CaptureColumn(name="a", values=[1.0])]),
        pb.Capture(id="c", columns=[pb.CaptureColumn(name="a")] * 2),
        pb.Capture(id="c", columns=[pb.CaptureColumn(name=str(i)) for i in range(300)]),
        pb.Capture(id="c", taken_unix_ms=[0]),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(wrong: pb.Capture) -> None:
    with pytest.raises(PermanentError):
        capture_columns([wrong])


def test_slots_of_nodes_are_those_in_service(store: TelemetryStore) -> None:
    records = [
        declared("n1", "0", 1),
        declared("n1", "1", 1, state=SlotState.RETIRED),
        declared("n1", "2", 1, NOW_MS),
        declared("n2", "0", 1),
        declared("n3", "0", 1),
        declared("n1", "3", NOW_MS + 1),
    ]
    put(store, "atlas", "slot", records, NOW_MS)
    found = places_of_nodes(store, "atlas", ["n1", "n2"], NOW_MS)
    assert [(place.node, place.slot) for place in found] == [("n1", "0"), ("n2", "0")]

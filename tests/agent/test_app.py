"""The agent as a whole: from readings that a test makes to frames that a collector gets."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fake_collector import FakeCollector
from flopwatch_agent.__main__ import main
from flopwatch_agent.app import Agent
from flopwatch_agent.config import AgentConfig, AllocationConfig, JobsConfig, MetricsConfig
from flopwatch_agent.parts import Parts, build
from flopwatch_agent.reading import Device, Reading
from flopwatch_agent.sources import SourceReport
from flopwatch_agent.sources.registry import SourceEntry
from flopwatch_agent.spool import Spool
from flopwatch_agent.spool_disk import DiskStore
from flopwatch_agent.spool_record import Change
from flopwatch_agent.stream import Backoff
from flopwatch_proto import codec
from flopwatch_proto.settings import Duration
from flopwatch_proto.v1 import telemetry_pb2 as pb


class FakeSource:
    """One card that answers; its UUID can be changed."""

    name = "nvml"

    def __init__(self, name: str = "nvml", slot: str = "0000:18:00.0") -> None:
        self.name = name
        self.slot = slot
        self.uuid = "GPU-1"
        self.broken = False
        self.reads = 0
        self.closed = False

    async def start(self) -> None:
        pass

    async def read(self) -> SourceReport:
        self.reads += 1
        if self.broken:
            raise RuntimeError("out of order")
        device = Device(slot=self.slot, kind="gpu", sku="NVIDIA H100 80GB HBM3", uuid=self.uuid)
        reading = Reading(
            device=device,
            taken_unix_ms=time.time_ns() // 1_000_000,
            boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            values={"power_watts": 300.0},
            processes=(),
        )
        return SourceReport(readings=(reading,), driver_state="ok")

    async def close(self) -> None:
        self.closed = True


class Clock:
    """The host's clock; sleeping is not done in full, so that an interval passes quickly."""

    def __init__(self, speed: int = 20) -> None:
        self._speed = speed
        self._wall = time.time_ns()
        self._began = time.monotonic_ns()

    def _passed_ns(self) -> int:
        return (time.monotonic_ns() - self._began) * self._speed

    def wall_unix_ns(self) -> int:
        return self._wall + self._passed_ns()

    def boottime_ns(self) -> int:
        return self._passed_ns()

    def monotonic_seconds(self) -> float:
        return self._passed_ns() / 1e9

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self._speed)


class QuickSource(FakeSource):
    """Reads by the quick clock."""

    clock: Clock

    async def read(self) -> SourceReport:
        report = await super().read()
        if not report.readings:
            return report
        old = report.readings[0]
        reading = Reading(
            device=old.device,
            taken_unix_ms=self.clock.wall_unix_ns() // 1_000_000,
            boottime_ns=self.clock.boottime_ns(),
            values=old.values,
            processes=(),
        )
        return SourceReport(readings=(reading,), driver_state="ok")


@pytest.fixture
async def collector() -> AsyncIterator[FakeCollector]:
    made = FakeCollector()
    await made.start()
    yield made
    await made.kill()


def parts_of(tmp_path: Path, target: str, *sources: QuickSource) -> Parts:
    config = AgentConfig(
        cluster="atlas",
        node="n1",
        collector=target,
        data=tmp_path,
        interval=Duration(1),
        jobs=JobsConfig(socket=str(tmp_path / "jobs.sock"), otlp=""),
        metrics=MetricsConfig(listen=""),
        allocation=AllocationConfig(slurm="off", kubernetes="off"),  # whatever this host may be
    )
    clock = Clock()
    parts = build(config, clock)
    parts.streams[0]._backoff = Backoff(base_seconds=0.1)
    parts.streams[0]._random = random.Random(1)
    for source in sources:
        source.clock = clock
    parts.entries = tuple(
        SourceEntry(name=s.name, build=lambda config, s=s: s)  # type: ignore[misc]
        for s in sources
    )
    return parts


def payloads(collector: FakeCollector) -> list[pb.Payload]:
    return [codec.unpack(f.batch) for f in collector.seen if f.HasField("batch")]


async def stopped(agent: Agent, running: asyncio.Task[None], reason: str = "stop") -> None:
    agent.stop(reason)
    await asyncio.wait_for(running, 30)


async def test_rows_declarations_and_goodbye_reach_the_collector(
    tmp_path: Path, collector: FakeCollector
) -> None:
    source = QuickSource()
    agent = Agent(parts_of(tmp_path, collector.target, source))
    running = asyncio.create_task(agent.run())
    await collector.until(lambda: len(collector.stored) >= 4)
    source.uuid = "GPU-2"
    await collector.until(lambda: sum(len(p.slots) for p in payloads(collector)) >= 2)
    await stopped(agent, running, "upgrade")
    got = payloads(collector)
    slots = [s for p in got for s in p.slots]
    assert [(s.node, s.slot, s.device_uuid, s.state) for s in slots] == [
        ("n1", "0000:18:00.0", "GPU-1", pb.SLOT_STATE_IN_SERVICE),
        ("n1", "0000:18:00.0", "GPU-2", pb.SLOT_STATE_IN_SERVICE),
    ]
    starts = [s for p in got for s in p.intervals.start_unix_ms]
    ends = [
        s + d
        for p in got
        for s, d in zip(p.intervals.start_unix_ms, p.intervals.duration_ms, strict=True)
    ]
    assert starts[0] == slots[0].from_unix_ms
    assert starts[1:] == ends[:-1]
    goodbye = collector.seen[-1].goodbye
    assert (goodbye.reason, goodbye.back_in_ms) == ("upgrade", 120_000)
    assert source.closed


async def test_a_broken_source_is_counted_and_does_not_stop_the_others(
    tmp_path: Path, collector: FakeCollector
) -> None:
    good, bad = QuickSource(), QuickSource("processor", "cpu")
    bad.broken = True
    parts = parts_of(tmp_path, collector.target, good, bad)
    agent = Agent(parts)
    running = asyncio.create_task(agent.run())
    await collector.until(lambda: len(collector.stored) >= 2)
    failures = parts.health.source_failures.labels(source="processor")
    assert failures._value.get() >= 1
    bad.broken = False
    await collector.until(lambda: any("cpu" in p.intervals.strings for p in payloads(collector)))
    await stopped(agent, running)


async def test_what_an_absent_collector_missed_comes_after_a_restart(
    tmp_path: Path, collector: FakeCollector
) -> None:
    await collector.kill()
    parts = parts_of(tmp_path, collector.target, QuickSource())
    agent = Agent(parts)
    running = asyncio.create_task(agent.run())
    while parts.spool.pending_batches < 3:
        await asyncio.sleep(0.01)
    await stopped(agent, running)
    produced = parts.spool.rows_produced
    await collector.start()
    agent = Agent(parts_of(tmp_path, collector.target, QuickSource()))
    running = asyncio.create_task(agent.run())
    await collector.until(lambda: sum(collector.stored.values()) > produced)
    await stopped(agent, running)
    assert sorted(collector.stored) == list(range(1, len(collector.stored) + 1))
    assert len({hello.spool_id for hello in collector.hellos}) == 1


async def test_a_disk_that_stalls_holds_up_no_reading_and_loses_no_row_at_a_stop(
    tmp_path: Path, collector: FakeCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = QuickSource()
    parts = parts_of(tmp_path, collector.target, source)
    asked, moves = threading.Event(), threading.Event()
    append = parts.spool.append

    def stalled(payload: pb.Payload) -> None:
        asked.set()
        assert moves.wait(60)
        append(payload)

    monkeypatch.setattr(parts.spool, "append", stalled)
    agent = Agent(parts)
    running = asyncio.create_task(agent.run())
    while not asked.is_set():
        await asyncio.sleep(0.01)
    reads = source.reads
    while source.reads < reads + 20:
        await asyncio.sleep(0.01)
    agent.stop()  # what waits for the disk is cancelled, and what it waits for is not
    await asyncio.sleep(0.2)
    moves.set()
    await asyncio.wait_for(running, 60)
    rows = [
        (s, s + d)
        for p in payloads(collector)
        for s, d in zip(p.intervals.start_unix_ms, p.intervals.duration_ms, strict=True)
    ]
    assert len(rows) > 1
    assert [start for start, _ in rows[1:]] == [end for _, end in rows[:-1]]


class Disk:
    """Commits of one kind stall from `stall` until `move`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.moves = threading.Event(), threading.Event()
        self._wanted: Callable[[Change], bool] = lambda change: False
        commit = DiskStore.commit

        def stalled(store: DiskStore, change: Change) -> None:
            if self._wanted(change) and not self.moves.is_set():
                self.asked.set()
                if not self.moves.wait(20):  # whoever should let the disk move waits for it
                    self.moves.set()
            commit(store, change)

        monkeypatch.setattr(DiskStore, "commit", stalled)

    def stall(self, wanted: Callable[[Change], bool]) -> None:
        self._wanted = wanted

    async def until_asked(self) -> None:
        while not self.asked.is_set():
            await asyncio.sleep(0.01)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def is_append(change: Change) -> bool:
    return bool(change.put)


def is_acknowledgement(change: Change) -> bool:
    return not change.put


@pytest.mark.parametrize("wanted", [is_append, is_acknowledgement])
async def test_readings_watchdog_and_stream_go_on_while_the_disk_stalls(
    tmp_path: Path, collector: FakeCollector, disk: Disk, wanted: Callable[[Change], bool]
) -> None:
    collector.welcome.oldest_start_unix_ms = 1  # as a real one: the spool is asked what is older
    source = QuickSource()
    parts = parts_of(tmp_path, collector.target, source)
    parts.streams[0].status_seconds = parts.streams[0].idle_status_seconds = (
        1.0  # by a clock of 20 s a second
    )
    fed: list[str] = []
    parts.health.alive = lambda: fed.append("alive")  # type: ignore[method-assign]
    agent = Agent(parts)
    running = asyncio.create_task(agent.run())
    await collector.until(lambda: len(collector.stored) > 1)

    disk.stall(wanted)
    await disk.until_asked()
    reads, meals, said = source.reads, len(fed), len(collector.seen)
    while source.reads < reads + 20 or len(fed) < meals + 2:
        await asyncio.sleep(0.01)
    await collector.until(lambda: any(f.HasField("status") for f in collector.seen[said:]))
    sessions = parts.stream.counters.sessions
    collector.end()  # what the collector does is noticed too
    while parts.stream.counters.sessions == sessions:
        await asyncio.sleep(0.01)
    assert not disk.moves.is_set()  # none of it waited for the disk

    disk.moves.set()
    stored = len(collector.stored)
    await collector.until(lambda: len(collector.stored) > stored + 1)
    agent.stop()
    await asyncio.wait_for(running, 60)
    assert sorted(collector.stored) == list(range(1, len(collector.stored) + 1))


async def test_acknowledgements_that_come_while_the_disk_stalls_become_one(
    tmp_path: Path, disk: Disk
) -> None:
    spool = Spool.open(tmp_path)
    stream = parts_of(tmp_path / "agent", "127.0.0.1:1").streams[0]
    stream.spool = spool
    for start in range(10):
        rows = pb.IntervalRows(slot=[1], start_unix_ms=[start + 1], duration_ms=[1])
        spool.append(pb.Payload(intervals=rows))
    before = spool.state.generation
    disk.stall(is_acknowledgement)
    stream.acknowledged(1, 1)
    await disk.until_asked()
    for seq in range(2, 11):
        stream.acknowledged(seq, 1)
    assert not disk.moves.is_set()
    disk.moves.set()
    await asyncio.wait_for(stream.drained(), 30)
    assert spool.state.generation == before + 2
    assert (stream.counters.acked_batches, stream.counters.acked_rows) == (10, 10)
    spool.close()


async def test_notices_of_a_spool_whose_disk_stalls_are_taken_at_once(
    tmp_path: Path, disk: Disk
) -> None:
    spool = Spool.open(tmp_path)
    disk.stall(is_append)
    appending = asyncio.create_task(asyncio.to_thread(spool.append, pb.Payload()))
    await disk.until_asked()
    assert spool.take_notices() == []
    assert not disk.moves.is_set()
    disk.moves.set()
    await appending
    spool.close()


async def test_the_daemon_ends_cleanly_on_sigterm(tmp_path: Path, collector: FakeCollector) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flopwatch_agent", "--data", str(tmp_path)),
        *("--collector", collector.target, "--http", "127.0.0.1:0", "--interval", "1s"),
        *("--cluster", "atlas", "--node", "n7"),
        env={**os.environ, "FLOPWATCH_SOCKET": str(tmp_path / "jobs.sock")},
        stderr=asyncio.subprocess.PIPE,
    )
    await collector.until(lambda: len(collector.stored) >= 2)
    child.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(child.communicate(), 30)
    assert child.returncode == 0, errors.decode()
    assert collector.hellos[0].node_id == "n7"
    assert collector.seen[-1].goodbye.reason == "stop"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clustr", "x"], "--cluster"),
        (["--collector", "nowhere"], "HOST:PORT"),
        (["--config", "/nowhere/agent.toml"], "/nowhere/agent.toml"),
        (["--data", "/proc/nowhere"], "--data DIR"),
        (["--http", "x"], "metrics.listen"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_the_agent_imports_none_of_the_heavy_libraries() -> None:
    heavy = ("typer", "httpx", "sqlalchemy", "numpy", "pyarrow", "pynvml", "torch")
    code = (
        f"import sys, flopwatch_agent.__main__; print([m for m in {heavy!r} if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"

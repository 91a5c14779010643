"""One agent, two collectors: what one lacks it gets later, and the other never waits for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fake_collector import FakeCollector
from flopwatch_agent import config as module
from flopwatch_agent.config import load_config
from flopwatch_agent.spool import Spool
from flopwatch_agent.spool_reader import Reader
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_agent.streams import Streams
from flopwatch_proto.errors import UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb

SOON = Backoff(base_seconds=0.01, max_seconds=0.05)
WHO = StreamIdentity(cluster="atlas", node_id="atlas-0001", agent_version="0", boot_id="b")


class Pair:
    """Two collectors and the streams to them."""

    def __init__(self, primary: FakeCollector, standby: FakeCollector) -> None:
        self.primary, self.standby = primary, standby
        targets = (primary.target, standby.target)
        self.spool = Spool.open(None, readers=targets)
        self.each = [
            Stream(
                target, WHO, cast(Any, Reader(self.spool, target)),
                random=random.Random(1), backoff=SOON,
            )
            for target in targets
        ]  # fmt: skip
        self.streams = Streams(self.each)
        self.task = asyncio.create_task(self.streams.run())

    def append(self, rows: int) -> None:
        first = self.spool.rows_produced + 1
        starts = range(first, first + rows)
        self.spool.append(
            pb.Payload(
                intervals=pb.IntervalRows(
                    slot=[1] * rows, start_unix_ms=starts, duration_ms=[1] * rows
                )
            )
        )
        self.streams.wake()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    collectors = FakeCollector(), FakeCollector()
    for collector in collectors:
        await collector.start()
    made = Pair(*collectors)
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)
    for collector in collectors:
        await collector.kill()


async def test_both_get_everything_and_one_that_was_dead_gets_it_later(pair: Pair) -> None:
    pair.append(3)
    await pair.primary.until(lambda: pair.primary.stored == {1: 3})
    await pair.standby.until(lambda: pair.standby.stored == {1: 3})
    while not pair.spool.is_drained:  # what is stored is not acknowledged yet
        await asyncio.sleep(0.01)
    await pair.primary.kill()
    for _ in range(5):
        pair.append(2)
    await pair.standby.until(lambda: len(pair.standby.stored) == 6)
    assert len(pair.primary.stored) == 1
    while not pair.each[1].spool.is_drained:
        await asyncio.sleep(0.01)
    assert (pair.each[0].spool.pending_batches, pair.each[1].spool.pending_batches) == (5, 0)

    await pair.primary.start()
    await pair.primary.until(lambda: pair.primary.stored == pair.standby.stored)
    await asyncio.wait_for(pair.streams.drained(), 30)
    while not pair.spool.is_drained:
        await asyncio.sleep(0.01)
    assert pair.primary.gaps == pair.standby.gaps == []


async def test_the_streams_speak_as_one(pair: Pair) -> None:
    asked: list[str] = []
    pair.streams.on_capture = lambda capture: asked.append(capture.id)
    pair.append(3)
    await asyncio.wait_for(pair.streams.drained(), 30)
    while not pair.spool.is_drained:
        await asyncio.sleep(0.01)
    counters = pair.streams.counters
    assert (counters.connected, counters.sessions, counters.acked_rows) == (True, 2, 6)
    assert pair.streams.target == f"{pair.primary.target},{pair.standby.target}"
    pair.standby.send(pb.CollectorFrame(capture=pb.CaptureRequest(id="c")))
    while not asked:
        await asyncio.sleep(0.01)
    registry = CollectorRegistry()
    registry.register(pair.streams)
    page = generate_latest(registry).decode()
    assert f'flopwatch_collector_connected{{address="{pair.standby.target}"}} 1.0' in page
    assert f'flopwatch_collector_acked_rows_total{{address="{pair.primary.target}"}} 3.0' in page
    await pair.streams.goodbye("stop")
    await asyncio.wait_for(pair.task, 30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:1,b:2,c:3", "at most 2"),
        ("a:1,a:1", "twice"),
        ("a:1,", "HOST:PORT"),
        ("a:1,b", "HOST:PORT"),
    ],
)
def test_addresses_that_make_no_sense_are_refused(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(module, "DEFAULT_PATH", tmp_path / "agent.toml")
    assert load_config(None, {}, {"--collector": ("collector", "a:1, b:2")}).collector == "a:1, b:2"
    with pytest.raises(UsageError, match=said):
        load_config(None, {}, {"--collector": ("collector", text)})

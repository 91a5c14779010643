"""The streams of an agent: one per collector, over one spool. To the rest of the agent they are one.

Each has its own session, backoff and mark in the spool, so a collector that is absent delays nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flopwatch_agent.stream import Counters, Stream, StreamIdentity
from flopwatch_proto.v1 import telemetry_pb2 as pb


class Streams(Collector):
    """Streams with the verbs of one; also what `/metrics` says of each by its collector."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = tuple(streams)

    @property
    def identity(self) -> StreamIdentity:
        """Who speaks, on all of them."""
        return self._streams[0].identity

    @property
    def target(self) -> str:
        """The collectors' addresses, with commas."""
        return ",".join(stream.target for stream in self._streams)

    @property
    def counters(self) -> Counters:
        """Sums; connected where one is; error and skew of the first that has one."""
        each = [stream.counters for stream in self._streams]
        total = replace(each[0], rejects=dict(each[0].rejects))
        for other in each[1:]:
            for field in fields(Counters):
                mine, theirs = getattr(total, field.name), getattr(other, field.name)
                if field.name == "rejects":
                    for code, count in theirs.items():
                        mine[code] = mine.get(code, 0) + count
                elif isinstance(mine, int) and not isinstance(mine, bool):
                    setattr(total, field.name, mine + theirs)
                elif not mine:
                    setattr(total, field.name, theirs)
        return total

    @property
    def on_capture(self) -> Callable[[pb.CaptureRequest], None] | None:
        """Takes requests for readings, from whichever collector."""
        return self._streams[0].on_capture

    @on_capture.setter
    def on_capture(self, taker: Callable[[pb.CaptureRequest], None] | None) -> None:
        for stream in self._streams:
            stream.on_capture = taker

    def wake(self) -> None:
        """Say that the spool has something new."""
        for stream in self._streams:
            stream.wake()

    def tell(self, newest: pb.IntervalRows, driver_state: str) -> None:
        """Keep what Status says."""
        for stream in self._streams:
            stream.tell(newest, driver_state)

    async def drained(self) -> None:
        """Return when every collector that is there has acknowledged everything."""
        await asyncio.gather(*(s.drained() for s in self._streams if s.counters.connected))

    async def goodbye(self, reason: str, back_in_ms: int = 0) -> None:
        """Take leave of all; see `Stream.goodbye`."""
        await asyncio.gather(*(stream.goodbye(reason, back_in_ms) for stream in self._streams))

    async def run(self) -> None:
        """Keep a session with each for ever; return only after ``goodbye``."""
        async with asyncio.TaskGroup() as group:
            for stream in self._streams:
                group.create_task(stream.run())

    def collect(self) -> list[Metric]:
        """What `/metrics` says of each collector."""
        connected = GaugeMetricFamily(
            "flopwatch_collector_connected", "1 while a session with it stands.", labels=["address"]
        )
        pending = GaugeMetricFamily(
            "flopwatch_collector_pending_batches", "Batches that wait for it.", labels=["address"]
        )
        acked = CounterMetricFamily(
            "flopwatch_collector_acked_rows", "Rows that it acknowledged.", labels=["address"]
        )
        for stream in self._streams:
            label = [stream.target]
            connected.add_metric(label, stream.counters.connected)
            pending.add_metric(label, stream.spool.pending_batches)
            acked.add_metric(label, stream.counters.acked_rows)
        return [connected, pending, acked]

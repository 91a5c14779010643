"""A small collector for tests of the stream: it keeps what it is sent and acknowledges by script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc as rpc


class FakeCollector(rpc.IngestServicer):
    """Speaks the protocol over real gRPC on 127.0.0.1.

    Attributes:
        seen: frames in the order they came, apart from Hello.
        stored: seq → rows, of batches that were acknowledged.
        hold: while set, nothing is acknowledged.
        answer: None, or what to send instead of the acknowledgement of a batch.
        in_flight_max: most frames received and not acknowledged at one time.
    """

    def __init__(self) -> None:
        self.welcome = pb.Welcome(session="s", credit_batches=4, credit_bytes=1 << 20)
        self.ack_credit = 4
        self.hellos: list[pb.Hello] = []
        self.seen: list[pb.AgentFrame] = []
        self.stored: dict[int, int] = {}
        self.gaps: list[pb.Gap] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.answer: Callable[[pb.Batch], list[pb.CollectorFrame] | None] | None = None
        self.in_flight_max = 0
        self.news = asyncio.Event()
        self.port = 0
        self.ping_interval_ms = 10_000
        self._out: list[asyncio.Queue[pb.CollectorFrame | None]] = []
        self._server: Any = None

    async def start(self) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", self.ping_interval_ms),
            ]
        )
        rpc.add_IngestServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        assert self.port
        await self._server.start()

    async def kill(self) -> None:
        await self._server.stop(0)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def send(self, frame: pb.CollectorFrame) -> None:
        """Send a frame on the newest stream."""
        self._out[-1].put_nowait(frame)

    def end(self) -> None:
        """End the newest stream."""
        self._out[-1].put_nowait(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is asked whenever something comes."""
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def Stream(
        self, request_iterator: AsyncIterator[pb.AgentFrame], context: Any
    ) -> AsyncIterator[pb.CollectorFrame]:
        out: asyncio.Queue[pb.CollectorFrame | None] = asyncio.Queue()
        self._out.append(out)
        taker = asyncio.create_task(self._take(request_iterator, out))
        try:
            while (frame := await out.get()) is not None:
                yield frame
        finally:
            taker.cancel()

    async def _take(
        self,
        frames: AsyncIterator[pb.AgentFrame],
        out: asyncio.Queue[pb.CollectorFrame | None],
    ) -> None:
        waiting: asyncio.Queue[pb.AgentFrame] = asyncio.Queue()
        acker = asyncio.create_task(self._acknowledge(waiting, out))
        async for frame in frames:
            kind = frame.WhichOneof("frame")
            if kind == "hello":
                self.hellos.append(frame.hello)
                out.put_nowait(pb.CollectorFrame(welcome=self.welcome))
            else:
                self.seen.append(frame)
            if kind in ("batch", "gap"):
                waiting.put_nowait(frame)
                self.in_flight_max = max(self.in_flight_max, waiting.qsize())
            self.news.set()
            if kind == "goodbye":
                break
        if self.hold.is_set():
            await waiting.join()
        acker.cancel()
        out.put_nowait(None)

    async def _acknowledge(
        self, waiting: asyncio.Queue[pb.AgentFrame], out: asyncio.Queue[pb.CollectorFrame | None]
    ) -> None:
        while True:
            await self.hold.wait()
            frame = await waiting.get()
            waiting.task_done()
            if frame.HasField("batch") and self.answer is not None:
                answers = self.answer(frame.batch)
                if answers is not None:
                    for answer in answers:
                        out.put_nowait(answer)
                    self.news.set()
                    continue
            if frame.HasField("batch"):
                through, rows = frame.batch.seq, frame.batch.row_count
                self.stored[through] = rows
            else:
                through, rows = frame.gap.last_seq, 0
                self.gaps.append(frame.gap)
            ack = pb.Ack(through_seq=through, stored_rows=rows, credit_batches=self.ack_credit)
            out.put_nowait(pb.CollectorFrame(ack=ack))
            self.news.set()

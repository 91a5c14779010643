"""One open stream of ingest, and what its first frame must say."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Final

import grpc

from flopwatch_collector.audit.skew import Skew
from flopwatch_collector.ingest_limits import IN_FLIGHT_MAX, Bucket
from flopwatch_collector.telemetry.arrival import Origin
from flopwatch_collector.trust.identity import Identity
from flopwatch_proto.v1 import telemetry_pb2 as pb

PROTOCOL_REVISION: Final = 1
PROTOCOL_REVISIONS: Final = range(max(1, PROTOCOL_REVISION - 2), PROTOCOL_REVISION + 2)
"""What is understood: this collector's revision, two older ones, and one newer."""
NAME_CHARACTERS_MAX: Final = 253

Context = grpc.aio.ServicerContext[pb.AgentFrame, pb.CollectorFrame]


@dataclass(slots=True, eq=False)
class OpenStream:
    """One open stream.

    Attributes:
        serving: the task that reads it.
        identity: of its certificate; None in clear text.
        received_seq: the last seq that came; None before the first.
        without_credit: it was told to hold its fire.
        in_flight: frames that wait for a commit.
        outbox: frames to write; at most one Ack, because a newer one says all of an older one.
        ended: with what status and text it was ended from this side; None: it was not.
    """

    origin: Origin
    context: Context
    serving: asyncio.Task[object]
    identity: Identity | None = None
    skew: Skew = field(default_factory=Skew)
    bucket: Bucket = field(default_factory=Bucket)
    received_seq: int | None = None
    through_seq: int = 0
    without_credit: bool = False
    in_flight: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    outbox: list[pb.CollectorFrame] = field(default_factory=list)
    writing: asyncio.Task[None] | None = None
    ended: tuple[grpc.StatusCode, str] | None = None

    def tell(self, frame: pb.CollectorFrame) -> None:
        """Write a frame as soon as the ones before it are written."""
        if self.outbox and frame.HasField("ack"):
            stored_rows = sum(f.ack.stored_rows for f in self.outbox)
            frame.ack.stored_rows += stored_rows
            self.outbox = [f for f in self.outbox if not f.HasField("ack")]
        self.outbox.append(frame)
        if self.writing is None or self.writing.done():
            self.writing = asyncio.create_task(self._write())

    def end(self, code: grpc.StatusCode, why: str) -> None:
        """End it from this side; the agent reads the reason."""
        if self.ended is None:
            self.ended = (code, why)
            self.serving.cancel()

    def came(self) -> None:
        """Count a frame that waits for a commit."""
        self.in_flight += 1
        if self.in_flight >= IN_FLIGHT_MAX:
            self.room.clear()

    def landed(self) -> None:
        """Count one that was committed."""
        self.in_flight -= 1
        self.room.set()

    async def has_room(self) -> None:
        """Return when another frame may wait."""
        while self.in_flight >= IN_FLIGHT_MAX:
            await self.room.wait()

    async def _write(self) -> None:
        # Writing to a stream that ended raises any of these; its reader sees the end as well.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError, grpc.aio.BaseError):
            while self.outbox:
                await self.context.write(self.outbox.pop(0))


def wrong(first: pb.AgentFrame) -> str | None:
    """Return what is wrong with the first frame of a stream, or None."""
    if not first.HasField("hello"):
        return "the first frame must be a Hello"
    hello = first.hello
    if hello.protocol_revision not in PROTOCOL_REVISIONS:
        return (
            f"protocol revision {hello.protocol_revision} is not one of "
            f"{PROTOCOL_REVISIONS.start} to {PROTOCOL_REVISIONS.stop - 1}: update the older side"
        )
    for name in ("cluster", "node_id", "spool_id"):
        text = getattr(hello, name)
        if not (1 <= len(text) <= NAME_CHARACTERS_MAX) or not text.isprintable():
            return f"{name} must have 1 to {NAME_CHARACTERS_MAX} printable characters"
    return None

"""The wire of one simulated node: the agent's own spool, in memory, and the agent's own stream."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Final

from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_proto.v1 import telemetry_pb2 as pb

_VERSION: Final = version("flopwatch")
_END_SECONDS_MAX: Final = 5.0
_BACKOFF: Final = Backoff(max_seconds=5.0)  # a person waits; a simulator is not a fleet


class Link:
    """One node's way to the collector."""

    def __init__(self, target: str, *, cluster: str, node: str, interval_ms: int) -> None:
        self.node = node
        self._spool = Spool.open(None)
        identity = StreamIdentity(
            cluster=cluster,
            node_id=node,
            agent_version=_VERSION,
            boot_id=f"simulated-{node}",
            simulated=True,
        )
        self._stream = Stream(
            target, identity, self._spool, interval_ms=interval_ms, backoff=_BACKOFF
        )
        self._running: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether a collector has welcomed this node and the stream stands."""
        return self._stream.counters.connected

    @property
    def error(self) -> str:
        """Why the last session ended; empty while one stands."""
        return self._stream.counters.last_error

    @property
    def refused(self) -> dict[str, int]:
        """What the collector will never take: reason → batches, or rows that it keeps no longer."""
        refused = dict(self._stream.counters.rejects)
        if self._spool.state.dropped_rows:
            refused["rows dropped"] = self._spool.state.dropped_rows
        return refused

    def start(self) -> None:
        """Connect, and keep connecting, until the link is closed."""
        if self._running is None:
            self._running = asyncio.create_task(self._stream.run(), name=f"stream {self.node}")

    def append(self, payload: pb.Payload) -> None:
        """Hand over what the node has to say."""
        self._spool.append(payload)
        self._stream.wake()

    async def drained(self) -> None:
        """Return when everything handed over is acknowledged."""
        await self._stream.drained()

    async def close(self, reason: str) -> None:
        """Say goodbye, where there is a stream to say it on, and end."""
        running, self._running = self._running, None
        if running is None:
            return
        await self._stream.goodbye(reason)
        await asyncio.wait({running}, timeout=_END_SECONDS_MAX if self.connected else 0.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

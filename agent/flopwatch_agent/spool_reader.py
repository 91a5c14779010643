"""A spool as one of its collectors sees it: what the stream to that collector works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flopwatch_agent.spool import Spool
from flopwatch_agent.spool_marks import as_seen_by
from flopwatch_agent.spool_record import State
from flopwatch_proto.v1 import telemetry_pb2 as pb

_Answer = TypeVar("_Answer")


class Reader:
    """Has the properties and verbs of the spool that a stream uses; the mark is this collector's own."""

    def __init__(self, spool: Spool, name: str) -> None:
        self._spool = spool
        self._name = name

    @property
    def spool_id(self) -> str:
        """As the spool's."""
        return self._spool.spool_id

    @property
    def next_seq(self) -> int:
        """As the spool's."""
        return self._spool.next_seq

    @property
    def state(self) -> State:
        """Identity and cumulative counters, as if this collector were the only one."""
        return as_seen_by(self._spool.state, self._name)

    @property
    def pending_batches(self) -> int:
        """Batches that this collector has not acknowledged."""
        return self._spool.batches_ahead(self.state.acked_seq)

    @property
    def pending_bytes(self) -> int:
        """About what the records take that this collector has not acknowledged."""
        batches = self._spool.pending_batches
        return self._spool.pending_bytes * self.pending_batches // batches if batches else 0

    @property
    def is_drained(self) -> bool:
        """Whether this collector acknowledged everything."""
        return self.state.acked_seq + 1 >= self._spool.next_seq

    def oldest_unix_ms(self) -> int:
        """Return the start of the oldest record that is pending; 0 without any."""
        return self._spool.oldest_unix_ms(self._name)

    async def aside(self, verb: Callable[..., _Answer], *args: Any, **kwargs: Any) -> _Answer:
        """As the spool's."""
        return await self._spool.aside(verb, *args, **kwargs)

    def pending(
        self, after_seq: int, batches_max: int, bytes_max: int, *, at_least_one: bool = False
    ) -> list[pb.AgentFrame]:
        """As the spool's, above this collector's mark."""
        return self._spool.pending(
            after_seq, batches_max, bytes_max, at_least_one=at_least_one, reader=self._name
        )

    def acknowledge(self, through_seq: int) -> None:
        """Move this collector's mark."""
        self._spool.acknowledge(through_seq, self._name)

    def drop_older_than(self, oldest_start_unix_ms: int) -> None:
        """Note what this collector keeps; what nobody keeps becomes a gap."""
        self._spool.drop_older_than(oldest_start_unix_ms, self._name)

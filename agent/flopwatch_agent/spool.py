"""The spool: what was measured and is not yet acknowledged. Nothing leaves it uncounted.

    append ─► [ gap 1–40 ][ 41 ][ 42 ] … [ 97 ] ─► stream        acknowledge(41) deletes 1–41
               oldest                  newest

Invariants

1. A batch has a place before it has a number: its seq is assigned in the transaction that stores it, and
   that transaction is on disk (WAL, synchronous=FULL) when ``append`` returns.
2. Records tile the numbers: each seq above ``acked_seq`` and below ``next_seq`` lies in exactly one
   record, a batch or a gap. So every row ever appended is acknowledged, pending, or in a gap.
3. What is lost is said: when the spool is full the oldest batches go and the Gap that stands for them
   comes in one transaction; adjacent gaps of one reason merge. Batches that were sent and are not
   acknowledged are not dropped, since they may have been stored.
4. Every record carries its own check. A damaged or vanished record is a hole in the numbers, which is
   declared as a gap when it is read; its rows follow from its neighbours.
5. No state of the file keeps the agent from starting: see ``spool_salvage``.

With two collectors each has a mark of its own: see ``spool_marks``.

When the disk refuses (full, read-only, failing), batches go on into a bounded ring in memory under the
numbers that follow, the spool is ``degraded``, and every ten seconds it tries to move the ring to the
file in one transaction. Meanwhile ``spool.journal``, whose blocks are allocated, takes the state, so that
a process that dies then knows which numbers are gone (gap ``disk_error``). One case is not covered: killed
while the file system refuses the journal too, the agent uses those numbers again; rows have natural keys,
so no row is lost or doubled by that, but the collector reports the number twice.

Without a directory the spool is memory only: simulated nodes use it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from flopwatch_agent import spool_marks
from flopwatch_agent.clock import Clock, SystemClock
from flopwatch_agent.split import split
from flopwatch_agent.spool_home import Home, SpoolLimits
from flopwatch_agent.spool_record import (
    SEQ_MAX,
    Change,
    MemoryStore,
    Record,
    State,
    Store,
    batch_record,
    gap_over,
)
from flopwatch_agent.spool_salvage import new_state
from flopwatch_proto.v1 import telemetry_pb2 as pb

__all__ = ["Spool", "SpoolLimits"]

_CHUNK: Final = (256, 4 * 1024 * 1024)
_MEMORY_BYTES_MAX: Final = 64 * 1024 * 1024


_Answer = TypeVar("_Answer")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _alone(method: _Method) -> _Method:
    """One call at a time: an append in its thread, whose disk is slow, and what `aside` does."""

    @functools.wraps(method)
    def locked(self: Spool, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(_Method, locked)


class Spool:
    """See the module.

    One event loop owns it. Verbs wait for the disk and for each other, so a loop that must go on calls
    them in a thread: `append` in one of its own, the others by `aside`. Properties and `take_notices`
    never wait.
    """

    def __init__(
        self, store: Store, state: State, limits: SpoolLimits, readers: Sequence[str] = ()
    ) -> None:
        self._store = store
        self._readers = tuple(readers)
        self._state = spool_marks.marked_for(state, self._readers)
        self._limits = limits
        self._sent: dict[str, int] = {}
        self._kept_from: dict[str, int] = {}
        self._lock = threading.RLock()
        self._thread = ThreadPoolExecutor(1, "spool-aside") if isinstance(store, Home) else None
        if self._state is not state:
            self._commit(self._state, delete=(0, self._state.acked_seq))

    @classmethod
    def open(
        cls,
        directory: Path | None,
        limits: SpoolLimits | None = None,
        *,
        clock: Clock | None = None,
        readers: Sequence[str] = (),
    ) -> Spool:
        """Return the spool in the directory, made if new; None: in memory.

        Args:
            readers: the collectors' addresses; each keeps a mark of its own where there are several.

        Raises:
            UsageError: the directory cannot be written, or another process uses it.
        """
        limits = limits or SpoolLimits()
        if directory is None:
            memory = MemoryStore(limits.bytes_max or _MEMORY_BYTES_MAX)
            return cls(memory, new_state(), limits, readers)
        home = Home(directory, limits, clock or SystemClock())
        return cls(home, home.open(), limits, readers)

    # ---- what others ask --------------------------------------------------------------------

    @property
    def spool_id(self) -> str:
        """128 random bits in hex. Changes only where a spool that began without a disk gets one."""
        return self._state.spool_id

    @property
    def next_seq(self) -> int:
        """The seq that the next batch will get."""
        return self._state.next_seq

    @property
    def rows_produced(self) -> int:
        """Interval rows ever appended."""
        return self._state.produced_rows

    @property
    def newest_unix_ms(self) -> int:
        """End of the newest interval row ever appended, by this run or an earlier one; 0 without any."""
        return self._state.newest_unix_ms

    @property
    def state(self) -> State:
        """Identity and cumulative counters."""
        return self._state

    @property
    def degraded(self) -> bool:
        """Whether batches are in memory because the disk refuses them."""
        return self._store.degraded

    @property
    def pending_batches(self) -> int:
        """Batches not yet acknowledged; while degraded also those the disk cannot forget."""
        return self._store.batches

    @property
    def pending_bytes(self) -> int:
        """About what the records not yet acknowledged take."""
        return self._store.bytes

    @property
    def is_drained(self) -> bool:
        """Whether everything, gaps included, is acknowledged."""
        return self._state.acked_seq + 1 >= self._state.next_seq

    def batches_ahead(self, acked_seq: int) -> int:
        """Return how many batches wait beyond a mark."""
        return min(self._store.batches, self._state.next_seq - 1 - acked_seq)

    @_alone
    def oldest_unix_ms(self, reader: str = "") -> int:
        """Return the start of the oldest record that is pending; 0 without any."""
        records = self._read(spool_marks.mark_of(self._state, reader).acked_seq, 1, 0)
        return records[0].first_unix_ms if records else 0

    def take_notices(self) -> list[tuple[str, str]]:
        """Return and forget (kind, text) of what befell the spool, for events and the log."""
        if not isinstance(self._store, Home):
            return []
        # One by one and without the lock: an append that stalls may add another meanwhile.
        notices = self._store.notices
        return [notices.popleft() for _ in range(len(notices))]

    # ---- the verbs --------------------------------------------------------------------------

    async def aside(self, verb: Callable[..., _Answer], *args: Any, **kwargs: Any) -> _Answer:
        """Return what a verb of this spool returns, without holding up the loop while the disk stalls."""
        call = functools.partial(verb, *args, **kwargs)
        if self._thread is None:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    @_alone
    def append(self, payload: pb.Payload) -> int:
        """Store the payload, split where it is large; return the seq of its last batch."""
        self._settle()
        for batch in split(payload, self._limits.batch_bytes_max):
            record = batch_record(batch, self._state.next_seq, self._state.produced_rows)
            self._make_room(record.size_bytes)
            state = replace(
                self._state,
                next_seq=self._state.next_seq + 1,
                produced_batches=self._state.produced_batches + 1,
                produced_rows=self._state.produced_rows + record.rows,
                produced_bytes=self._state.produced_bytes + record.frame_bytes,
                newest_unix_ms=record.last_unix_ms if record.rows else self._state.newest_unix_ms,
            )
            if not batch.payload:
                state = spool_marks.count_dropped(state, [record], 1)
                record = gap_over([record], "too_large")
            self._commit(state, put=[record])
        return self._state.next_seq - 1

    @_alone
    def pending(
        self,
        after_seq: int,
        batches_max: int,
        bytes_max: int,
        *,
        at_least_one: bool = False,
        reader: str = "",
    ) -> list[pb.AgentFrame]:
        """Return Batch and Gap frames above ``after_seq`` in order, and hold them as sent.

        Args:
            bytes_max: of the frames together.
            at_least_one: return the first even if it is larger.
            reader: for whom, where there are several; above its mark too.
        """
        if batches_max < 1:
            return []
        after_seq = max(after_seq, spool_marks.mark_of(self._state, reader).acked_seq)
        records = self._read(after_seq, batches_max, bytes_max)
        if records and not at_least_one and records[0].size_bytes > bytes_max:
            return []
        if records:
            self._sent[reader] = max(self._sent.get(reader, 0), records[-1].last_seq)
        return [spool_marks.ahead_of(record, self._state, reader).to_frame() for record in records]

    @_alone
    def acknowledge(self, through_seq: int, reader: str = "") -> None:
        """Forget every record up to and with that seq, as soon as every reader acknowledged it."""
        through_seq = min(through_seq, self._state.next_seq - 1)
        mark = spool_marks.mark_of(self._state, reader)
        if through_seq <= mark.acked_seq:
            return
        last = self._store.ending_at(through_seq)
        rows = mark.acked_rows if last is None else last.rows_before + last.rows
        state = spool_marks.passed(self._state, reader, through_seq, rows)
        if state.acked_seq > self._state.acked_seq:
            self._commit(state, delete=(0, state.acked_seq))
        else:
            # It frees nothing: on disk with the next commit. Lost before that, it is sent twice.
            self._state = state
        self._settle()

    @_alone
    def drop_older_than(self, oldest_start_unix_ms: int, reader: str = "") -> None:
        """Declare batches that end before that time a gap, where no collector keeps such rows."""
        self._kept_from[reader] = oldest_start_unix_ms
        kept_from = min(self._kept_from.get(name, 0) for name in self._readers or (reader,))
        self._drop(lambda r: r.rows > 0 and r.last_unix_ms <= kept_from, "too_old", {})

    def close(self) -> None:
        """Release the files, when what runs aside has ended."""
        if self._thread is not None:
            self._thread.shutdown()
        if self._state.marks:
            self._commit(self._state)
        self._store.close()

    # ---- losses -----------------------------------------------------------------------------

    def _make_room(self, incoming_bytes: int) -> None:
        reason = "disk_error" if self._store.degraded else "spool_full"
        expired = self._store.expired_seq()
        if expired:
            self._drop(lambda r: r.last_seq <= expired, reason, self._sent)
        room_bytes = self._store.room_bytes()
        self._drop_bytes(incoming_bytes - room_bytes, reason, SEQ_MAX)
        # What waits for one collector alone, which may never come back, has half of the spool.
        lead, batches = spool_marks.lead_seq(self._state), self._store.batches
        if lead > self._state.acked_seq and batches:
            lag = self._store.bytes * (batches - self.batches_ahead(lead)) // batches
            self._drop_bytes(lag - (self._store.bytes + room_bytes) // 2, reason, lead)

    def _drop_bytes(self, excess: int, reason: str, through_seq: int) -> None:
        if excess <= 0:
            return
        # A little more than needed, so that a full spool does not drop at every append.
        left = excess + self._store.bytes // 64

        def still_full(record: Record) -> bool:
            nonlocal left
            if record.last_seq > through_seq:
                return False
            left -= record.size_bytes
            return left > -record.size_bytes

        self._drop(still_full, reason, self._sent)

    def _drop(self, wanted: Callable[[Record], bool], reason: str, sent: dict[str, int]) -> None:
        for after_seq, through_seq in spool_marks.droppable(self._state, sent):
            self._drop_head(
                lambda r, last=through_seq: r.last_seq <= last and wanted(r),  # type: ignore[misc]
                reason,
                after_seq,
            )

    def _drop_head(self, wanted: Callable[[Record], bool], reason: str, after_seq: int) -> None:
        """Replace the oldest batches, as long as they are wanted, by one gap."""
        after_seq = max(after_seq, self._state.acked_seq, self._store.floor_seq)
        done = False
        while not done:
            records = self._read(after_seq, *_CHUNK)
            run: list[Record] = []
            lost: list[Record] = []
            for record in records:
                if record.is_gap and record.reason == reason:
                    run.append(record)
                elif record.is_gap and not lost:
                    run = []
                elif not record.is_gap and wanted(record):
                    run.append(record)
                    lost.append(record)
                else:
                    done = not record.is_gap
                    break
            if not lost:
                return
            gap = gap_over(run, reason)
            state = spool_marks.count_dropped(self._state, lost, len(lost))
            self._commit(state, (gap.first_seq, gap.last_seq), [gap])

    def _read(self, after_seq: int, count: int, bytes_max: int) -> list[Record]:
        """Return records above the seq; a hole found on the way becomes a gap first."""
        after_seq = max(after_seq, self._state.acked_seq)
        records = self._store.read(after_seq, count, bytes_max)
        while not self._store.degraded and self._fill_first_hole(after_seq, records):
            records = self._store.read(after_seq, count, bytes_max)
        return records

    def _fill_first_hole(self, after_seq: int, records: list[Record]) -> bool:
        previous = self._store.ending_at(after_seq)
        expected = after_seq + 1
        rows_before = spool_marks.rows_through(self._state, after_seq)
        if previous is not None:
            rows_before = previous.rows_before + previous.rows
        for record in records:
            if record.first_seq > expected:
                self._fill(expected, record.first_seq - 1, rows_before, record.rows_before)
                return True
            expected, rows_before = record.last_seq + 1, record.rows_before + record.rows
        if not records and expected < self._state.next_seq:
            last = self._state.next_seq - 1
            self._fill(expected, last, rows_before, self._state.produced_rows)
            return True
        return False

    def _fill(self, first: int, last: int, rows_before: int, rows_after: int) -> None:
        """Declare a hole a gap; its rows follow from its neighbours."""
        rows = max(0, rows_after - rows_before)
        gap = Record(
            first_seq=first,
            last_seq=last,
            rows_before=rows_before,
            rows=rows,
            frame_bytes=0,
            first_unix_ms=0,
            last_unix_ms=0,
            reason="corrupt",
        )
        state = spool_marks.count_dropped(self._state, [gap], last - first + 1)
        self._commit(state, delete=(first, last), put=[gap])

    def _settle(self) -> None:
        self._state = spool_marks.marked_for(self._store.settle(self._state), self._readers)

    def _commit(
        self, state: State, delete: tuple[int, int] | None = None, put: list[Record] | None = None
    ) -> None:
        state = replace(state, generation=self._state.generation + 1)
        self._store.commit(Change(state=state, delete=delete, put=put or ()))
        self._state = state

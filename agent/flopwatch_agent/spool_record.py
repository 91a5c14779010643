"""What a spool holds: records, its state, and changes of both. Pure values and their checks.

Records tile the sequence numbers: every seq above ``acked_seq`` and below ``next_seq`` lies in exactly one
record, a batch (one seq) or a gap (a run of seqs whose batches were lost). ``rows_before`` counts the
interval rows of all seqs below, so the rows of a record that went missing follow from its neighbours.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import msgspec

from flopwatch_proto.v1 import telemetry_pb2 as pb

RECORD_OVERHEAD_BYTES: Final = 128
SEQ_MAX: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A batch, or a gap where ``reason`` is not empty.

    Attributes:
        rows: interval rows in the batch, or lost in the gap.
        frame_bytes: of the batch's frame, or of the frames lost.
        frame: the serialised Batch; empty for a gap.
    """

    first_seq: int
    last_seq: int
    rows_before: int
    rows: int
    frame_bytes: int
    first_unix_ms: int
    last_unix_ms: int
    reason: str = ""
    frame: bytes = b""

    @property
    def is_gap(self) -> bool:
        return self.reason != ""

    @property
    def size_bytes(self) -> int:
        """What the record takes in the spool, about."""
        return len(self.frame) + RECORD_OVERHEAD_BYTES

    def digest(self) -> bytes:
        """Return the check that is stored beside the record."""
        head = (
            f"{self.first_seq} {self.last_seq} {self.rows_before} {self.rows} {self.frame_bytes} "
            f"{self.first_unix_ms} {self.last_unix_ms} {self.reason} "
        )
        return hashlib.blake2b(head.encode() + self.frame, digest_size=16).digest()

    def to_frame(self) -> pb.AgentFrame:
        """Return the frame that the stream sends."""
        if not self.is_gap:
            return pb.AgentFrame(batch=pb.Batch.FromString(self.frame))
        return pb.AgentFrame(
            gap=pb.Gap(
                first_seq=self.first_seq,
                last_seq=self.last_seq,
                row_count=self.rows,
                bytes=self.frame_bytes,
                first_unix_ms=self.first_unix_ms,
                last_unix_ms=self.last_unix_ms,
                reason=self.reason,
            )
        )


def batch_record(batch: pb.Batch, seq: int, rows_before: int) -> Record:
    """Return the record of a batch, which gets its seq here."""
    batch.seq = seq
    batch.rows_before = rows_before
    frame = batch.SerializeToString()
    return Record(
        first_seq=seq,
        last_seq=seq,
        rows_before=rows_before,
        rows=batch.row_count,
        frame_bytes=len(frame),
        first_unix_ms=batch.first_unix_ms,
        last_unix_ms=batch.last_unix_ms,
        frame=frame,
    )


def gap_over(records: Sequence[Record], reason: str) -> Record:
    """Return the gap that stands for consecutive records, in order, at least one."""
    first, last = records[0], records[-1]
    timed = [r for r in records if r.last_unix_ms > 0]
    return Record(
        first_seq=first.first_seq,
        last_seq=last.last_seq,
        rows_before=first.rows_before,
        rows=sum(r.rows for r in records),
        frame_bytes=sum(r.frame_bytes for r in records),
        first_unix_ms=min((r.first_unix_ms for r in timed), default=0),
        last_unix_ms=max((r.last_unix_ms for r in timed), default=0),
        reason=reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far one of several collectors is.

    Attributes:
        name: the collector's address.
        acked_seq, acked_rows: as in State, by this collector.
        spared_rows: rows that were dropped after it had acknowledged them.
    """

    name: str
    acked_seq: int
    acked_rows: int
    spared_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a spool knows beside its records. Counters are cumulative over the spool's life.

    Attributes:
        acked_seq: every seq up to it was acknowledged, by all collectors.
        acked_rows: interval rows of those seqs.
        newest_unix_ms: end of the newest interval row ever appended; 0 without any.
        marks: by collector, where there are several; see ``spool_marks``.
    """

    spool_id: str
    next_seq: int = 1
    acked_seq: int = 0
    acked_rows: int = 0
    produced_batches: int = 0
    produced_rows: int = 0
    produced_bytes: int = 0
    dropped_batches: int = 0
    dropped_rows: int = 0
    dropped_bytes: int = 0
    generation: int = 0
    newest_unix_ms: int = 0
    marks: tuple[Mark, ...] = ()

    def encode(self) -> bytes:
        """Return the state as JSON after its check."""
        body = msgspec.json.encode(asdict(self))
        return hashlib.blake2b(body, digest_size=16).digest() + body

    @staticmethod
    def decode(blob: bytes) -> State | None:
        """Return the state, or None where the check fails."""
        check, body = blob[:16], blob[16:].rstrip(b"\0")
        if hashlib.blake2b(body, digest_size=16).digest() != check:
            return None
        fields = _known(State, msgspec.json.decode(body))
        fields["marks"] = tuple(Mark(**_known(Mark, mark)) for mark in fields.get("marks", ()))
        return State(**fields)


def _known(type_: type[State | Mark], fields: dict[str, Any]) -> dict[str, Any]:
    """Return what this version has fields for."""
    return {name: fields[name] for name in type_.__slots__ if name in fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One transaction. Attributes: delete: records that lie within these seqs go."""

    state: State
    delete: tuple[int, int] | None = None
    put: Sequence[Record] = ()


class Store(Protocol):
    """Where the records are. Commits and reads do not fail: the store finds another way.

    Attributes:
        batches, bytes: what it holds.
        floor_seq: batches up to it cannot be dropped now.
        degraded: batches are in memory because the disk refuses them.
    """

    @property
    def batches(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def floor_seq(self) -> int: ...
    @property
    def degraded(self) -> bool: ...

    def commit(self, change: Change) -> None:
        """Do all of the change or nothing; durable on return unless degraded."""
        ...

    def read(self, after_seq: int, count: int, bytes_max: int) -> list[Record]:
        """Return sound records that reach beyond ``after_seq``, in order; the first at any size."""
        ...

    def ending_at(self, seq: int) -> Record | None:
        """Return the sound record whose last seq it is."""
        ...

    def settle(self, state: State) -> State:
        """Go back to the disk where that is due and possible; return the state to go on with."""
        ...

    def room_bytes(self) -> int:
        """Return how much more fits; negative when there is too much already."""
        ...

    def expired_seq(self) -> int:
        """Return the last seq that is too old to keep; 0 for none."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


class MemoryStore:
    """Records in a list; for simulated nodes, and while the disk fails."""

    floor_seq = 0
    degraded = False

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._records: list[Record] = []
        self.batches = 0
        self.bytes = 0

    def commit(self, change: Change) -> None:
        if change.delete is not None:
            first, last = change.delete
            end = self._at(last + 1)
            if end > 0 and self._records[end - 1].last_seq > last:
                end -= 1
            start = self._at(first)
            for record in self._records[start:end]:
                self._count(record, -1)
            del self._records[start:end]
        for record in change.put:
            self._records.insert(self._at(record.first_seq), record)
            self._count(record, 1)

    def _count(self, record: Record, sign: int) -> None:
        self.batches += 0 if record.is_gap else sign
        self.bytes += sign * record.size_bytes

    def read(self, after_seq: int, count: int, bytes_max: int) -> list[Record]:
        found: list[Record] = []
        size = 0
        start = max(0, self._at(after_seq + 1) - 1)
        for record in self._records[start : start + count + 1]:
            if record.last_seq <= after_seq:
                continue
            size += record.size_bytes
            if len(found) == count or (found and size > bytes_max):
                break
            found.append(record)
        return found

    def ending_at(self, seq: int) -> Record | None:
        i = self._at(seq + 1) - 1
        return self._records[i] if i >= 0 and self._records[i].last_seq == seq else None

    def first_seq(self) -> int:
        """Return the first seq held; 0 when empty."""
        return self._records[0].first_seq if self._records else 0

    def settle(self, state: State) -> State:
        return state

    def room_bytes(self) -> int:
        return self._bytes_max - self.bytes

    def expired_seq(self) -> int:
        return 0

    def close(self) -> None:
        self._records.clear()

    def _at(self, first_seq: int) -> int:
        return bisect.bisect_left(self._records, first_seq, key=lambda r: r.first_seq)

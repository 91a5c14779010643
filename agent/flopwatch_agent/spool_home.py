"""Where a spool's records live on a host: the database, or a ring in memory while the disk refuses.

    healthy ──disk refuses──► ring behind the database ──every 10 s: one transaction──► healthy
    start without a usable disk ──► ring alone ──once it is empty──► healthy, under the file's identity

``commit`` and ``read`` never fail. A database that turns out to be damaged is salvaged on the spot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flopwatch_agent.clock import Clock
from flopwatch_agent.spool_disk import Ballast, DamagedError, DiskStore, Journal, lock
from flopwatch_agent.spool_record import SEQ_MAX, Change, MemoryStore, Record, State
from flopwatch_agent.spool_salvage import adopt, new_state, salvage
from flopwatch_proto.errors import UsageError

_FULL_OR_FAILING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_FREE_BYTES_MIN: Final = 1 << 30
_SPOOL_BYTES_MAX: Final = 1 << 30
_DELETED_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """Bounds of a spool.

    Attributes:
        bytes_max: the oldest batches are dropped, and counted, above it. None: 2 % of the file
            system and at most 1 GiB; 64 MiB in memory.
        bytes_floor: kept even where the file system has less free than it should.
        batch_bytes_max: larger payloads are split.
        memory_bytes_max, memory_seconds_max: the ring while the disk refuses.
        retry_seconds: between attempts to go back to the disk.
    """

    bytes_max: int | None = None
    bytes_floor: int = 4 * 1024 * 1024
    batch_bytes_max: int = 512 * 1024
    memory_bytes_max: int = 16 * 1024 * 1024
    memory_seconds_max: float = 600.0
    retry_seconds: float = 10.0


class Home:
    """A Store on a host's disk.

    Attributes:
        salvages: times a damaged database had to be salvaged.
        notices: (kind, text) of what befell the spool, newest last, for events and the log.
    """

    def __init__(self, directory: Path, limits: SpoolLimits, clock: Clock) -> None:
        self._directory = directory
        self._path = directory / "spool.db"
        self._limits = limits
        self._clock = clock
        self._ballast = Ballast(directory / "spool.ballast")
        self._lock: int | None = None
        self._journal: Journal | None = None
        self._disk: DiskStore | None = None
        self._ring: MemoryStore | None = None
        self._ages: deque[tuple[int, float]] = deque()
        self._retry_at = 0.0
        self.salvages = 0
        self.notices: deque[tuple[str, str]] = deque(maxlen=16)

    def open(self) -> State:
        """Return the state to begin with.

        Raises:
            UsageError: the directory cannot be written, or another process uses it.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = lock(self._directory)
            try:
                return self._move_in()
            except sqlite3.OperationalError:
                self._ballast.give_back()
                return self._move_in()
        except (OSError, sqlite3.Error) as exc:
            if _is_refusal(exc):
                raise UsageError(
                    f"{self._directory}: cannot be written ({exc}); give another with --data DIR, "
                    "or make it writable for this user"
                ) from exc
            self._turn_to_memory(str(exc))
            return new_state()

    def _move_in(self) -> State:
        adopt(self._path)
        try:
            disk = DiskStore(self._path)
            try:
                found = disk.state()
            except DamagedError:
                disk.close()  # what it wrote to the log is in the file then
                raise
        except DamagedError as exc:
            disk, found = self._salvage(str(exc), None)
        if self._journal is None:
            self._journal = Journal(self._directory / "spool.journal")
        change = _after_a_ring(found or new_state(), self._journal.read())
        try:
            disk.commit(change)
        except DamagedError as exc:
            disk.close()
            disk, _ = self._salvage(str(exc), change.state)
            disk.commit(change)
        self._disk = disk
        self._ballast.take()
        return change.state

    # ---- the store --------------------------------------------------------------------------

    @property
    def batches(self) -> int:
        parts = (self._disk, self._ring)
        return sum(part.batches for part in parts if part is not None)

    @property
    def bytes(self) -> int:
        parts = (self._disk, self._ring)
        return sum(part.bytes for part in parts if part is not None)

    @property
    def degraded(self) -> bool:
        return self._ring is not None

    @property
    def floor_seq(self) -> int:
        """What is on a disk that refuses cannot be dropped from it."""
        first = self._ring.first_seq() if self._ring is not None else 0
        return first - 1 if first else 0

    def commit(self, change: Change) -> None:
        if self._ring is None:
            assert self._disk is not None
            try:
                self._commit_to_disk(self._disk, change)
                return
            except (sqlite3.Error, OSError) as exc:
                self._turn_to_memory(str(exc))
        assert self._ring is not None
        self._ring.commit(change)
        now = self._clock.monotonic_seconds()
        self._ages.extend((r.last_seq, now) for r in change.put if not r.is_gap)
        if self._journal is not None:
            self._journal.write(change.state)

    def _commit_to_disk(self, disk: DiskStore, change: Change) -> None:
        try:
            disk.commit(change)
        except DamagedError as exc:
            self._disk, _ = self._salvage(str(exc), change.state)
            self._disk.commit(change)

    def read(self, after_seq: int, count: int, bytes_max: int) -> list[Record]:
        if self._ring is None:
            try:
                return self._read_disk(after_seq, count, bytes_max)
            except (sqlite3.Error, OSError) as exc:
                self._turn_to_memory(str(exc))
        assert self._ring is not None
        if self._disk is not None:
            with contextlib.suppress(sqlite3.Error):
                if records := self._disk.read(after_seq, count, bytes_max):
                    return records
        return self._ring.read(after_seq, count, bytes_max)

    def _read_disk(self, after_seq: int, count: int, bytes_max: int) -> list[Record]:
        assert self._disk is not None
        try:
            return self._disk.read(after_seq, count, bytes_max)
        except DamagedError as exc:
            self._disk, _ = self._salvage(str(exc), self._disk.committed)
        return self._disk.read(after_seq, count, bytes_max)

    def ending_at(self, seq: int) -> Record | None:
        if self._ring is not None and (record := self._ring.ending_at(seq)) is not None:
            return record
        with contextlib.suppress(sqlite3.Error):
            return self._disk.ending_at(seq) if self._disk is not None else None
        return None

    def settle(self, state: State) -> State:
        if self._ring is None or self._clock.monotonic_seconds() < self._retry_at:
            return state
        self._retry_at = self._clock.monotonic_seconds() + self._limits.retry_seconds
        self._ballast.give_back()
        try:
            if self._disk is not None:
                self._return(state)
            elif state.acked_seq + 1 >= state.next_seq:
                state = self._begin_on_disk(state)
        except (sqlite3.Error, OSError):
            pass  # still refuses: the notice of the beginning stands
        return state

    def _return(self, state: State) -> None:
        """Move the ring to the file in one transaction, over a connection made anew."""
        assert self._ring is not None
        assert self._disk is not None
        self._disk.close()
        self._disk = DiskStore(self._path)
        # What was acknowledged meanwhile goes first, a little at a time: that makes the room.
        before = self._disk.state() or state
        through = min(state.acked_seq, before.next_seq - 1)
        for seq in (*range(before.acked_seq, through, _DELETED_AT_ONCE), through):
            gone = replace(before, acked_seq=max(seq, before.acked_seq))
            self._disk.commit(Change(state=gone, delete=(0, gone.acked_seq)))
        records = self._ring.read(0, SEQ_MAX, SEQ_MAX)
        self._disk.commit(Change(state=state, delete=(0, state.acked_seq), put=records))
        self._ring = None
        self._ages.clear()
        self._ballast.take()
        self.notices.append(("spool_recovered", "batches are on disk again"))

    def _begin_on_disk(self, state: State) -> State:
        if self._lock is None:
            self._lock = lock(self._directory)
        found = self._move_in()
        self._ring = None
        self._ages.clear()
        self.notices.append(("spool_recovered", "batches are on disk"))
        return replace(
            found,
            dropped_batches=found.dropped_batches + state.dropped_batches,
            dropped_rows=found.dropped_rows + state.dropped_rows,
        )

    def room_bytes(self) -> int:
        if self._ring is not None:
            return self._ring.room_bytes()
        limits = self._limits
        try:
            fs = os.statvfs(self._directory)
        except OSError:
            return limits.bytes_floor - self.bytes
        total, free = fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize
        own = limits.bytes_max or min(_SPOOL_BYTES_MAX, total // 50)
        spare = self.bytes + free - max(total // 20, _FREE_BYTES_MIN)
        return min(own, max(spare, limits.bytes_floor)) - self.bytes

    def expired_seq(self) -> int:
        last = 0
        oldest = self._clock.monotonic_seconds() - self._limits.memory_seconds_max
        while self._ages and self._ages[0][1] < oldest:
            last = self._ages.popleft()[0]
        return last

    def close(self) -> None:
        if self._disk is not None:
            with contextlib.suppress(sqlite3.Error):
                self._disk.shrink()
            self._disk.close()
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            os.close(self._lock)
        self._disk = self._journal = self._lock = None

    # ---- what goes wrong --------------------------------------------------------------------

    def _turn_to_memory(self, text: str) -> None:
        self._ring = MemoryStore(self._limits.memory_bytes_max)
        self._retry_at = self._clock.monotonic_seconds() + self._limits.retry_seconds
        self.notices.append(("spool_degraded", f"the disk refuses batches: {text}"))

    def _salvage(self, text: str, known: State | None) -> tuple[DiskStore, State]:
        if self._disk is not None:
            self._disk.close()
        salvaged = salvage(self._path, known)
        self.salvages += 1
        self.notices.append(("spool_corrupt", f"the database was damaged and is salvaged: {text}"))
        return salvaged


def _after_a_ring(state: State, journal: State | None) -> Change:
    """Return what to store at start. The numbers of a ring that died with its process become a gap."""
    if (
        journal is None
        or journal.spool_id != state.spool_id
        or journal.next_seq <= state.next_seq
        or journal.generation <= state.generation
    ):
        return Change(state=state)
    first = max(state.next_seq, journal.acked_seq + 1)
    if first == journal.next_seq:
        return Change(state=journal)
    rows_before = state.produced_rows if first == state.next_seq else journal.acked_rows
    gap = Record(
        first_seq=first,
        last_seq=journal.next_seq - 1,
        rows_before=rows_before,
        rows=journal.produced_rows - rows_before,
        frame_bytes=0,
        first_unix_ms=0,
        last_unix_ms=0,
        reason="disk_error",
    )
    batches = state.dropped_batches + gap.last_seq - gap.first_seq + 1
    rows = state.dropped_rows + gap.rows
    after = replace(
        journal,
        dropped_batches=max(journal.dropped_batches, batches),
        dropped_rows=max(journal.dropped_rows, rows),
    )
    return Change(state=after, put=[gap])


def _is_refusal(exc: OSError | sqlite3.Error) -> bool:
    """Whether somebody has to act: not a disk that is full or fails now."""
    if isinstance(exc, OSError):
        return exc.errno not in _FULL_OR_FAILING
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)

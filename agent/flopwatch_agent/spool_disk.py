"""The spool's files: one SQLite database, a small journal beside it, and a lock.

    spool.db        records and state; WAL, synchronous=FULL: a commit is on disk when it returns
    spool.journal   4 KiB, allocated when made: the state alone, in two slots, for when the disk is full
    spool.ballast   blocks in reserve, given back when the disk is full
    spool.lock      held by the one process that uses the spool
    spool.N.corrupt databases that could not be read, the newest three

Every record carries its own check. A record that fails it is not returned: the spool sees a hole in the
sequence numbers there and declares a gap. What happens to a file that SQLite cannot read stands in
``spool_salvage``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from flopwatch_agent.spool_record import RECORD_OVERHEAD_BYTES, SEQ_MAX, Change, Record, State
from flopwatch_proto.errors import UsageError

_JOURNAL_SLOT_BYTES: Final = 2048
_BALLAST_BYTES: Final = 1024 * 1024
_MISSES_MAX: Final = 1_000
"""Numbers that are tried one by one where a damaged file cannot be read; more than a page holds."""
_COLUMNS: Final = (
    "first_seq, last_seq, rows_before, rows, frame_bytes, first_unix_ms, "
    "last_unix_ms, reason, frame, digest"
)
_SCHEMA: Final = """
create table if not exists record (
    first_seq integer primary key, last_seq integer not null, rows_before integer not null,
    rows integer not null, frame_bytes integer not null, first_unix_ms integer not null,
    last_unix_ms integer not null, reason text not null, frame blob not null, digest blob not null);
create table if not exists state (id integer primary key check (id = 1), body blob not null);
"""
_Row = tuple[int, int, int, int, int, int, int, str, bytes, bytes]


class DamagedError(sqlite3.DatabaseError):
    """The database cannot be read as one; salvage it."""


class DiskStore:
    """Records and state in one SQLite file. Methods raise sqlite3.Error, or DamagedError.

    Attributes: batches, bytes: what it holds; committed: the state of this process's last commit.
    """

    def __init__(self, path: Path, *, damaged: bool = False) -> None:
        """Open the file, made if new; damaged: only to read what can be read."""
        self.batches, self.bytes = 0, 0
        self.committed: State | None = None
        _check_head(path)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with _damage():
                self._begin(damaged)
        except BaseException:
            self.close()  # what it wrote to the log is in the file then, for who salvages it
            raise

    def _begin(self, damaged: bool) -> None:
        for pragma in (
            "auto_vacuum=incremental",
            "journal_mode=wal",
            "synchronous=full",
            # A short log: on a full disk the ballast must be room enough to write it out.
            "wal_autocheckpoint=32",
            "journal_size_limit=131072",
            "busy_timeout=1000",
        ):
            self._db.execute(f"pragma {pragma}").fetchall()
        if damaged:
            return
        self._db.executescript(_SCHEMA)
        # After a failed fsync the log may hold pages that only the page cache has: write it out anew.
        # A disk that is full refuses that, and may still take a deletion.
        try:
            self._db.execute("pragma wal_checkpoint(truncate)").fetchall()
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_FULL:
                raise
        self.batches, self.bytes = self._totals(0, SEQ_MAX)

    def state(self) -> State | None:
        """Return the state; None in a new file.

        Raises:
            DamagedError: there is one and its check fails, or the tables are not what they were.
        """
        with _damage():
            self._db.execute(f"explain select {_COLUMNS} from record").fetchall()
            row = self._db.execute("select body from state").fetchone()
        if row is None:
            return None
        state = State.decode(row[0]) if isinstance(row[0], bytes) else None
        if state is None:
            raise DamagedError("the state's check fails")
        return state

    def commit(self, change: Change) -> None:
        with _damage():
            self._db.execute("begin immediate")
            try:
                batches, size = self._apply(change)
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise
        self.batches += batches
        self.bytes += size
        self.committed = change.state

    def _apply(self, change: Change) -> tuple[int, int]:
        """Return how many batches and bytes came, less those that went."""
        batches = sum(1 for r in change.put if not r.is_gap)
        size = sum(r.size_bytes for r in change.put)
        if change.delete is not None:
            first, last = change.delete
            gone = self._totals(first, last)
            batches, size = batches - gone[0], size - gone[1]
            self._db.execute(
                "delete from record where first_seq between ? and ? and (last_seq <= ? or reason = '')",
                (first, last, last),
            )
        for r in change.put:
            self._db.execute(
                f"insert or replace into record ({_COLUMNS}) values (?,?,?,?,?,?,?,?,?,?)",
                (
                    *(r.first_seq, r.last_seq, r.rows_before, r.rows, r.frame_bytes),
                    *(r.first_unix_ms, r.last_unix_ms, r.reason, r.frame, r.digest()),
                ),
            )
        self._db.execute(
            "insert or replace into state (id, body) values (1, ?)", (change.state.encode(),)
        )
        return batches, size

    def read(self, after_seq: int, count: int, bytes_max: int) -> list[Record]:
        found: list[Record] = []
        size = 0
        with _damage():
            rows = self._db.execute(
                f"select {_COLUMNS} from record where first_seq >= "
                "(select coalesce(max(first_seq), 0) from record where first_seq <= ?) "
                "order by first_seq limit ?",
                (after_seq + 1, count + 1),
            )
            for row in rows:
                record = _sound(row)
                if record is None or record.last_seq <= after_seq:
                    continue
                size += record.size_bytes
                if len(found) == count or (found and size > bytes_max):
                    break
                found.append(record)
        return found

    def ending_at(self, seq: int) -> Record | None:
        with _damage():
            row = self._db.execute(
                f"select {_COLUMNS} from record where first_seq <= ? order by first_seq desc limit 1",
                (seq,),
            ).fetchone()
        record = _sound(row) if row is not None else None
        return record if record is not None and record.last_seq == seq else None

    def _totals(self, first_seq: int, last_seq: int) -> tuple[int, int]:
        batches, size = self._db.execute(
            "select coalesce(sum(reason = ''), 0), coalesce(sum(length(frame) + ?), 0) "
            "from record where first_seq between ? and ? and (last_seq <= ? or reason = '')",
            (RECORD_OVERHEAD_BYTES, first_seq, last_seq, last_seq),
        ).fetchone()
        return int(batches), int(size)

    def write_out(self) -> None:
        """Bring all of the log into the file, so that the file alone is the database."""
        with _damage():
            self._db.execute("pragma wal_checkpoint(truncate)").fetchall()

    def shrink(self) -> None:
        """Give pages that are free back to the file system."""
        with _damage():
            (free,) = self._db.execute("pragma freelist_count").fetchone()
            if free > 1024:
                self._db.execute("pragma incremental_vacuum").fetchall()

    def records(self, next_seq: int) -> Iterator[Record]:
        """Yield every sound record that can be read, in order, from a file that may be damaged."""
        seq = misses = 0
        while seq < next_seq:
            try:
                row = self._first_beyond(seq)
            except (sqlite3.Error, OverflowError):
                row = self._row_at(seq + 1)
                if row is None:
                    misses += 1
                    seq = seq + 1 if misses % _MISSES_MAX else self._readable_from(seq)
                    continue
            if row is None:
                return
            if row[0] <= seq:
                misses += 1
                if misses % _MISSES_MAX == 0:
                    return
                seq += 1  # a tree that leads back: not again the way that was gone
                continue
            seq, misses = row[0], 0
            record = _sound(row)
            if record is not None:
                yield record

    def _first_beyond(self, seq: int) -> Any:
        return self._db.execute(
            f"select {_COLUMNS} from record where first_seq > ? order by first_seq limit 1", (seq,)
        ).fetchone()

    def _readable_from(self, seq: int) -> int:
        """Return a number beyond a page that cannot be read and before the next record; SEQ_MAX: none."""

        def fails(at: int) -> bool:
            try:
                self._first_beyond(at)
            except (sqlite3.Error, OverflowError):
                return True
            return False

        low, high = seq, seq + 1
        while fails(high):
            if high >= SEQ_MAX:
                return SEQ_MAX
            low, high = high, high + 2 * (high - seq)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fails(middle) else (low, middle)
        return high

    def _row_at(self, seq: int) -> _Row | None:
        try:
            row: _Row | None = self._db.execute(
                f"select {_COLUMNS} from record where first_seq = ?", (seq,)
            ).fetchone()
        except (sqlite3.Error, OverflowError):
            return None
        return row

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()


def _sound(row: _Row) -> Record | None:
    """Return the record of a row, or None where its check fails."""
    names = Record.__slots__
    try:
        record = Record(**dict(zip(names, row[:-1], strict=True)))  # type: ignore[arg-type]
        return record if record.digest() == row[-1] else None
    except TypeError:
        return None


def _check_head(path: Path) -> None:
    """Refuse a file whose versions say that it may only be read; SQLite would call it read-only."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        versions = file.read(20)[18:]
        if any(version not in (1, 2) for version in versions):
            raise DamagedError("the versions in its head make no sense")


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turn SQLite's word for damage into ours."""
    try:
        yield
    except sqlite3.DatabaseError as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT) or (
            code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_CONSTRAINT)
        ):
            raise DamagedError(str(exc)) from exc
        raise
    except UnicodeDecodeError as exc:  # a message of SQLite's that quotes a damaged name
        raise DamagedError(str(exc)) from exc


class Ballast:
    """Blocks kept in reserve: given back when the disk is full, so that deletions find room to happen."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Reserve 1 MiB, on a small file system a sixteenth of it; not possible is no trouble."""
        with contextlib.suppress(OSError):
            fs = os.statvfs(self._path.parent)
            size = min(_BALLAST_BYTES, fs.f_blocks * fs.f_frsize // 16)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)

    def give_back(self) -> None:
        """Free the blocks."""
        with contextlib.suppress(OSError):
            self._path.unlink()


class Journal:
    """The state alone, in a file whose blocks are allocated: it can be written when the disk is full."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            os.posix_fallocate(self._descriptor, 0, 2 * _JOURNAL_SLOT_BYTES)

    def write(self, state: State) -> bool:
        """Store the state; False where the file system refuses even that."""
        blob = state.encode().ljust(_JOURNAL_SLOT_BYTES, b"\0")
        try:
            os.pwrite(self._descriptor, blob, state.generation % 2 * _JOURNAL_SLOT_BYTES)
            os.fdatasync(self._descriptor)
        except OSError:
            return False
        return True

    def read(self) -> State | None:
        """Return the newest state that is whole."""
        blob = os.pread(self._descriptor, 2 * _JOURNAL_SLOT_BYTES, 0)
        slots = (blob[:_JOURNAL_SLOT_BYTES], blob[_JOURNAL_SLOT_BYTES:])
        states = [state for slot in slots if (state := State.decode(slot)) is not None]
        return max(states, key=lambda s: s.generation, default=None)

    def close(self) -> None:
        os.close(self._descriptor)


def lock(directory: Path) -> int:
    """Return the descriptor of the held lock.

    Raises:
        UsageError: another process uses this spool.
    """
    descriptor = os.open(directory / "spool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "?"
        os.close(descriptor)
        raise UsageError(
            f"{directory}: the spool is in use by process {holder}; stop it or give --data DIR"
        ) from None
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor

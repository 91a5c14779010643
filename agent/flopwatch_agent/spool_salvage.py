"""A spool database that SQLite cannot read is salvaged, never a reason not to start.

Every record that can still be read is copied into ``spool.db.new``; then the old file is renamed
``spool.N.corrupt`` and the new one takes its place. Where the state survived, the spool keeps its id and
its numbers, and the records that did not survive show as holes, which the spool declares as gaps. Where
it did not, the survivors are numbered anew under a new spool id.

A crash between the two renames leaves only ``spool.db.new``, which is complete then, and is adopted at
the next start; one that lies beside ``spool.db`` is not, and is forgotten.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from flopwatch_agent.spool_disk import DiskStore
from flopwatch_agent.spool_record import SEQ_MAX, Change, Record, State, batch_record
from flopwatch_proto.v1 import telemetry_pb2 as pb

CORRUPT_KEPT: Final = 3
_RECORDS_PER_COMMIT: Final = 256
_PAGE_BYTES: Final = 4096


def new_state() -> State:
    """Return the state of a new spool: a random identity of 128 bits."""
    return State(spool_id=secrets.token_hex(16))


def salvage(path: Path, known: State | None) -> tuple[DiskStore, State]:
    """Return a sound database at the path, with what could be read of the old one.

    Args:
        known: the state as the running process has it; None: as the file has it.

    Raises:
        sqlite3.Error, OSError: the disk does not take the new file; the old one is where it was.
    """
    fresh = path.with_name(path.name + ".new")
    remove(fresh)
    store = DiskStore(fresh)
    old, state = _opened(path)
    if state is None:
        if old is not None:
            old.close()
        _give_a_head(path, fresh)
        old, state = _opened(path)
    state = known or state
    next_seq = state.next_seq if state is not None else SEQ_MAX
    survivors: Iterable[Record] = old.records(next_seq) if old is not None else ()
    if state is None:
        state = _renumber(store, survivors)
    else:
        _copy(store, state, survivors)
    if old is not None:
        old.close()
    try:
        store.write_out()  # its log does not come along when it is renamed
    finally:
        store.close()
    set_aside(path)
    fresh.rename(path)
    remove(fresh)
    sync_directory(path.parent)
    return DiskStore(path), state


def _opened(path: Path) -> tuple[DiskStore | None, State | None]:
    """Return what can be had of a damaged database, and of its state.

    Raises:
        sqlite3.Error: the disk fails, which says nothing of the database.
    """
    old: DiskStore | None = None
    try:
        old = DiskStore(path, damaged=True)
        return old, old.state()
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL):
            if old is not None:
                old.close()
            raise
        return old, None


def _give_a_head(path: Path, fresh: Path) -> None:
    """Give a file that SQLite does not read the first page of a new spool's database, and whole pages.

    Every spool makes its tables when it is made, so they begin at the same pages everywhere. A file that was
    cut must only say of itself that it is no longer than it is.
    """
    with fresh.open("rb") as whole, path.open("r+b") as damaged:
        head = bytearray(whole.read(_PAGE_BYTES))
        size = max(fresh.stat().st_size, path.stat().st_size)
        pages = -(-size // _PAGE_BYTES)
        head[28:40] = pages.to_bytes(4, "big") + bytes(8)  # length in pages; no free ones
        damaged.truncate(pages * _PAGE_BYTES)
        damaged.write(head)


def _copy(store: DiskStore, state: State, records: Iterable[Record]) -> None:
    store.commit(Change(state=state))
    wanted = (r for r in records if state.acked_seq < r.last_seq < state.next_seq)
    for chunk in _chunks(wanted):
        store.commit(Change(state=state, put=chunk))


def _renumber(store: DiskStore, records: Iterable[Record]) -> State:
    state = new_state()
    store.commit(Change(state=state))
    for chunk in _chunks(r for r in records if not r.is_gap):
        put = []
        for record in chunk:
            batch = pb.Batch.FromString(record.frame)
            put.append(batch_record(batch, state.next_seq, state.produced_rows))
            state = replace(
                state,
                next_seq=state.next_seq + 1,
                produced_batches=state.produced_batches + 1,
                produced_rows=state.produced_rows + put[-1].rows,
                produced_bytes=state.produced_bytes + put[-1].frame_bytes,
            )
        store.commit(Change(state=state, put=put))
    return state


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == _RECORDS_PER_COMMIT:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def adopt(path: Path) -> None:
    """Finish, or forget, a salvage that a crash interrupted."""
    new = path.with_name(path.name + ".new")
    if new.exists() and not path.exists():
        new.rename(path)
    remove(new)


def remove(path: Path) -> None:
    """Remove a database with its log."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged database ``spool.N.corrupt`` and keep the newest three; return its new name."""
    numbered = sorted(
        (int(p.suffixes[0][1:]), p)
        for p in path.parent.glob("spool.*.corrupt")
        if p.suffixes[0][1:].isdigit()
    )
    target = path.with_name(f"spool.{numbered[-1][0] + 1 if numbered else 1}.corrupt")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.rename(target)
    for _, old in numbered[: max(0, len(numbered) + 1 - CORRUPT_KEPT)]:
        old.unlink(missing_ok=True)
    return target


def sync_directory(directory: Path) -> None:
    """Make renames in the directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

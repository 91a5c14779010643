"""A moment of both stores, held still on the collector's own disk while somebody copies it.

Nobody appends while a snapshot is taken, so both stores are as after a kill -9 at that moment, from which
they are known to recover. The engine freezes tables as hard links, in milliseconds and without space of their
own; the control store is copied by SQLite's online backup. What nobody released before a crash goes when the
store is opened again (`sweep`).
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
from sqlalchemy.engine import make_url

from flopwatch_collector.telemetry.lock import SHADOW
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import RetryableError, UsageError

CONTROL_NAME: Final = "control.db"
_NAME: Final = "flopwatch"
_taking: Final = threading.Lock()


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """A table as it was. Attributes: ddl: makes it; directory: holds its parts, one directory each."""

    ddl: str
    directory: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Where a moment of both stores lies. Attributes: control: a SQLite file; tables: by name."""

    taken_unix_ms: int
    control: str
    tables: dict[str, Frozen]


def chdb_path(telemetry_dsn: str) -> Path:
    """Return the directory of an embedded telemetry store.

    Raises:
        UsageError: it is a server's.
    """
    parts = urlsplit(telemetry_dsn)
    if parts.scheme != "chdb":
        raise UsageError("telemetry.dsn is a server: use its own BACKUP; see docs/backup.md")
    return Path(unquote(parts.path))


def sqlite_path(control_dsn: str) -> Path:
    """Return the file of a control store.

    Raises:
        UsageError: it is a server's.
    """
    url = make_url(control_dsn)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise UsageError(
            "control.dsn is a server: pg_dump it, and see docs/backup.md for the telemetry store"
        )
    return Path(url.database)


@contextmanager
def snapshot(store: TelemetryStore, control_dsn: str, now_unix_ms: int) -> Iterator[Snapshot]:
    """Take a snapshot, and keep it until the end of the block.

    Raises:
        UsageError: a store is a server, which has backups of its own.
        RetryableError: another snapshot stands, or a disk or the engine failed.
    """
    if store.directory is None:
        raise UsageError("telemetry.dsn is a server: use its own BACKUP; see docs/backup.md")
    control = sqlite_path(control_dsn)
    if not _taking.acquire(blocking=False):
        raise RetryableError("another backup is running; try again when it is done")
    place = store.directory / SHADOW / _NAME
    try:
        try:
            tables = _frozen(store, control, place)
        except (OSError, sqlite3.Error) as exc:
            raise RetryableError(f"backup: {exc}") from exc
        yield Snapshot(taken_unix_ms=now_unix_ms, control=str(place / CONTROL_NAME), tables=tables)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        _taking.release()


def _frozen(store: TelemetryStore, control: Path, place: Path) -> dict[str, Frozen]:
    tables: dict[str, Frozen] = {}
    with store.still() as client:
        made = client.query(
            "SELECT name, create_table_query, data_paths[1] FROM system.tables "
            "WHERE database = currentDatabase() AND engine LIKE '%MergeTree' ORDER BY name"
        ).result_rows
        for name, ddl, path in made:
            client.command(f"ALTER TABLE `{name}` FREEZE WITH NAME '{_NAME}'")
            tables[name] = Frozen(ddl=ddl, directory=str(place.joinpath(*Path(path).parts[-3:])))
        place.mkdir(mode=0o700, parents=True, exist_ok=True)  # where every table is empty
        with (
            closing(sqlite3.connect(f"file:{control}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(place / CONTROL_NAME)) as target,
        ):
            source.backup(target)
    return tables

"""Backups: a snapshot copied into a directory with checksums and counts, and what makes stores of it again.

TO/manifest.json            written last: a directory without it is no backup
TO/telemetry/TABLE/PART/…   the engine's files as they were
TO/control.db               SQLite
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

import clickhouse_connect
import msgspec
from clickhouse_connect.driver.exceptions import ClickHouseError

from flopwatch_collector.telemetry.snapshot import CONTROL_NAME, Snapshot
from flopwatch_proto.errors import PermanentError, UsageError

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]
"""(files done, files to do)"""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds.

    Attributes:
        format: of the directory.
        tables: name → the statement that makes it.
        rows: name → rows in the files, before any collapse by key.
        control_rows: table of the control store → rows.
        files: path in the backup → (bytes, sha256 in hex).
    """

    format: int = FORMAT
    taken_unix_ms: int
    tables: dict[str, str]
    rows: dict[str, int]
    control_rows: dict[str, int]
    files: dict[str, tuple[int, str]]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())


def copy(snapshot: Snapshot, to: Path, progress: Progress) -> Manifest:
    """Copy a snapshot into an empty directory and say what is in it.

    Raises:
        UsageError: the directory cannot be used.
        PermanentError: the snapshot went away under the copy.
    """
    empty_directory(to, "TO")
    wanted = {CONTROL_NAME: Path(snapshot.control)}
    rows = dict.fromkeys(snapshot.tables, 0)
    for name, table in snapshot.tables.items():
        for part in sorted(Path(table.directory).glob("*/")):
            rows[name] += int((part / "count.txt").read_bytes())
            for file in sorted(part.rglob("*")):
                if file.is_file():
                    inside = file.relative_to(part.parent)
                    wanted[f"telemetry/{name}/{inside.as_posix()}"] = file
    files: dict[str, tuple[int, str]] = {}
    try:
        for done, (path, file) in enumerate(wanted.items()):
            progress(done, len(wanted))
            files[path] = copied(file, to / path)
    except FileNotFoundError as exc:
        raise PermanentError(
            f"backup: {exc.filename} went away; was the collector stopped?"
        ) from exc
    except OSError as exc:
        raise UsageError(f"TO: {to} cannot be written: {exc.strerror}") from exc
    progress(len(wanted), len(wanted))
    manifest = Manifest(
        taken_unix_ms=snapshot.taken_unix_ms,
        tables={name: table.ddl for name, table in snapshot.tables.items()},
        rows=rows,
        control_rows=control_rows(to / CONTROL_NAME),
        files=files,
    )
    os.sync()  # the manifest must not be on disk before what it names
    _write(to / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def read_manifest(source: Path) -> Manifest:
    """Return the manifest of a backup.

    Raises:
        UsageError: there is no complete backup.
    """
    try:
        manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
    except OSError as exc:
        raise UsageError(
            f"FROM: {source} holds no complete backup: {MANIFEST} cannot be read ({exc.strerror})"
        ) from exc
    except msgspec.DecodeError as exc:
        raise UsageError(f"FROM: {source / MANIFEST} is damaged: {exc}") from exc
    if manifest.format != FORMAT:
        raise UsageError(
            f"FROM: {source} has format {manifest.format}, this version reads {FORMAT};"
            " use the flopwatch that made it, or a newer one"
        )
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"FROM: {source / MANIFEST} names {name!r}, outside the backup")
    return manifest


def restore(source: Path, telemetry: Path, control: Path, progress: Progress) -> Manifest:
    """Make both stores of a backup; nobody may use them meanwhile.

    They take their names when everything in them was verified; what an earlier one left half done goes.

    Raises:
        UsageError: no complete backup, or a store stands where one is to be made.
        PermanentError: a file is damaged, or counts differ.
    """
    manifest = read_manifest(source)
    empty_directory(telemetry, "--data")
    if control.exists():
        raise UsageError(f"--data: {control} exists; name an empty directory")
    made, made_control = (p.with_name(f"{p.name}.restoring") for p in (telemetry, control))
    shutil.rmtree(made, ignore_errors=True)
    try:
        _fill(source, manifest, made, made_control, progress)
        os.sync()
        made_control.rename(control)
        made.rename(telemetry)
    except OSError as exc:
        raise UsageError(f"--data: {exc.filename or telemetry}: {exc.strerror}") from exc
    finally:
        shutil.rmtree(made, ignore_errors=True)
        made_control.unlink(missing_ok=True)
    return manifest


def check(source: Path, progress: Progress) -> Manifest:
    """Restore a backup into a directory beside it, compare, and remove that; errors as in `restore`."""
    read_manifest(source)
    try:
        with tempfile.TemporaryDirectory(prefix=".drill-", dir=source.absolute().parent) as place:
            return restore(source, Path(place, "telemetry"), Path(place, CONTROL_NAME), progress)
    except PermissionError as exc:
        raise UsageError(f"FROM: the drill needs room beside {source}: {exc.strerror}") from exc


def empty_directory(path: Path, name: str) -> None:
    """Make a directory where there is none.

    Raises:
        UsageError: it is not empty, or cannot be used.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(f"{name}: {path} is not empty; name an empty directory or a new one")
    except OSError as exc:
        raise UsageError(f"{name}: {path} cannot be used: {exc.strerror}") from exc


def control_rows(path: Path) -> dict[str, int]:
    """Return the rows of each table of a SQLite file.

    Raises:
        PermanentError: the file is damaged.
    """
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            said = database.execute("PRAGMA integrity_check").fetchone()[0]
            if said != "ok":
                raise PermanentError(f"{path} is damaged: {said}")
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {
                name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for (name,) in names.fetchall()
            }
    except sqlite3.Error as exc:
        raise PermanentError(f"{path} is damaged: {exc}") from exc


def copied(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file; return its size and sha256."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    seen, size = hashlib.sha256(), 0
    with source.open("rb") as read, target.open("xb") as write:
        while chunk := read.read(_CHUNK_BYTES):
            seen.update(chunk)
            size += write.write(chunk)
    return size, seen.hexdigest()


def _fill(
    source: Path, manifest: Manifest, telemetry: Path, control: Path, progress: Progress
) -> None:
    control.unlink(missing_ok=True)
    with _engine(telemetry) as client:
        client.command("SYSTEM STOP MERGES")  # they would collapse rows before these are counted
        places: dict[str, Path] = {}
        for name, ddl in manifest.tables.items():
            client.command(ddl)
            found = client.query(
                "SELECT data_paths[1] FROM system.tables "
                "WHERE database = currentDatabase() AND name = {name:String}",
                {"name": name},
            )
            places[name] = Path(found.result_rows[0][0])
        parts: dict[tuple[str, str], None] = {}
        for done, (path, expected) in enumerate(manifest.files.items()):
            progress(done, len(manifest.files))
            target = control
            if path != CONTROL_NAME:
                _, name, part, *inside = PurePosixPath(path).parts
                target = places[name].joinpath("detached", part, *inside)
                parts[name, part] = None
            try:
                seen = copied(source / path, target)
            except FileNotFoundError as exc:
                raise PermanentError(f"{source / path} is missing; take another backup") from exc
            if seen != expected:
                raise PermanentError(
                    f"{source / path} is damaged: {seen[0]} bytes with sha256 {seen[1][:12]}…,"
                    f" not {expected[0]} with {expected[1][:12]}…; take another backup"
                )
        for name, part in parts:
            client.command(f"ALTER TABLE `{name}` ATTACH PART '{part}'")
        rows = {
            name: client.query(f"SELECT count() FROM `{name}`").result_rows[0][0] for name in places
        }
    progress(len(manifest.files), len(manifest.files))
    _compare("telemetry", rows, manifest.rows)
    _compare("control", control_rows(control), manifest.control_rows)


@contextmanager
def _engine(directory: Path) -> Any:
    try:
        client = clickhouse_connect.get_client(
            interface="chdb", path=str(directory), settings={"compile_expressions": 0}
        )
        try:
            yield client
        finally:
            client.close()
    except ClickHouseError as exc:
        raise PermanentError(f"restore: {str(exc).splitlines()[0][:500]}") from exc


def _compare(store: str, rows: Mapping[str, int], expected: Mapping[str, int]) -> None:
    for name in expected.keys() | rows.keys():
        if rows.get(name) != expected.get(name):
            raise PermanentError(
                f"restore: {store} table {name} has {rows.get(name)} rows, not {expected.get(name)}"
            )


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

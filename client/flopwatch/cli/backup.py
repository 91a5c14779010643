"""`backup`, `restore`: both stores of a collector into a directory and back, on the collector's host."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopwatch.cli.progress import counted
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_proto.errors import UsageError

if TYPE_CHECKING:
    from flopwatch_collector.config import CollectorConfig
    from flopwatch_collector.telemetry.backup import Manifest
    from flopwatch_collector.telemetry.snapshot import Snapshot

_MEBIBYTE = 1 << 20

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The collector's, if not the default file.")
]
Data = Annotated[str | None, typer.Option(metavar="DIR", help="The collector's data directory.")]


def backup(
    to: Annotated[Path, typer.Argument(metavar="TO", help="An empty directory, or a new one.")],
    config: Config = None,
    data: Data = None,
) -> int:
    """Copy both stores, as they are at one moment, while the collector runs or not."""
    stores = config_of(config, data)
    from flopwatch_collector.telemetry.backup import copy, empty_directory

    empty_directory(to, "TO")
    began = time.monotonic()
    with _snapshot(stores) as snapshot, _progress("files copied") as progress:
        manifest = copy(snapshot, to, progress)
    _say(f"{to}: backup", manifest, began)
    return 0


def restore(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="What `backup` made.")],
    check: Annotated[
        bool, typer.Option("--check", help="Only try it: in a directory beside FROM, which goes.")
    ] = False,
    config: Config = None,
    data: Data = None,
) -> int:
    """Make both stores of a backup, in a data directory without any; the collector must not run."""
    stores = None if check else config_of(config, data)
    with collectors_packages():
        from flopwatch_collector.telemetry import backup as backups
        from flopwatch_collector.telemetry.snapshot import chdb_path, sqlite_path
    began = time.monotonic()
    with _progress("files restored") as progress:
        if stores is None:
            manifest = backups.check(source, progress)
        else:
            telemetry, control = chdb_path(stores.telemetry_dsn), sqlite_path(stores.control_dsn)
            manifest = backups.restore(source, telemetry, control, progress)
    _say(f"{source}: every checksum and count is right;", manifest, began)
    if stores is not None:
        typer.echo(f"restored into {stores.directory}; start the collector")
    return 0


@contextmanager
def _snapshot(config: CollectorConfig) -> Iterator[Snapshot]:
    """The collector owns its stores while it runs; where none does, this process may."""
    from flopwatch_collector.telemetry.remote import RemoteStore
    from flopwatch_collector.telemetry.snapshot import chdb_path, snapshot
    from flopwatch_collector.telemetry.store import TelemetryStore

    socket = config.directory / "read.sock"
    if socket.exists() and RemoteStore(socket).answers():
        with RemoteStore(socket).snapshot() as found:
            yield found
        return
    if not chdb_path(config.telemetry_dsn).is_dir():
        raise UsageError(f"--data: {config.directory} holds no store; name a collector's directory")
    store = TelemetryStore.open(config.telemetry_dsn)
    try:
        with snapshot(store, config.control_dsn, wall_unix_ms(SystemClock())) as found:
            yield found
    finally:
        store.close()


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    bar = counted()
    task = bar.add_task(what, total=None)

    def show(done: int, total: int) -> None:
        bar.start()  # not before there is progress: what is refused is one line
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _say(what: str, manifest: Manifest, began: float) -> None:
    taken = datetime.fromtimestamp(manifest.taken_unix_ms / 1000, UTC)
    typer.echo(
        f"{what} of {taken:%Y-%m-%d %H:%M:%S} UTC, {sum(manifest.rows.values()):,} rows in "
        f"{len(manifest.rows)} tables, {sum(manifest.control_rows.values()):,} rows of control, "
        f"{manifest.size_bytes / _MEBIBYTE:,.1f} MiB, {time.monotonic() - began:.1f} s"
    )


def config_of(config: Path | None, data: str | None) -> CollectorConfig:
    with collectors_packages():
        from flopwatch_collector.config import load
    return load(config, os.environ, {"--data": ("data", data)})


@contextmanager
def collectors_packages() -> Iterator[None]:
    """The command line of a node has nothing of a collector's."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.startswith("flopwatch"):
            raise
        raise UsageError(
            f"{exc.name} is not installed: this is for a collector's host: "
            "pip install 'flopwatch[collector]'"
        ) from exc

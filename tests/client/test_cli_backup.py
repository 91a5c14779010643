"""`flopwatch backup` of a collector that runs, `flopwatch restore`, its drill, and what both refuse."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from flopwatch.cli.app import run
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.telemetry.backup import Manifest, copied, read_manifest
from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_collector.telemetry.snapshot import snapshot
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import RetryableError
from processes import Collector, awaited, collector, done

NOW_MS = time.time_ns() // 1_000_000
EVENTS = 2_000
ROWS = "SELECT count() AS n, sum(time_unix_ms) AS times FROM event FINAL WHERE cluster = 'atlas'"


def events(store: TelemetryStore) -> None:
    for day in range(3):
        store.append(
            "event",
            {
                "cluster": ["atlas"] * EVENTS,
                "node": ["n1"] * EVENTS,
                "time_unix_ms": [NOW_MS - day * 86_400_000 - i for i in range(EVENTS)],
                "stored_unix_ms": [NOW_MS] * EVENTS,
            },
        )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    data = tmp_path_factory.mktemp("backup") / "data"
    store = TelemetryStore.open(f"chdb://{data}/telemetry")
    events(store)
    store.close()
    with collector(data) as started:
        yield started


@pytest.fixture(scope="module")
def made(running: Collector) -> Path:
    """A backup of the collector while it runs."""
    to = running.data.with_name("backup")
    told = done("backup", str(to), "--data", str(running.data))
    assert told.returncode == 0, told.stderr
    assert "rows in" in told.stdout
    assert f"{to}: backup of " in told.stdout
    return to


@pytest.fixture
def damaged(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_restored_backup_has_the_rows_of_both_stores(
    running: Collector, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = tmp_path / "fresh"
    told = done("restore", str(made), "--data", str(fresh))
    assert told.returncode == 0, told.stderr
    store = TelemetryStore.open(f"chdb://{fresh}/telemetry")
    try:
        assert store.query(ROWS).to_pylist() == running.sql(ROWS)
        assert store.query(ROWS).to_pylist()[0]["n"] == 3 * EVENTS
    finally:
        store.close()
    ControlStore.open(f"sqlite:///{fresh}/control.db").close()
    with closing(sqlite3.connect(fresh / "control.db")) as control:
        names = {n for (n,) in control.execute("SELECT name FROM sqlite_master")}
    assert {"incident", "outbox"} <= names
    assert run(["restore", str(made), "--data", str(fresh)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not empty" in line


def test_the_drill_restores_beside_it_and_leaves_nothing(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(made.parent.iterdir())
    assert run(["restore", str(made), "--check"]) == 0
    assert "every checksum and count is right" in capsys.readouterr().out
    assert sorted(made.parent.iterdir()) == before


def test_a_snapshot_goes_with_its_copier_and_only_one_stands(running: Collector) -> None:
    shadow = running.data / "telemetry" / "shadow" / "flopwatch"
    assert not shadow.exists()  # that of the backup went
    remote = RemoteStore(running.data / "read.sock")
    with remote.snapshot() as found:
        assert Path(found.control).is_file()
        with pytest.raises(RetryableError, match="another backup is running"), remote.snapshot():
            pass
        assert shadow.is_dir()
    awaited(lambda: not shadow.exists(), "the snapshot is released")


def test_appends_wait_for_a_snapshot_and_are_not_in_it(tmp_path: Path) -> None:
    dsn = f"sqlite:///{tmp_path}/control.db"
    ControlStore.open(dsn).close()
    store = TelemetryStore.open(f"chdb://{tmp_path}/telemetry")
    try:
        events(store)
        with snapshot(store, dsn, NOW_MS) as taken:
            store.append(
                "event", {"cluster": ["late"], "time_unix_ms": [NOW_MS], "stored_unix_ms": [NOW_MS]}
            )
            parts = Path(taken.tables["event"].directory).glob("*/count.txt")
            assert sum(int(p.read_text()) for p in parts) == 3 * EVENTS
    finally:
        store.close()


def cut_a_byte(backup: Path) -> None:
    (file, *_) = sorted(backup.glob("telemetry/event/*/data.bin"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(backup: Path) -> None:
    sorted(backup.glob("telemetry/event/*/columns.txt"))[0].unlink()


def _told(change: Callable[[Manifest], Manifest]) -> Callable[[Path], None]:
    def write(backup: Path) -> None:
        changed = change(read_manifest(backup))
        (backup / "manifest.json").write_bytes(msgspec.json.encode(changed))

    return write


def lose_a_row(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, rows={**manifest.rows, "event": EVENTS})


def lose_a_control_row(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, control_rows={**manifest.control_rows, "incident": 9})


def leave_the_directory(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, files={"../x": (1, "")})


def come_from_the_future(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, format=9)


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        (cut_a_byte, 1, "is damaged"),
        (lose_a_file, 1, "is missing"),
        (_told(lose_a_row), 1, f"table event has {3 * EVENTS} rows, not {EVENTS}"),
        (_told(lose_a_control_row), 1, "control table incident has 0 rows, not 9"),
        (lambda backup: (backup / "manifest.json").unlink(), 2, "no complete backup"),
        (lambda backup: (backup / "manifest.json").write_text("{"), 2, "is damaged"),
        (_told(leave_the_directory), 2, "outside the backup"),
        (_told(come_from_the_future), 2, "format 9"),
    ],
)
def test_a_damaged_backup_is_refused_and_leaves_no_store(
    damaged: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(damaged)
    data = tmp_path / "data"
    assert run(["restore", str(damaged), "--data", str(data)]) == code
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert text in line
    assert not data.exists() or not any(p.is_file() for p in data.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["backup", "{full}", "--data", "{data}"], "TO: {full} is not empty"),
        (["backup", "{file}", "--data", "{data}"], "TO: {file} cannot be used"),
        (["backup", "{to}", "--data", "{to}2"], "{to}2 holds no store"),
        (["restore", "{to}", "--check"], "FROM: {to} holds no complete backup"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    names = {"full": tmp_path / "full", "file": tmp_path / "full/file", "to": tmp_path / "to"}
    words = [word.format(data=tmp_path, **names) for word in arguments]
    assert run(words) == 2
    assert text.format(**names) in capsys.readouterr().err.splitlines()[-1]


def test_a_server_is_left_to_its_own_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "FLOPWATCH_COLLECTOR__TELEMETRY__DSN", "http://127.0.0.1:1")
    assert run(["backup", str(tmp_path / "to"), "--data", str(tmp_path)]) == 2
    assert "use its own BACKUP" in capsys.readouterr().err


def test_copied_is_the_sha_of_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    size, sha = copied(tmp_path / "a", tmp_path / "b")
    assert (size, sha[:8]) == (3, "ba7816bf")


def test_a_collector_that_was_killed_is_backed_up_from_its_directory(
    running: Collector, tmp_path: Path
) -> None:
    left = running.data / "telemetry" / "shadow" / "flopwatch"
    with RemoteStore(running.data / "read.sock").snapshot():
        running.process.end(signal.SIGKILL)
    assert left.is_dir()
    assert run(["backup", str(tmp_path / "to"), "--data", str(running.data)]) == 0
    assert read_manifest(tmp_path / "to").rows["event"] == 3 * EVENTS
    assert not left.exists()

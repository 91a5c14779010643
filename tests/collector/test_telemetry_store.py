"""The telemetry store: what it keeps, what it refuses, and who may open it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flopwatch_collector.telemetry.dirty import clear, dirty_minutes
from flopwatch_collector.telemetry.schema import TABLES, newest_lines
from flopwatch_collector.telemetry.store import TelemetryStore, arrow_block
from flopwatch_proto import rows
from flopwatch_proto.errors import PermanentError, RetryableError, UsageError

NOW_MS = time.time_ns() // 60_000_000_000 * 60_000  # the store drops what is too old
MINUTE_MS = 60_000


def events(*times_unix_ms: int, stored_unix_ms: int = NOW_MS, **different: Any) -> dict[str, Any]:
    count = len(times_unix_ms)
    columns = {
        "cluster": ["atlas"] * count,
        "node": ["n1"] * count,
        "time_unix_ms": list(times_unix_ms),
        "kind": ["xid"] * count,
        "code": [79] * count,
        "stored_unix_ms": [stored_unix_ms] * count,
    }
    return columns | different


def lines(*slots: str, start_unix_ms: int = NOW_MS, card_ms: int = 60_000) -> dict[str, Any]:
    count = len(slots)
    return {
        "start_unix_ms": [start_unix_ms] * count,
        "node": ["n1"] * count,
        "slot": list(slots),
        "bucket": [4] * count,
        "card_ms": [card_ms] * count,
    }


def standing(store: TelemetryStore, start_unix_ms: int = NOW_MS) -> list[tuple[str, int]]:
    where = "cluster = {cluster:String} AND start_unix_ms = {start:Int64}"
    found = store.query(
        f"SELECT slot, card_ms {newest_lines('line_minute', where)} ORDER BY slot",
        {"cluster": "atlas", "start": start_unix_ms},
    )
    return [(r["slot"], r["card_ms"]) for r in found.to_pylist()]


def test_every_column_of_an_interval_row_has_a_column_in_its_table() -> None:
    assert set(rows.COLUMNS) <= set(TABLES["interval"].columns)


def test_a_row_stored_twice_is_one_row(store: TelemetryStore) -> None:
    assert store.append("event", events(NOW_MS, NOW_MS + 1)) == 2
    assert (
        store.append("event", events(NOW_MS, text=["seen again"], stored_unix_ms=NOW_MS + 5)) == 1
    )
    found = store.query("SELECT time_unix_ms, text FROM event FINAL ORDER BY 1").to_pylist()
    assert [(r["time_unix_ms"] - NOW_MS, r["text"]) for r in found] == [(0, "seen again"), (1, "")]


def test_unknown_text_is_empty_and_an_unknown_quantity_is_null(store: TelemetryStore) -> None:
    columns: dict[str, Any] = {
        "cluster": ["a", "a"],
        "start_unix_ms": [NOW_MS, NOW_MS],
        "slot": ["0", "1"],
        "job": [None, "j"],
        "sm_active_ms": [None, 0.0],
        "hmma_active_ms": [None, None],
        "failed": [["sm_active_ms"], []],
        "stored_unix_ms": [NOW_MS, NOW_MS],
    }
    store.append("interval", columns)
    names = "job, team, sm_active_ms, hmma_active_ms, failed, not_supported"
    found = store.query(f"SELECT {names} FROM interval FINAL ORDER BY slot").to_pylist()
    assert [list(r.values()) for r in found] == [
        ["", "", None, None, ["sm_active_ms"], []],
        ["j", "", 0.0, None, [], []],
    ]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"colour": ["red"]}, "no column colour"),
        ({"cluster": ["a"], "code": [1, 2]}, "2 entries for 1 rows"),
        ({"cluster": ["a"], "code": ["x"]}, "column code of event"),
        ({"cluster": ["a"], "code": [2**63]}, "column code of event"),
        ({"cluster": ["a", "b"], "code": [1, None]}, "code of event cannot be null"),
    ],
)
def test_values_that_do_not_fit_are_refused_for_good(columns: dict[str, Any], text: str) -> None:
    with pytest.raises(PermanentError, match=text):
        arrow_block(TABLES["event"], columns)


def test_a_rewritten_minute_replaces_all_its_lines(store: TelemetryStore) -> None:
    def write(generation: int, columns: dict[str, Any], *starts: int) -> int:
        return store.append_lines(
            "line_minute",
            columns,
            cluster="atlas",
            starts_unix_ms=starts,
            generation=generation,
            stored_unix_ms=NOW_MS,
        )

    assert write(1, lines("0", "1"), NOW_MS) == 2
    assert standing(store) == [("0", 60_000), ("1", 60_000)]
    store.append(
        "line_minute",
        lines("9") | {"cluster": ["atlas"], "generation": [2], "stored_unix_ms": [NOW_MS]},
    )
    assert standing(store) == [("0", 60_000), ("1", 60_000)], "half a generation is not seen"
    assert write(3, lines("0", card_ms=5), NOW_MS, NOW_MS + MINUTE_MS) == 1
    assert standing(store) == [("0", 5)]
    assert write(4, lines(), NOW_MS) == 0
    assert standing(store) == []


def test_a_sweep_removes_superseded_lines_only(store: TelemetryStore) -> None:
    for generation, slots in ((1, ("0", "1")), (2, ("0",))):
        store.append_lines(
            "line_minute",
            lines(*slots),
            cluster="atlas",
            starts_unix_ms=[NOW_MS],
            generation=generation,
            stored_unix_ms=NOW_MS,
        )
    month = time.strftime("%Y%m", time.gmtime(NOW_MS / 1000))
    store.sweep("line_minute", month)
    assert standing(store) == [("0", 60_000)]
    assert store.query("SELECT count() AS n FROM line_minute").to_pylist() == [{"n": 1}]


def test_a_minute_stays_dirty_until_a_recompute_that_began_after_its_last_row(
    store: TelemetryStore,
) -> None:
    minutes = [("atlas", NOW_MS), ("atlas", NOW_MS + MINUTE_MS)]
    store.marks.mark(minutes, NOW_MS + 10)
    assert clear(store, "atlas", [NOW_MS], NOW_MS + 15) == [], "its rows are being stored"
    store.marks.settle(minutes, NOW_MS + 20)
    assert clear(store, "atlas", [NOW_MS], NOW_MS + 20) == [], "it was touched since"
    assert clear(store, "atlas", [NOW_MS], NOW_MS + 21) == [NOW_MS]
    assert dirty_minutes(store) == minutes[1:]
    assert dirty_minutes(store, "borealis") == []
    store.marks.mark(minutes[:1], NOW_MS + 15)  # a clock that went back
    store.marks.settle(minutes[:1], NOW_MS + 15)
    assert dirty_minutes(store, "atlas") == minutes


def test_marks_outlive_the_process(tmp_path: Path) -> None:
    first = TelemetryStore.open(f"chdb://{tmp_path}")
    first.marks.mark([("atlas", NOW_MS)], NOW_MS)
    first.close()
    second = TelemetryStore.open(f"chdb://{tmp_path}")
    assert dirty_minutes(second) == [("atlas", NOW_MS)]
    assert clear(second, "atlas", [NOW_MS], NOW_MS + 1) == [NOW_MS]
    assert dirty_minutes(second) == []
    second.close()


def test_an_append_does_not_wait_for_a_long_query(store: TelemetryStore) -> None:
    bounded = store.bounded({"max_execution_time": 20}, 1)
    answered = threading.Event()

    def ask() -> None:
        with pytest.raises(RetryableError, match="TIMEOUT"):
            bounded.query("SELECT sum(cityHash64(number)) FROM numbers(1e12)", seconds_max=3.0)
        answered.set()

    asking = threading.Thread(target=ask)
    asking.start()
    for i in range(5):
        store.append("event", events(NOW_MS + i))
    assert not answered.is_set()
    asking.join()
    bounded.close()
    assert store.query("SELECT count() AS n FROM event").to_pylist() == [{"n": 5}]


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    program = (
        "import sys; from flopwatch_collector.telemetry.store import TelemetryStore as T;"
        f"T.open('chdb://{tmp_path}'); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(UsageError, match=rf"{tmp_path} is in use by process {holder.pid} \("):
            TelemetryStore.open(f"chdb://{tmp_path}")
        holder.kill()
    TelemetryStore.open(f"chdb://{tmp_path}").close()


@pytest.mark.parametrize(
    "dsn", ["", "sqlite:///x", "chdb://relative/path", "chdb:relative", "http:///nohost"]
)
def test_a_dsn_that_makes_no_sense_is_a_usage_error(dsn: str) -> None:
    with pytest.raises(UsageError, match="neither chdb:///absolute/directory nor"):
        TelemetryStore.open(dsn)


def test_a_directory_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--data: .*file/data cannot be written"):
        TelemetryStore.open(f"chdb://{tmp_path}/file/data")


def test_a_server_that_does_not_answer_may_answer_later() -> None:
    with pytest.raises(RetryableError, match="telemetry store"):
        TelemetryStore.open("http://127.0.0.1:1")


def test_a_column_that_a_newer_version_adds_is_added(tmp_path: Path) -> None:
    first = TelemetryStore.open(f"chdb://{tmp_path}")
    with first._writers.one() as client:
        client.command("ALTER TABLE event DROP COLUMN severity")
    first.close()
    second = TelemetryStore.open(f"chdb://{tmp_path}")
    second.append("event", events(NOW_MS, severity=["fatal"]))
    assert second.query("SELECT severity FROM event").to_pylist() == [{"severity": "fatal"}]
    second.close()

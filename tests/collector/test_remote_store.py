"""The read server: what it answers, and what it refuses so that ingest and pager go on."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flopwatch_collector.telemetry.remote import ReadBounds, ReadServer, RemoteStore
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import PermanentError, RetryableError

SLOW = "SELECT sum(cityHash64(number)) AS s FROM numbers(1000000000000)"


@pytest.fixture
async def server(store: TelemetryStore, tmp_path: Path) -> AsyncIterator[ReadServer]:
    bounds = ReadBounds(
        concurrent=2,
        waiting_max=1,
        waiting_seconds_max=0.3,
        seconds_max=2.0,
        memory_bytes_max=10**8,
    )
    server = ReadServer(
        store,
        tmp_path / "read.sock",
        status=lambda: {"streams": 3},
        metrics=lambda: "flopwatch_streams 3\n",
        bounds=bounds,
    )
    await server.start()
    yield server
    await server.close()


async def ask(remote: RemoteStore, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    table = await asyncio.to_thread(remote.query, sql, parameters)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


async def test_a_query_with_parameters_is_answered(server: ReadServer, tmp_path: Path) -> None:
    remote = RemoteStore(tmp_path / "read.sock")
    sql = "SELECT {a:Int64} + 1 AS b, {names:Array(String)} AS n"
    assert await ask(remote, sql, a=41, names=["it's"]) == [{"b": 42, "n": ["it's"]}]


async def test_an_empty_answer_keeps_its_columns(server: ReadServer, tmp_path: Path) -> None:
    remote = RemoteStore(tmp_path / "read.sock")
    table = await asyncio.to_thread(remote.query, "SELECT cluster, card_ms FROM interval WHERE 0")
    assert (table.column_names, table.num_rows) == (["cluster", "card_ms"], 0)


async def test_status_and_metrics_come_from_the_collector(
    server: ReadServer, tmp_path: Path
) -> None:
    remote = RemoteStore(tmp_path / "read.sock")
    assert await asyncio.to_thread(remote.status) == {"streams": 3}
    assert await asyncio.to_thread(remote.metrics) == "flopwatch_streams 3\n"


@pytest.mark.parametrize(
    "sql",
    ["INSERT INTO event (kind) VALUES ('x')", "DROP TABLE event", "SELEC", "SELECT x FROM nowhere"],
)
async def test_a_write_or_a_mistake_is_refused_for_good(
    server: ReadServer, tmp_path: Path, sql: str
) -> None:
    with pytest.raises(PermanentError, match="telemetry store"):
        await ask(RemoteStore(tmp_path / "read.sock"), sql)


async def test_a_slow_query_ends_at_its_bound(server: ReadServer, tmp_path: Path) -> None:
    remote = RemoteStore(tmp_path / "read.sock", seconds_max=0.2)
    with pytest.raises(RetryableError, match="TIMEOUT_EXCEEDED"):
        await ask(remote, SLOW)


async def test_a_large_query_ends_at_its_bound(server: ReadServer, tmp_path: Path) -> None:
    remote = RemoteStore(tmp_path / "read.sock")
    with pytest.raises(RetryableError, match="MEMORY_LIMIT_EXCEEDED"):
        await ask(remote, "SELECT groupArray(number) FROM numbers(1000000000)")


async def test_queries_beyond_the_bound_are_shed(server: ReadServer, tmp_path: Path) -> None:
    remote = RemoteStore(tmp_path / "read.sock")
    answers = await asyncio.gather(*(ask(remote, SLOW) for _ in range(6)), return_exceptions=True)
    assert all(isinstance(answer, RetryableError) for answer in answers)
    assert sum("busy" in str(answer) for answer in answers) == 4
    assert server.shed == 4
    assert await ask(remote, "SELECT 1 AS one") == [{"one": 1}]


async def test_the_socket_is_private_and_goes_with_the_server(
    server: ReadServer, tmp_path: Path
) -> None:
    path = tmp_path / "read.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.close()
    assert not path.exists()
    with pytest.raises(RetryableError, match="does not answer"):
        await ask(RemoteStore(path), "SELECT 1")


async def test_a_deep_directory_is_no_obstacle(store: TelemetryStore, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    server = ReadServer(store, deep / "read.sock")
    await server.start()
    assert await ask(RemoteStore(deep / "read.sock"), "SELECT 1 AS one") == [{"one": 1}]
    await server.close()

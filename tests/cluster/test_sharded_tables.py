"""The tables of a cluster, as far as one engine can tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import clickhouse_connect
import pytest

from flopwatch_collector.telemetry import sharded
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.telemetry.table import create_table

DEPLOY: Final = Path(__file__).parents[2] / "deploy/clickhouse"
NOW_MS: Final = 1_800_000_000_000


def statements() -> list[str]:
    text = (DEPLOY / "tables.sql").read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return [part.strip() for part in code.split(";\n") if part.strip()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TelemetryStore]:
    """A store whose tables were made by the cluster's file, without what needs a cluster."""
    path = tmp_path_factory.mktemp("sharded") / "telemetry"
    path.mkdir()
    client = clickhouse_connect.get_client(interface="chdb", path=str(path))
    for statement in statements():
        if "ENGINE = Distributed(" in statement:
            continue
        plain = statement.replace(f"_local {sharded.ON_CLUSTER}", "")
        client.command(plain.replace(sharded.REPLICATED, sharded.PLAIN))
    client.close()
    opened = TelemetryStore.open(f"chdb://{path}")
    yield opened
    opened.close()


def test_the_committed_file_is_what_the_schema_makes() -> None:
    assert (DEPLOY / "tables.sql").read_text(encoding="utf-8") == sharded.page()


def test_every_table_is_replicated_and_has_its_name_over_all_shards() -> None:
    made = dict.fromkeys(TABLES, 0)
    for statement in statements():
        name = re.match(r"CREATE TABLE IF NOT EXISTS (\w+) ON CLUSTER", statement)
        assert name is not None, statement
        if name[1] in TABLES:
            (by,) = re.findall(r"cityHash64\((\w+)\)", statement)
            # Two rows with one key must meet on one shard.
            assert by in TABLES[name[1]].key
        made[name[1].removesuffix("_local")] += 1
    assert set(made.values()) == {2}


def test_the_tables_are_those_that_a_collector_makes_by_itself(store: TelemetryStore) -> None:
    found = store.query(
        "SELECT name, sorting_key, partition_key, engine_full FROM system.tables"
        " WHERE database = currentDatabase() AND name != 'migration' ORDER BY name"
    ).to_pylist()
    assert [each["name"] for each in found] == sorted(TABLES)
    for each in found:
        table = TABLES[each["name"]]
        assert each["sorting_key"] == ", ".join(table.key)
        assert table.time in each["partition_key"]
        assert each["engine_full"].startswith(f"ReplacingMergeTree({table.version})")
        assert "fsync_after_insert = 1" in each["engine_full"]
        assert ("TTL" in each["engine_full"]) == ("\nTTL " in create_table(table))


def test_a_row_that_comes_twice_is_one(store: TelemetryStore) -> None:
    row: dict[str, list[Any]] = {
        "cluster": ["atlas"],
        "node": ["n1"],
        "slot": ["0"],
        "start_unix_ms": [NOW_MS],
    }
    for stored in (NOW_MS, NOW_MS + 1):
        store.append("interval", {**row, "stored_unix_ms": [stored], "duration_ms": [10_000]})
    (found,) = store.query(
        "SELECT count() AS n, max(stored_unix_ms) AS t FROM interval FINAL"
    ).to_pylist()
    assert found == {"n": 1, "t": NOW_MS + 1}


def test_the_servers_files_are_xml_and_name_the_macros_that_the_tables_use() -> None:
    servers = ElementTree.parse(DEPLOY / "servers.xml").getroot()
    macros = {each.tag for each in servers.findall("macros/*")}
    used = set(re.findall(r"\{(\w+)\}", sharded.page())) - {"database", "table"}
    assert used <= macros
    users = ElementTree.parse(DEPLOY / "users.xml").getroot()
    assert users.findtext("profiles/flopwatch/insert_quorum") == "auto"

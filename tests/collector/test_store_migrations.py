"""A store that an older version made, with data, is carried forward; one of a newer version is left alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flopwatch_collector.telemetry.migrations import STEPS, migrate
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.telemetry.table import create_table
from flopwatch_proto.errors import UsageError

NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture
def older(store: TelemetryStore) -> Any:
    """A handle on a store as an older version left it: no steps noted, raw rows with an age limit and
    without energy, no lines by interval and by day."""
    with store.still() as client:
        client.command("DROP TABLE migration")
        for name in ("fleet_interval", "fleet_day"):
            client.command(f"DROP TABLE {name}")
        for name in ("interval", "fleet_minute"):
            client.command(f"DROP TABLE {name}")
            there = dict(TABLES[name].columns)
            there.pop("energy_joules")
            client.command(create_table(replace(TABLES[name], columns=there, swept=False)))
        names = ["cluster", "start_unix_ms", "node", "slot", "stored_unix_ms"]
        client.insert("interval", [["atlas", NOW_MS, "n1", "0", NOW_MS]], names)
        yield client


def column(client: Any, table: str, name: str) -> list[Any]:
    return [value for (value,) in client.query(f"SELECT {name} FROM {table}").result_rows]


def definition(client: Any, table: str) -> str:
    return str(client.raw_query(f"SHOW CREATE TABLE {table}", fmt="TSVRaw").decode())


def test_an_older_store_gets_what_it_lacks_and_keeps_its_rows(older: Any) -> None:
    assert "\nTTL " in definition(older, "interval")
    assert migrate(older) == len(STEPS)
    assert column(older, "interval", "slot") == ["0"]
    assert column(older, "interval", "energy_joules") == [None]
    assert "\nTTL " not in definition(older, "interval")
    assert "\nTTL " not in definition(older, "fleet_minute")
    assert "\nTTL " in definition(older, "event")
    assert column(older, "fleet_day", "start_unix_ms") == []
    assert column(older, "fleet_interval", "start_unix_ms") == []
    assert sorted(column(older, "migration", "number")) == [1, 2]
    assert migrate(older) == len(STEPS), "and nothing is done twice"
    assert sorted(column(older, "migration", "number")) == [1, 2]


def test_a_step_that_was_killed_half_way_is_done_again(older: Any) -> None:
    done: list[str] = []

    def dies(client: Any) -> None:
        STEPS[0](client)
        raise SystemExit("killed before the step was noted")

    with pytest.raises(SystemExit):
        migrate(older, (dies, STEPS[1]))
    assert column(older, "migration", "number") == []
    assert migrate(older, (*STEPS, lambda _: done.append("third"))) == len(STEPS) + 1
    assert migrate(older, (*STEPS, lambda _: done.append("third"))) == len(STEPS) + 1
    assert done == ["third"]
    assert column(older, "interval", "slot") == ["0"]


def test_a_newer_store_is_refused_untouched(store: TelemetryStore, tmp_path: Path) -> None:
    with store.still() as client:
        client.insert("migration", [[len(STEPS) + 1, NOW_MS]], ["number", "done_unix_ms"])
        client.command("DROP TABLE event")
    store.close()
    with pytest.raises(UsageError, match=f"at step {len(STEPS) + 1}, this one knows {len(STEPS)}"):
        TelemetryStore.open(f"chdb://{tmp_path}/telemetry")
    with pytest.raises(UsageError, match="newer"):  # and the directory was given up again
        TelemetryStore.open(f"chdb://{tmp_path}/telemetry")

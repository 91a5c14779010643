"""Older stores carried forward when they are opened: numbered steps, each noted in the store when it is done.

A step may be cut short anywhere and is done again from its beginning, so each looks before it acts. Columns
that a newer version added are no step: `missing_columns` adds them whatever the number says, in one statement
each, which the engine does at once without touching rows. A store with a number beyond ours is refused: what
an older collector would write there, a newer one might not read.

To change more than columns: append a step to ``STEPS``, never change one that was released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.table import create_table
from flopwatch_proto.errors import UsageError

Step = Callable[[Any], None]

_NOTED: Final = (
    "CREATE TABLE IF NOT EXISTS migration (`number` UInt32, `done_unix_ms` Int64) "
    "ENGINE = ReplacingMergeTree(done_unix_ms) ORDER BY number "
    "SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
)

log = structlog.get_logger()


def _raw_rows_have_no_age_limit(client: Any) -> None:
    """Partitions of raw rows are dropped by `retention.py`, which spares those that are still needed."""
    for table in TABLES.values():
        if table.swept and " TTL " in _definition(client, table.name):
            client.command(f"ALTER TABLE {table.name} REMOVE TTL")


def _lines_have_no_age_limit(client: Any) -> None:
    """Lines by minute are kept as long as `retention.py` is told."""
    for name in ("line_minute", "fleet_minute"):
        if " TTL " in _definition(client, name):
            client.command(f"ALTER TABLE {name} REMOVE TTL")


STEPS: Final[tuple[Step, ...]] = (_raw_rows_have_no_age_limit, _lines_have_no_age_limit)


def migrate(client: Any, steps: Sequence[Step] = STEPS) -> int:
    """Bring a store to this version's tables; return the number it has now.

    Raises:
        UsageError: a newer version has written it.
    """
    client.command(_NOTED)
    number = int(client.command("SELECT max(number) FROM migration"))
    if number > len(steps):
        raise UsageError(
            f"the telemetry store is of a newer flopwatch: it is at step {number}, this one knows "
            f"{len(steps)}; start the newer collector, or restore a backup made before it"
        )
    older = bool(_definition(client, "interval"))
    for table in TABLES.values():
        client.command(create_table(table))
    for statement in missing_columns(client):
        client.command(statement)
    for at in range(number, len(steps)):
        steps[at](client)
        client.command(f"INSERT INTO migration SELECT {at + 1}, toUnixTimestamp64Milli(now64(3))")
        if older:
            log.info("store_migrated", step=at + 1)
    return len(steps)


def missing_columns(client: Any) -> list[str]:
    """Return the statements that add columns that this version has and the store lacks."""
    found = client.query(
        "SELECT table, name FROM system.columns WHERE database = currentDatabase()"
    ).result_rows
    there = set(found)
    return [
        f"ALTER TABLE {table.name} ADD COLUMN IF NOT EXISTS `{name}` {kind}"
        for table in TABLES.values()
        for name, kind in table.columns.items()
        if (table.name, name) not in there
    ]


def _definition(client: Any, name: str) -> str:
    rows = client.query(
        "SELECT create_table_query FROM system.tables "
        "WHERE database = currentDatabase() AND name = {name:String}",
        {"name": name},
    ).result_rows
    return str(rows[0][0]) if rows else ""

"""What a table of the telemetry store is: its columns, its key, and the DDL that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TEXT: Final = "LowCardinality(String)"
LONG_TEXT: Final = "String"
TEXTS: Final = "Array(LowCardinality(String))"
INT: Final = "Int64"
COUNT: Final = "UInt64"
MILLISECONDS: Final = "UInt32"
CODE: Final = "UInt8"
FLAG: Final = "Bool"
NUMBER: Final = "Float64"
QUANTITY: Final = "Nullable(Float64)"
NAMES: Final = "Array(String)"
MOMENTS: Final = "Array(Int64)"
SERIES: Final = "Array(Array(Float32))"

ColumnTypes = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        columns: name → ClickHouse type.
        key: the natural key; the sort order of the table.
        time: the column whose day (or month, with ``by_month``) is the partition.
        version: of two rows with one key, the one with the larger version stands.
        kept_days: rows go this many days after ``stored_unix_ms``; None keeps them for ever.
        swept: they go by `retention.py` instead, where it can.
    """

    name: str
    columns: ColumnTypes
    key: tuple[str, ...]
    time: str
    version: str = "stored_unix_ms"
    by_month: bool = False
    kept_days: int | None = None
    swept: bool = False


def create_table(table: Table) -> str:
    """Return the DDL of a table; the same for the embedded engine and a server."""
    columns = ",\n  ".join(f"`{name}` {kind}" for name, kind in table.columns.items())
    day = "toYYYYMM" if table.by_month else "toYYYYMMDD"
    ttl = (
        f"\nTTL toDateTime(intDiv(stored_unix_ms, 1000), 'UTC') + INTERVAL {table.kept_days} DAY"
        if table.kept_days is not None and not table.swept
        else ""
    )
    return (
        f"CREATE TABLE IF NOT EXISTS {table.name} (\n  {columns}\n)\n"
        f"ENGINE = ReplacingMergeTree({table.version})\n"
        f"PARTITION BY {day}(fromUnixTimestamp64Milli({table.time}, 'UTC'))\n"
        f"ORDER BY ({', '.join(table.key)}){ttl}\n"
        "SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,\n"
        "  min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1,\n"
        "  ttl_only_drop_parts = 1"
    )

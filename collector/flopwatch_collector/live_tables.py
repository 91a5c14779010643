"""Tables of the present: columns in memory, typed as the store types them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flopwatch_collector.ledger.evidence import ROW_COLUMNS, Window
from flopwatch_collector.ledger.texts import codes_of
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import ARROW_TYPES

COLUMNS: Final = (*ROW_COLUMNS, "instance")
Word = tuple[str, str, int, int]
"""Node, slot, start and end (unix ms) of a row."""
_KEY: Final = ("node", "slot", "start_unix_ms", "job", "instance")


def records(columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    count = len(next(iter(columns.values()), ()))
    return [
        {name: columns[name][i] if name in columns else None for name in names}
        for i in range(count)
    ]


def table_of(records: Sequence[Mapping[str, Any]], table: str, names: Sequence[str]) -> pa.Table:
    """Return records with exactly the named columns, typed as the store types them."""
    return typed({name: [r.get(name) for r in records] for name in names}, table, names)


def typed(columns: Mapping[str, Sequence[Any]], table: str, names: Sequence[str]) -> pa.Table:
    """Return the named columns as the store types them; one that is not there holds its default."""
    count = len(next(iter(columns.values()), ()))
    types = {name: TABLES[table].columns[name] for name in names}
    arrays = {}
    for name, kind in types.items():
        values = columns.get(name)
        if isinstance(values, pa.Array | pa.ChunkedArray):
            array = values.cast(ARROW_TYPES[kind])
        else:
            array = pa.array([None] * count if values is None else values, ARROW_TYPES[kind])
        if array.null_count and not kind.startswith("Nullable"):
            array = array.fill_null("" if pa.types.is_string(array.type) else 0)
        arrays[name] = array
    return pa.table(arrays)


def in_memory(table: pa.Table) -> pa.Table:
    """Return rows from the store as those in memory are typed: the engine marks columns as never null."""
    return table.cast(typed({}, "interval", COLUMNS).schema)


def last_words(table: pa.Table) -> Iterator[Word]:
    """Yield, per slot that has rows, when its last row starts and ends."""
    node, slot, start = (table[name] for name in ("node", "slot", "start_unix_ms"))
    end = pc.add(start, table["duration_ms"].cast(pa.int64()))
    names = ("node", "slot", "start", "end")
    spoken = pa.table([node.cast(pa.string()), slot.cast(pa.string()), start, end], names)
    last = spoken.group_by(names[:2], use_threads=False).aggregate(
        [("start", "max"), ("end", "max")]
    )
    columns = (last[name].to_pylist() for name in ("node", "slot", "start_max", "end_max"))
    yield from zip(*columns, strict=True)


def whole_rosters(table: pa.Table) -> list[dict[str, list[Any]]]:
    """Return the columns of each roster by itself, of rows of many."""
    whole: dict[tuple[str, int], dict[str, list[Any]]] = {}
    for record in table.to_pylist():
        columns = whole.setdefault((record["source"], record["taken_unix_ms"]), {})
        for column, value in record.items():
            columns.setdefault(column, []).append(value)
    return list(whole.values())


def overlapping(table: pa.Table, window: Window) -> pa.Table:
    start = table["start_unix_ms"].to_numpy()
    inside = (start + table["duration_ms"].to_numpy() > window.start) & (start < window.end)
    return table if inside.all() else table.filter(pa.array(inside))


def newest_rows(table: pa.Table) -> pa.Table:
    """Return each row once: a batch that came twice is the same rows twice."""
    key = codes_of([table[name] for name in _KEY])
    _, last = np.unique(key[::-1], return_index=True)
    if len(last) == table.num_rows:
        return table
    return table.take(pa.array(np.sort(table.num_rows - 1 - last)))

"""Runs: what a slot did in one interval, where its rows are finer than that. Pure.

The account's grain is the interval of 10 s. Rows of a second that follow each other within one, and differ in
nothing but their time, are added up before they are judged: ten times the rows cost an account ten times the
work, and change no sum. Where a roster begins within a run, the run is cut in proportion to time, as a row
of 10 s is.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flopwatch_collector.ledger.texts import codes_of
from flopwatch_proto.rows import INTERVAL_MS

_SAME: Final = ("node", "slot", "bucket", "rogue", "spool_id", "instance")


def runs_of(
    table: pa.Table, texts: tuple[str, ...], sums: tuple[str, ...], maxima: tuple[str, ...]
) -> pa.Table:
    """Return the rows of a table, those shorter than an interval as runs.

    Args:
        table: with start_unix_ms, duration_ms, and any of the columns named here and in `_SAME`.
        texts: columns in which the rows of a run are the same.
        sums: columns that add up; of nothing but nulls the sum is null.
        maxima: columns whose largest value stands.
    """
    short = table["duration_ms"].to_numpy() < INTERVAL_MS
    if not short.any():
        return table
    long, table = table.filter(pa.array(~short)), table.filter(pa.array(short)).combine_chunks()
    start = table["start_unix_ms"].to_numpy()
    end = start + table["duration_ms"].to_numpy()
    same = codes_of([table[name] for name in (*_SAME, *texts) if name in table.column_names])
    order = np.lexsort((start, same, start // INTERVAL_MS))
    start, end, same = start[order], end[order], same[order]
    follows = (start[1:] == end[:-1]) & (same[1:] == same[:-1])
    follows &= start[1:] // INTERVAL_MS == start[:-1] // INTERVAL_MS
    first = np.flatnonzero(np.append(True, ~follows))
    if len(first) == len(order):
        return pa.concat_tables([long, table])
    sorted_table = table.take(pa.array(order))
    taken = sorted_table.take(pa.array(first))
    for names, ufunc, nothing in (
        (("duration_ms", *sums), np.add, 0),
        (("stored_unix_ms", *maxima), np.maximum, -np.inf),
    ):
        for name in names:
            if name not in taken.column_names:
                continue
            place = taken.column_names.index(name)
            column = _reduced(sorted_table[name], first, ufunc, nothing)
            taken = taken.set_column(place, taken.schema.field(name), column)
    return pa.concat_tables([long, taken])


def _reduced(
    column: pa.ChunkedArray, first: np.ndarray, ufunc: np.ufunc, nothing: float
) -> pa.Array:
    """Return one value per run; null where all of its values are."""
    if not column.null_count:
        return pa.array(ufunc.reduceat(column.to_numpy(), first)).cast(column.type)
    known = pc.is_valid(column).to_numpy()
    values = np.where(known, column.to_numpy(), nothing)
    nulls = ~np.logical_or.reduceat(known, first)
    return pa.array(ufunc.reduceat(values, first), mask=nulls).cast(column.type)

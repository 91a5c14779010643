"""Rows of the last minutes, in memory, by the interval in which they begin."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, TypeAlias

import pyarrow as pa

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.live_tables import COLUMNS, newest_rows, overlapping, table_of
from flopwatch_proto.rows import INTERVAL_MS

WORTH_BYTES: Final = 100_000
"""Fewer are not packed: the names of the columns alone take 40 kB."""
Part: TypeAlias = pa.Table | pa.Buffer
"""Rows, or rows packed."""
# Level 1 halves what noise there is in the sums and leaves a tenth of the rest.
_PACKING: Final = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))


class RecentRows:
    """Rows as they came, until they are asked for; then each once. Safe to call from several threads.

    Rows are most of the memory of a large fleet, and those of an interval that has been judged are rarely
    asked for again: those are packed.
    """

    def __init__(self) -> None:
        self._parts: dict[int, list[Part]] = {}
        self._lock = threading.Lock()

    def sizes(self) -> dict[int, int]:
        """Return interval → bytes that its rows take."""
        return {start: sum(map(_size, parts)) for start, parts in self._known().items()}

    def add(self, interval: int, rows: pa.Table) -> None:
        """Take rows that begin in an interval."""
        with self._lock:
            self._parts.setdefault(interval, []).append(rows)

    def within(self, window: Window) -> pa.Table:
        """Return the rows that overlap an interval; a row may begin in the interval before."""
        tables, known = [], self._known()
        for interval in (window.start - INTERVAL_MS, window.start):
            if parts := known.get(interval):
                rows = _joined(parts)
                if len(parts) > 1:
                    self._replace(interval, len(parts), rows)
                tables.append(overlapping(rows, window))
        return pa.concat_tables(tables) if tables else table_of([], "interval", COLUMNS)

    def pack(self, until_unix_ms: int) -> None:
        """Pack the rows that begin in intervals before a moment."""
        for interval, parts in self._known().items():
            if interval < until_unix_ms and _worth_packing(parts):
                self._replace(interval, len(parts), _packed(_joined(parts)))

    def forget(self, until_unix_ms: int) -> None:
        """Drop the rows that begin in intervals before a moment."""
        with self._lock:
            self._parts = {t: parts for t, parts in self._parts.items() if t >= until_unix_ms}

    def _known(self) -> dict[int, tuple[Part, ...]]:
        with self._lock:
            return {interval: tuple(parts) for interval, parts in self._parts.items()}

    def _replace(self, interval: int, count: int, part: Part) -> None:
        """Keep one part in place of the oldest, which it holds; what came meanwhile stays."""
        with self._lock:
            self._parts[interval][:count] = [part]


def _size(part: Part) -> int:
    return int(part.nbytes if isinstance(part, pa.Table) else part.size)


def _worth_packing(parts: Sequence[Part]) -> bool:
    return sum(_size(part) for part in parts if isinstance(part, pa.Table)) >= WORTH_BYTES


def _joined(parts: Sequence[Part]) -> pa.Table:
    """Return rows in one table, each once."""
    tables = [p if isinstance(p, pa.Table) else pa.ipc.open_stream(p).read_all() for p in parts]
    return tables[0] if len(tables) == 1 else newest_rows(pa.concat_tables(tables))


def _packed(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_PACKING) as writer:
        writer.write_table(rows)
    return sink.getvalue()

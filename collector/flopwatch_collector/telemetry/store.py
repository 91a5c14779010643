"""The telemetry store: one client for the engine in this process and for a ClickHouse server.

What the embedded engine (chDB) allows, and what follows:

- one process per path, one path per process at a time: `DirectoryLock` names the holder;
- any number of handles on that path, each with its own settings, each used by one thread at a time;
  handles run side by side and let other Python threads run: appends have their own handles and never
  wait behind a query, and there is a small pool of them for queries;
- settings given with a call cost several statements on this engine, so each handle gets its settings once;
- its JIT breaks under MemoryDenyWriteExecute, so ``compile_*`` is off everywhere;
- a small insert is mostly planning: one thread and one Arrow block, without columns that are empty.

Values travel as Arrow in both directions. A row that `append` returned for is fsynced.
"""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from flopwatch_collector.telemetry import NO_PARAMETERS
from flopwatch_collector.telemetry.dirty import DirtyMarks
from flopwatch_collector.telemetry.lock import SHADOW, DirectoryLock
from flopwatch_collector.telemetry.migrations import migrate
from flopwatch_collector.telemetry.schema import DAY_MS, RAW_KEPT_DAYS, TABLES
from flopwatch_collector.telemetry.table import TEXT, Table
from flopwatch_collector.telemetry.times import late_ms_max
from flopwatch_proto.errors import PermanentError, RetryableError, UsageError

_NO_JIT: Final = {
    "compile_expressions": 0,
    "compile_aggregate_expressions": 0,
    "compile_sort_description": 0,
}
_WRITE: Final = {
    **_NO_JIT,
    "max_threads": 1,
    "max_insert_threads": 1,
    "input_format_parallel_parsing": 0,
    "max_partitions_per_insert_block": 0,  # a backfill may span any number of days
    "async_insert": 0,
}
_READ: Final = {
    **_NO_JIT,
    "max_threads": 2,
    "output_format_arrow_compression_method": "none",
    "output_format_arrow_low_cardinality_as_dictionary": 0,
}

# Codes of the engine that say "not now" rather than "never": too slow, too large, too many, no network.
_RETRYABLE_CODES: Final = frozenset({159, 160, 202, 209, 210, 241, 243, 252, 394})

ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "String": pa.string(),
    "LowCardinality(String)": pa.string(),
    "Array(LowCardinality(String))": pa.list_(pa.string()),
    "Int64": pa.int64(),
    "UInt64": pa.uint64(),
    "UInt32": pa.uint32(),
    "UInt8": pa.uint8(),
    "Bool": pa.bool_(),
    "Float64": pa.float64(),
    "Nullable(Float64)": pa.float64(),
    "Array(String)": pa.list_(pa.string()),
    "Array(Int64)": pa.list_(pa.int64()),
    "Array(Array(Float32))": pa.list_(pa.list_(pa.float32())),
}


class Handles:
    """A pool of client handles with the same settings; one thread uses one at a time."""

    def __init__(self, target: Mapping[str, Any], settings: Mapping[str, Any], count: int) -> None:
        self._all = [_client(target, settings) for _ in range(count)]
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        for client in self._all:
            self._free.put(client)

    @contextmanager
    def one(self) -> Iterator[Any]:
        """Lend a handle; waits while all are in use. Raises: RetryableError: they are closed."""
        client = self._free.get()
        if client is None:
            self._free.put(None)  # for whoever else still waits
            raise RetryableError("telemetry store: it is closed")
        try:
            yield client
        finally:
            self._free.put(client)

    @contextmanager
    def every(self) -> Iterator[Any]:
        """Lend one handle while nobody has another; only one caller at a time may ask for this."""
        with ExitStack() as stack:
            handles = [stack.enter_context(self.one()) for _ in self._all]
            yield handles[0]

    def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
        *,
        seconds_max: float | None = None,
    ) -> pa.Table:
        """Return the answer as a table; arguments and errors as in `query_stream`."""
        content = self.query_stream(sql, parameters, seconds_max=seconds_max)
        return pa.ipc.open_stream(content).read_all()

    def query_stream(
        self,
        sql: str,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
        *,
        seconds_max: float | None = None,
    ) -> bytes:
        """Return the answer as an Arrow IPC stream; ``seconds_max`` bounds the engine's time for it.

        Raises:
            RetryableError, PermanentError: see `flopwatch_collector.telemetry.Reader`.
        """
        with self.one() as client, _engine_errors():
            if seconds_max is not None:
                client.set_client_setting("max_execution_time", f"{seconds_max:.3f}")
            content: bytes = client.raw_query(sql, dict(parameters), fmt="ArrowStream")
        return content

    def close(self) -> None:
        """Close every handle, each when its call has ended."""
        for _ in self._all:
            self._free.get().close()
        # A thread that asks only now must not wait for ever: the process could not end.
        self._free.put(None)


class TelemetryStore:
    """The tables of ``schema.py`` behind one DSN.

    Attributes:
        exclusive: no other process writes here; true for the embedded engine.
        directory: of the embedded engine; None: a server's.
        marks: the dirty minutes this process knows of.
        sharded: tables are those of `sharded.py`.
        late_ms: how late a row may be; shorter where raw rows are kept for less than that.
    """

    def __init__(self, target: Mapping[str, Any], *, lock: DirectoryLock | None) -> None:
        self._target = dict(target)
        self.directory = None if lock is None else Path(target["path"])
        self._lock = lock
        self._closed = threading.Event()
        self._still = threading.Lock()
        self.exclusive = lock is not None
        self.marks = DirtyMarks(self)
        self._writers = Handles(target, _WRITE, 2)
        self._readers = Handles(target, _READ, 3)
        try:
            with self._writers.one() as client, _engine_errors():
                migrate(client)
                engine = client.command(
                    "SELECT engine FROM system.tables "
                    "WHERE database = currentDatabase() AND name = 'interval'"
                )
        except BaseException:
            self._writers.close()
            self._readers.close()
            raise
        self.sharded = engine == "Distributed"
        self.late_ms = late_ms_max(RAW_KEPT_DAYS * DAY_MS)

    def oldest_unix_ms(self, now_unix_ms: int) -> int:
        """Return the earliest start of a row that is taken now; what was written before it stands."""
        return now_unix_ms - self.late_ms

    @classmethod
    def open(cls, dsn: str) -> TelemetryStore:
        """Open ``chdb:///directory`` or ``http(s)://[user:password@]host[:port][/database]``.

        Raises:
            UsageError: the DSN makes no sense, or the directory is not ours to use.
            RetryableError: the server does not answer.
        """
        parts = urlsplit(dsn)
        if parts.scheme in ("http", "https") and parts.netloc:
            return cls({"dsn": dsn, "autogenerate_session_id": False}, lock=None)
        if parts.scheme != "chdb" or parts.netloc or not parts.path.startswith("/"):
            raise UsageError(
                f"telemetry DSN {dsn!r} is neither chdb:///absolute/directory nor http(s)://host"
            )
        directory = Path(unquote(parts.path))
        lock = DirectoryLock(directory)
        shutil.rmtree(directory / SHADOW, ignore_errors=True)  # of a backup that a crash ended
        try:
            return cls({"interface": "chdb", "path": str(directory)}, lock=lock)
        except BaseException:
            lock.release()
            raise

    def append(self, table: str, columns: Mapping[str, Sequence[Any]]) -> int:
        """Insert rows given as columns, fsynced; return their number.

        Columns that are left out, or hold only None, take the default: NULL, ``''``, 0 or ``[]``. A None in
        a text column is ``''``.

        Raises:
            PermanentError: the values do not fit the table; trying again cannot help.
            RetryableError: the store failed; whether rows were stored is not known, so send them again.
        """
        block = arrow_block(TABLES[table], columns)
        if block.num_rows == 0:
            return 0
        with self._writers.one() as client, _engine_errors(always_retryable=True):
            client.insert_arrow(table, block)
        return int(block.num_rows)

    def append_lines(
        self,
        table: str,
        columns: Mapping[str, Sequence[Any]],
        *,
        cluster: str,
        starts_unix_ms: Sequence[int],
        generation: int,
        stored_unix_ms: int,
    ) -> int:
        """Write the lines of whole minutes (or hours) of a cluster, then say that they stand.

        ``columns`` lacks cluster, generation and stored_unix_ms; ``generation`` must exceed that of every
        earlier writing of these starts. A start in ``starts_unix_ms`` without lines is written as empty.
        Returns the number of lines.
        """
        starts = columns.get("start_unix_ms", ())
        count = len(starts)
        constant = {"cluster": cluster, "generation": generation, "stored_unix_ms": stored_unix_ms}
        self.append(table, {**columns, **{name: [v] * count for name, v in constant.items()}})
        lines = dict.fromkeys(starts_unix_ms, 0)
        for start in starts:
            lines[start] += 1  # KeyError: a line outside the minutes being written is a bug
        self.append(
            "written",
            {
                "grain": [table] * len(lines),
                "cluster": [cluster] * len(lines),
                "start_unix_ms": list(lines),
                "generation": [generation] * len(lines),
                "lines": list(lines.values()),
                "stored_unix_ms": [stored_unix_ms] * len(lines),
            },
        )
        return count

    def query(self, sql: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> pa.Table:
        """Return the answer as a table; see `flopwatch_collector.telemetry.Reader`."""
        return self._readers.query(sql, parameters)

    def bounded(self, settings: Mapping[str, Any], count: int) -> Handles:
        """Return handles of their own for readers whose queries need bounds; close them before the store."""
        return Handles(self._target, {**_READ, **settings}, count)

    def drop_partition(self, table: str, partition: str) -> None:
        """Remove a partition of a table with all its rows.

        Raises:
            RetryableError, PermanentError: the store failed.
        """
        with self._writers.one() as client, _engine_errors():
            client.command(f"ALTER TABLE {table} DROP PARTITION ID '{partition}'")

    def sweep(self, table: str, partition: str) -> None:
        """Remove superseded generations of the lines of a month, where there are any.

        Raises:
            RetryableError, PermanentError: the store failed.
        """
        standing = (
            "(cluster, start_unix_ms, generation) IN (SELECT cluster, start_unix_ms, max(generation)"
            f" FROM written WHERE grain = '{table}' AND _partition_id = '{partition}'"
            " GROUP BY cluster, start_unix_ms)"
        )
        superseded = self.query(
            f"SELECT count() AS n FROM {table} WHERE _partition_id = '{partition}' AND NOT {standing}"
        )["n"][0].as_py()
        if superseded:
            with self._writers.one() as client, _engine_errors():
                client.command(
                    f"ALTER TABLE {table} DELETE IN PARTITION ID '{partition}' WHERE NOT {standing}"
                )

    @contextmanager
    def still(self) -> Iterator[Any]:
        """Lend a handle for statements while no append is under way, and begin none until the block ends.

        Raises:
            RetryableError, PermanentError: a statement failed.
        """
        with self._still, self._writers.every() as client, _engine_errors():
            yield client

    def close(self) -> None:
        """Close every handle and give the directory up. Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._writers.close()
        self._readers.close()
        if self._lock is not None:
            self._lock.release()


def arrow_block(table: Table, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return the columns as one Arrow table of the store's types, without columns that hold nothing.

    Raises:
        PermanentError: a column is unknown, of another length, or holds a value of another type.
    """
    arrays: dict[str, pa.Array] = {}
    count: int | None = None
    for name, values in columns.items():
        kind = table.columns.get(name)
        if kind is None:
            raise PermanentError(f"table {table.name} has no column {name}")
        if count is None:
            count = len(values)
        elif len(values) != count:
            raise PermanentError(f"column {name} has {len(values)} entries for {count} rows")
        try:
            if isinstance(values, pa.DictionaryArray) and kind == TEXT and not values.null_count:
                array = values  # the engine keeps such texts by number as well
            elif isinstance(values, pa.Array):
                array = values.cast(ARROW_TYPES[kind])
            else:
                array = pa.array(values, ARROW_TYPES[kind])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError) as exc:
            raise PermanentError(f"column {name} of {table.name}: {exc}") from exc
        if array.null_count == count:
            continue
        if array.null_count and not kind.startswith("Nullable"):
            if not pa.types.is_string(array.type):
                raise PermanentError(f"column {name} of {table.name} cannot be null")
            array = array.fill_null("")
        arrays[name] = array
    return pa.table(arrays)


def _client(target: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    with _engine_errors():
        return clickhouse_connect.get_client(**target, settings=dict(settings))


@contextmanager
def _engine_errors(*, always_retryable: bool = False) -> Iterator[None]:
    """Turn the client's errors into ours."""
    try:
        yield
    except DatabaseError as exc:
        text = str(exc).split("\n", 1)[0][:500]
        code = getattr(exc, "code", None)
        if always_retryable or code is None or code in _RETRYABLE_CODES:
            raise RetryableError(f"telemetry store: {text}") from exc
        raise PermanentError(f"telemetry store: {text}") from exc
    except (ClickHouseError, OSError) as exc:
        raise RetryableError(f"telemetry store: {str(exc)[:500]}") from exc

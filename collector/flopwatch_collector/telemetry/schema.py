"""The tables of the telemetry store, generated from the catalogues of rows and lines.

Rules that hold for every table:

- times are Int64 milliseconds since 1970 (``*_unix_ms``); a text that is not known is ``''``; a quantity
  that has no value is NULL;
- ``ORDER BY`` is the natural key, so a row that is stored twice collapses: read with ``FINAL``;
- ``version`` decides which of two rows with one key stands.

Lines are the exception: a minute (hour, day) of a cluster is written whole under a new ``generation``,
which is part of the key, and *afterwards* one row of ``written`` names that generation. Readers take the
newest generation that ``written`` names (`newest_lines`), so a half-written one is never seen and a line
that is gone in the new generation is gone. No ``FINAL`` is needed. Superseded generations are removed by
`retention.py` and at the latest by the age limit.

Lines by interval are kept for hours only, and name themselves: an interval is a part of one insert into one
partition, which the engine does whole or not at all, so the newest generation there is stands.
"""

from __future__ import annotations

from typing import Final

from flopwatch_collector.telemetry.line_tables import LINE_TABLES, MINUTE_KEPT_DAYS
from flopwatch_collector.telemetry.table import (
    CODE,
    COUNT,
    FLAG,
    INT,
    LONG_TEXT,
    MILLISECONDS,
    MOMENTS,
    NAMES,
    NUMBER,
    QUANTITY,
    SERIES,
    TEXT,
    TEXTS,
    ColumnTypes,
    Table,
)
from flopwatch_proto import rows

DAY_MS: Final = 24 * 3_600_000
RAW_KEPT_DAYS: Final = 35
"""Raw rows live this long from their *arrival*; rows with an older start are refused."""


def _interval() -> Table:
    columns: ColumnTypes = {"cluster": TEXT, "node": TEXT, "simulated": FLAG}
    columns |= {
        "start_unix_ms": INT,
        "duration_ms": MILLISECONDS,
        "weight": NUMBER,
        "bucket": CODE,
        "rogue": FLAG,
    }
    columns |= dict.fromkeys(rows.TEXTS, TEXT)
    columns |= {q.name: MILLISECONDS for q in rows.CARD_TIMES}
    columns |= dict.fromkeys(rows.QUANTITY_NAMES, QUANTITY)
    columns |= {
        "not_supported": TEXTS,
        "failed": TEXTS,
        "spool_id": TEXT,
        "seq": COUNT,
        "stored_unix_ms": INT,
    }
    return Table(
        name="interval",
        columns=columns,
        key=("cluster", "start_unix_ms", "node", "slot", "job", "instance"),
        time="start_unix_ms",
        kept_days=RAW_KEPT_DAYS,
        swept=True,
    )


def _host() -> Table:
    columns: ColumnTypes = {
        "cluster": TEXT,
        "node": TEXT,
        "simulated": FLAG,
        "start_unix_ms": INT,
        "duration_ms": MILLISECONDS,
    }
    columns |= {q.name: QUANTITY for q in rows.HOST_QUANTITIES}
    columns["stored_unix_ms"] = INT
    return Table(
        name="host",
        columns=columns,
        key=("cluster", "start_unix_ms", "node"),
        time="start_unix_ms",
        kept_days=RAW_KEPT_DAYS,
        swept=True,
    )


_ROSTER: Final = Table(
    name="roster",
    columns={
        "cluster": TEXT,
        "taken_unix_ms": INT,
        "source": TEXT,
        "valid_until_unix_ms": INT,
        "node": TEXT,  # '' with slot '': the roster itself, also when it lists nothing
        "slot": TEXT,
        "bucket": CODE,
        "job": TEXT,
        "team": TEXT,
        "user": TEXT,
        "workload_class": TEXT,
        "weight": NUMBER,
        "pending_jobs": MILLISECONDS,
        "pending_cards": MILLISECONDS,
        "free_cards": QUANTITY,  # free by its own count; NULL: it knows no queue
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "taken_unix_ms", "source", "node", "slot", "job", "bucket"),
    time="taken_unix_ms",
    kept_days=RAW_KEPT_DAYS,
    swept=True,
)

_SLOT: Final = Table(
    name="slot",
    columns={
        "cluster": TEXT,
        "node": TEXT,
        "slot": TEXT,
        "from_unix_ms": INT,
        "to_unix_ms": INT,  # 0: until the next declaration of this slot
        "state": CODE,
        "sku": TEXT,
        "device_uuid": TEXT,
        "serial": TEXT,
        "device_kind": TEXT,
        "dtype": TEXT,
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "node", "slot", "from_unix_ms"),
    time="from_unix_ms",
    by_month=True,
)

_EVENT: Final = Table(
    name="event",
    columns={
        "cluster": TEXT,
        "node": TEXT,
        "slot": TEXT,
        "time_unix_ms": INT,
        "kind": TEXT,
        "code": INT,
        "severity": TEXT,
        "text": LONG_TEXT,
        "action": LONG_TEXT,
        "job": TEXT,
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "time_unix_ms", "node", "slot", "kind", "code"),
    time="time_unix_ms",
    by_month=True,
    kept_days=MINUTE_KEPT_DAYS,
)

_PROBE: Final = Table(
    name="probe",
    columns={
        "cluster": TEXT,
        "node": TEXT,
        "slot": TEXT,
        "start_unix_ms": INT,
        "kind": TEXT,
        "dtype": TEXT,
        "sku": TEXT,
        "device_uuid": TEXT,
        "seconds": NUMBER,
        "median_flops": NUMBER,
        "p10_flops": NUMBER,
        "p90_flops": NUMBER,
        "sustained": FLAG,
        "result_json": LONG_TEXT,
        "serial": TEXT,
        "driver_version": TEXT,
        "outcome": TEXT,  # '' is ok
        "reason": LONG_TEXT,
        "median_value": NUMBER,
        "p10_value": NUMBER,
        "p90_value": NUMBER,
        "unit": TEXT,
        "kappa": QUANTITY,
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "start_unix_ms", "node", "slot", "kind", "dtype"),
    time="start_unix_ms",
    by_month=True,
    kept_days=MINUTE_KEPT_DAYS,
)

_CAPTURE: Final = Table(
    name="capture",
    columns={
        "cluster": TEXT,
        "id": LONG_TEXT,
        "node": TEXT,
        "slot": TEXT,
        "part": MILLISECONDS,  # a slice of the window, counted from its beginning
        "last": FLAG,  # of the slot's parts; it comes even where it holds nothing
        "readings": COUNT,  # a part that comes again after a restart stands where it holds more
        "taken_unix_ms": MOMENTS,
        "names": NAMES,  # fields of readings; counters count from the agent's first reading
        "values": SERIES,  # of each name, one for each reading; NaN: no value
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "id", "node", "slot", "part"),
    time="stored_unix_ms",
    version="readings",
    by_month=True,
    kept_days=RAW_KEPT_DAYS,
)

_GAP: Final = Table(
    name="gap",
    columns={
        "spool_id": TEXT,
        "first_seq": COUNT,
        "last_seq": COUNT,
        "cluster": TEXT,
        "node": TEXT,
        "rows": COUNT,
        "bytes": COUNT,
        "first_unix_ms": INT,
        "last_unix_ms": INT,
        "reason": TEXT,
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "node", "spool_id", "first_seq"),
    time="stored_unix_ms",
    by_month=True,
    kept_days=MINUTE_KEPT_DAYS,
)

_QUARANTINE: Final = Table(
    name="quarantine",
    columns={
        "spool_id": TEXT,
        "seq": COUNT,
        "cluster": TEXT,
        "node": TEXT,
        "rows": COUNT,
        "code": TEXT,
        "message": LONG_TEXT,
        "payload": LONG_TEXT,  # base64 of the frame; '' where the bound of quarantine was reached
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "node", "spool_id", "seq"),
    time="stored_unix_ms",
    by_month=True,
    kept_days=RAW_KEPT_DAYS,
)

_RECEIPT: Final = Table(
    name="receipt",
    columns={
        "spool_id": TEXT,
        "seq": COUNT,
        "cluster": TEXT,
        "node": TEXT,
        "rows": COUNT,
        "rows_before": COUNT,
        "sha": TEXT,  # hex of the batch's sha256_16: one (spool_id, seq) with two is a cloned host
        "skew_ms": QUANTITY,  # the node's clock less the collector's when it came
        "simulated": FLAG,
        "stored_unix_ms": INT,
    },
    key=("cluster", "node", "spool_id", "seq", "sha"),
    time="stored_unix_ms",
    by_month=True,
    kept_days=RAW_KEPT_DAYS,
)

_SPOOL: Final = Table(
    name="spool",  # the newest word of each spool about itself; an old one stays true
    columns={"cluster": TEXT, "node": TEXT, "spool_id": TEXT, "told_unix_ms": INT}
    | dict.fromkeys(("next_seq", "acked_seq"), COUNT)
    | dict.fromkeys(("acked_rows", "produced_rows", "dropped_rows"), COUNT)
    | {"simulated": FLAG, "stored_unix_ms": INT},
    key=("cluster", "node", "spool_id"),
    time="stored_unix_ms",
    version="told_unix_ms",
    by_month=True,
    kept_days=RAW_KEPT_DAYS,
)

_DIRTY: Final = Table(
    name="dirty",
    columns={
        "cluster": TEXT,
        "minute_unix_ms": INT,
        "marked_unix_ms": INT,
        "cleared": FLAG,
        "version": INT,  # 2 × marked_unix_ms + cleared: a clear beats the marks it saw, no later one
        "stored_unix_ms": INT,
    },
    key=("cluster", "minute_unix_ms"),
    time="minute_unix_ms",
    version="version",
    by_month=True,
    kept_days=MINUTE_KEPT_DAYS,
)

_WRITTEN: Final = Table(
    name="written",
    columns={
        "grain": TEXT,  # the name of the line table
        "cluster": TEXT,
        "start_unix_ms": INT,
        "generation": INT,
        "lines": COUNT,
        "stored_unix_ms": INT,
    },
    key=("grain", "cluster", "start_unix_ms"),
    time="start_unix_ms",
    version="generation",
    by_month=True,
)


TABLES: Final[dict[str, Table]] = {
    table.name: table
    for table in (
        _interval(),
        _host(),
        _ROSTER,
        _SLOT,
        _EVENT,
        _PROBE,
        _CAPTURE,
        _GAP,
        _QUARANTINE,
        _RECEIPT,
        _SPOOL,
        _DIRTY,
        _WRITTEN,
        *LINE_TABLES,
    )
}


def newest_lines(table: str, where: str) -> str:
    """Return ``FROM … WHERE …`` for the standing lines of a line table.

    Args:
        table: one of ``LINE_TABLES`` by name.
        where: conditions on ``cluster`` and ``start_unix_ms`` only; they bound both tables.
    """
    named = f"FROM written WHERE grain = '{table}' AND"
    if table == "fleet_interval":
        named = f"FROM {table} WHERE"
    return (
        f"FROM {table} WHERE ({where}) AND (cluster, start_unix_ms, generation) IN ("
        f"SELECT cluster, start_unix_ms, max(generation) {named} ({where}) "
        "GROUP BY cluster, start_unix_ms)"
    )

"""What arrived on a stream, as columns of the tables; and the one commit that stores many of them.

`of_batch`, `of_gap` and `of_quarantine` are pure: a frame becomes an `Arrival`. `commit` stores a group of
them in an order that a crash may cut anywhere: marks, rows, receipts. Everything in it may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flopwatch_collector.telemetry.capture import capture_columns
from flopwatch_collector.telemetry.dirty import MINUTE_MS, Minute
from flopwatch_collector.telemetry.payload import (
    check_finite,
    fields,
    host_columns,
    probe_columns,
    roster_columns,
    slot_columns,
)
from flopwatch_collector.telemetry.schema import DAY_MS, RAW_KEPT_DAYS, TABLES
from flopwatch_collector.telemetry.store import TelemetryStore, arrow_block
from flopwatch_proto import codec, rows
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb

FUTURE_MS_MAX: Final = 10 * MINUTE_MS
UNIX_MS_MAX: Final = 4_102_444_800_000  # year 2100: what the engine can put into a partition
ROSTER_MINUTES_MAX: Final = 6
_ORDER: Final = (
    "interval",
    "host",
    "roster",
    "slot",
    "event",
    "probe",
    "capture",
    "gap",
    "quarantine",
    "receipt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who sent it; from the stream's Hello."""

    cluster: str
    node: str
    simulated: bool
    spool_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One numbered frame, ready to be stored.

    Attributes:
        first_seq, last_seq: the seqs it consumes.
        tables: table → columns of it, without ``stored_unix_ms``.
        minutes: starts of the minutes whose lines it changes.
        interval_rows: rows for table ``interval``; what the acknowledgement counts.
        size_bytes: of the frame on the wire.
        rosters: each roster by itself, as columns of table ``roster``.
        batch: the frame, while it may still turn out not to fit.
        goodbye_back_in_ms: the node took leave after all that came before; None for other frames.
        refused: code and text of the Reject, where this is only the record of a batch.
    """

    origin: Origin
    first_seq: int
    last_seq: int
    tables: dict[str, Columns]
    minutes: frozenset[int] = frozenset()
    interval_rows: int = 0
    size_bytes: int = 0
    rosters: tuple[Columns, ...] = ()
    batch: pb.Batch | None = None
    goodbye_back_in_ms: int | None = None
    refused: tuple[str, str] | None = None


def oldest_start_unix_ms(now_unix_ms: int) -> int:
    """Return the earliest start of a row that is taken now."""
    return now_unix_ms - RAW_KEPT_DAYS * DAY_MS


def of_batch(origin: Origin, batch: pb.Batch, now_unix_ms: int) -> Arrival:
    """Return the rows of a batch.

    Raises:
        PermanentError: it can never be stored; the text begins with the code of a Reject and a colon.
    """
    payload = codec.unpack(batch)
    try:
        rosters = tuple(_by(origin, roster_columns(roster)) for roster in payload.rosters)
        tables = _tables_of_payload(origin, payload)
    except PermanentError as exc:
        raise PermanentError(f"bad_rows: {exc}") from exc
    if rosters:
        tables["roster"] = _joined(rosters)
    _check_times(tables, now_unix_ms)
    count = len(payload.intervals.slot)
    tables["receipt"] = _by(
        origin,
        {
            "spool_id": [origin.spool_id],
            "seq": [batch.seq],
            "rows": [count],
            "rows_before": [batch.rows_before],
            "sha": [batch.sha256_16.hex()],
        },
    )
    if count:
        tables["interval"]["spool_id"] = [origin.spool_id] * count
        tables["interval"]["seq"] = [batch.seq] * count
    return Arrival(
        origin=origin,
        first_seq=batch.seq,
        last_seq=batch.seq,
        tables=tables,
        minutes=_minutes(tables),
        interval_rows=count,
        size_bytes=len(batch.payload),
        rosters=rosters,
        batch=batch,
    )


def of_gap(origin: Origin, gap: pb.Gap) -> Arrival:
    """Return the record of a loss that the agent reports."""
    columns: Columns = {
        "spool_id": [origin.spool_id],
        "first_seq": [gap.first_seq],
        "last_seq": [gap.last_seq],
        "rows": [gap.row_count],
        "bytes": [gap.bytes],
        "first_unix_ms": [gap.first_unix_ms],
        "last_unix_ms": [gap.last_unix_ms],
        "reason": [gap.reason],
    }
    return Arrival(
        origin=origin,
        first_seq=gap.first_seq,
        last_seq=gap.last_seq,
        tables={"gap": _by(origin, columns)},
    )


def of_goodbye(origin: Origin, goodbye: pb.Goodbye) -> Arrival:
    """Return a node's leave, which stores nothing but must not overtake the rows before it."""
    back_in_ms = goodbye.back_in_ms
    return Arrival(origin=origin, first_seq=0, last_seq=0, tables={}, goodbye_back_in_ms=back_in_ms)


def of_refusal(
    origin: Origin, batch: pb.Batch, *, code: str, message: str, payload: str | None
) -> Arrival:
    """Return the record of a batch that is refused for ever.

    Rows that are too old become a gap; everything else is set aside in quarantine, with the ``payload``
    as text (base64) where it is kept.
    """
    if code == "too_old":
        gap = pb.Gap(
            first_seq=batch.seq,
            last_seq=batch.seq,
            row_count=batch.row_count,
            bytes=len(batch.payload),
            first_unix_ms=batch.first_unix_ms,
            last_unix_ms=batch.last_unix_ms,
            reason=code,
        )
        return replace(of_gap(origin, gap), refused=(code, message))
    columns: Columns = {
        "spool_id": [origin.spool_id],
        "seq": [batch.seq],
        "rows": [batch.row_count],
        "code": [code],
        "message": [message[:1000]],
        "payload": [payload or ""],
    }
    return Arrival(
        origin=origin,
        first_seq=batch.seq,
        last_seq=batch.seq,
        tables={"quarantine": _by(origin, columns)},
        refused=(code, message),
    )


def unfit(arrival: Arrival) -> str | None:
    """Return why an arrival does not fit the tables, or None: it does."""
    try:
        for table, columns in arrival.tables.items():
            arrow_block(TABLES[table], columns)
    except PermanentError as exc:
        return str(exc)
    return None


def commit(store: TelemetryStore, arrivals: Sequence[Arrival], stored_unix_ms: int) -> None:
    """Store arrivals; when this returns, all of them are on disk.

    Raises:
        RetryableError: the store failed; commit the same arrivals again.
        PermanentError: an arrival does not fit (`unfit` finds it); nothing is lost by trying the others.
    """
    minutes: set[Minute] = {(a.origin.cluster, m) for a in arrivals for m in a.minutes}
    store.marks.mark(minutes, stored_unix_ms)
    try:
        for table in _ORDER:
            columns = _joined([a.tables[table] for a in arrivals if table in a.tables])
            if columns:
                count = len(columns["cluster"])
                store.append(table, {**columns, "stored_unix_ms": [stored_unix_ms] * count})
    except BaseException:
        store.marks.abandon(minutes)
        raise
    store.marks.settle(minutes, stored_unix_ms)


def _joined(parts: Sequence[Columns]) -> Columns:
    """Return columns one after the other; all parts have the same names."""
    if len(parts) == 1:
        return parts[0]
    joined: Columns = {}
    for name in parts[0] if parts else ():
        column: list[Any] = []
        for part in parts:
            column.extend(part[name])
        joined[name] = column
    return joined


def _by(origin: Origin, columns: Columns) -> Columns:
    count = len(next(iter(columns.values())))
    columns["cluster"] = [origin.cluster] * count
    columns.setdefault("node", [origin.node] * count)
    columns["simulated"] = [origin.simulated] * count
    return columns


def _tables_of_payload(origin: Origin, payload: pb.Payload) -> dict[str, Columns]:
    tables: dict[str, Columns] = {}
    if payload.intervals.slot:
        columns = codec.decode_rows(payload.intervals)
        check_finite(columns, rows.QUANTITY_NAMES)
        tables["interval"] = _by(origin, columns)
    if payload.hosts.start_unix_ms:
        tables["host"] = _by(origin, host_columns(payload.hosts))
    if payload.slots:
        tables["slot"] = _by(origin, slot_columns(origin.node, payload.slots))
    if payload.events:
        tables["event"] = _by(origin, fields(payload.events, pb.Event.DESCRIPTOR))
    if payload.probes:
        tables["probe"] = _by(origin, probe_columns(payload.probes))
    if payload.captures:
        tables["capture"] = _by(origin, capture_columns(payload.captures))
    return tables


def declared(cluster: str, slots: Sequence[pb.SlotDeclaration], stored_unix_ms: int) -> Columns:
    """Return declarations of real slots, from an inventory, as columns of table ``slot``."""
    origin = Origin(cluster=cluster, node="", simulated=False, spool_id="")
    columns = _by(origin, slot_columns("", slots))
    return {**columns, "stored_unix_ms": [stored_unix_ms] * len(slots)}


_TIMES: Final = (
    ("interval", "start_unix_ms", True),
    ("host", "start_unix_ms", True),
    ("roster", "taken_unix_ms", True),
    ("event", "time_unix_ms", False),
    ("probe", "start_unix_ms", False),
)
"""(table, time, kept only as long as raw rows)."""


def _check_times(tables: dict[str, Columns], now_unix_ms: int) -> None:
    oldest = oldest_start_unix_ms(now_unix_ms)
    for table, column, raw in _TIMES:
        if table not in tables:
            continue
        times = tables[table][column]
        if max(times) > now_unix_ms + FUTURE_MS_MAX:
            late_ms = max(times) - now_unix_ms
            raise PermanentError(f"future: {table} rows lie {late_ms} ms ahead of this clock")
        if min(times) <= 0:
            raise PermanentError(f"bad_rows: {table} rows without a time")
        if raw and min(times) < oldest:
            raise PermanentError(f"too_old: {table} rows older than {RAW_KEPT_DAYS} days")
    if "slot" in tables:
        slot = tables["slot"]
        if min(slot["from_unix_ms"]) <= 0 or max(slot["from_unix_ms"]) > UNIX_MS_MAX:
            raise PermanentError("bad_rows: a slot whose state begins at no sensible time")


def _minutes(tables: dict[str, Columns]) -> frozenset[int]:
    """Return the minutes whose lines change: those of rows, and those that a roster speaks for.

    A slot that enters or leaves service touches the minute in which it does; whoever makes lines knows
    how far that reaches.
    """
    spans: set[tuple[int, int]] = set()
    if "interval" in tables:
        interval = tables["interval"]
        pairs = set(zip(interval["start_unix_ms"], interval["duration_ms"], strict=True))
        spans |= {(start, start + duration) for start, duration in pairs}
    if "roster" in tables:
        roster = tables["roster"]
        pairs = set(zip(roster["taken_unix_ms"], roster["valid_until_unix_ms"], strict=True))
        longest = (ROSTER_MINUTES_MAX - 1) * MINUTE_MS
        spans |= {(start, min(end, start + longest)) for start, end in pairs}
    if "slot" in tables:
        slot = tables["slot"]
        edges = (*slot["from_unix_ms"], *(end for end in slot["to_unix_ms"] if end > 0))
        spans |= {(edge, edge + 1) for edge in edges}
    return frozenset(
        minute
        for start, end in spans
        for minute in range(start - start % MINUTE_MS, max(end, start + 1), MINUTE_MS)
    )

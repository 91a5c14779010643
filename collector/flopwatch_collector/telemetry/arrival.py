"""What arrived on a stream, as columns of the tables; and the one commit that stores many of them.

`of_batch`, `of_gap` and `of_refusal` are pure: a frame becomes an `Arrival`; a batch waits as it came
(`Unopened`) for the thread that commits. Rows of cards and hosts stay
packed in it: `commit` reads those of a whole group at once, and stores everything in an order that a crash
may cut anywhere: marks, rows, receipts. Everything in it may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa

from flopwatch_collector.telemetry.capture import capture_columns
from flopwatch_collector.telemetry.columns import host_block, interval_block
from flopwatch_collector.telemetry.dirty import Minute
from flopwatch_collector.telemetry.payload import (
    fields,
    probe_columns,
    roster_columns,
    slot_columns,
)
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import TelemetryStore, arrow_block
from flopwatch_collector.telemetry.stored_rows import (
    StoredRows,
    by_cluster,
    minutes_of_rows,
    signed,
)
from flopwatch_collector.telemetry.times import check_starts, check_times, minutes_said
from flopwatch_proto import codec, packed
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb

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
        intervals, hosts: rows of the tables ``interval`` and ``host``, packed.
        minutes: starts of the minutes whose lines it changes, apart from those of its rows.
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
    intervals: pb.Packed | None = None
    hosts: pb.Packed | None = None
    minutes: frozenset[int] = frozenset()
    interval_rows: int = 0
    size_bytes: int = 0
    rosters: tuple[Columns, ...] = ()
    batch: pb.Batch | None = None
    goodbye_back_in_ms: int | None = None
    refused: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unopened:
    """A batch as it came.

    Attributes:
        skew_ms: how far the node's clock is from this one's; None: not known yet.
        inventoried: an operator keeps the cluster's inventory: what a node says of its slots changes nothing.
    """

    origin: Origin
    batch: pb.Batch
    skew_ms: int | None = None
    inventoried: bool = False

    @property
    def interval_rows(self) -> int:
        """Rows that it says it holds."""
        return self.batch.row_count

    @property
    def size_bytes(self) -> int:
        """What it takes on the wire."""
        return len(self.batch.payload)

    def opened(self, now_unix_ms: int, oldest_unix_ms: int) -> Arrival:
        """Return what it holds; arguments as of `of_batch`.

        Raises:
            PermanentError: as `of_batch`.
        """
        arrival = of_batch(self.origin, self.batch, now_unix_ms, oldest_unix_ms)
        arrival.tables["receipt"]["skew_ms"] = [self.skew_ms]
        if self.inventoried:
            arrival.tables.pop("slot", None)
        return arrival


def of_batch(origin: Origin, batch: pb.Batch, now_unix_ms: int, oldest_unix_ms: int = 0) -> Arrival:
    """Return what a batch holds; whether its packed rows make sense is found when they are stored.

    Args:
        oldest_unix_ms: rows that begin before are too old (`TelemetryStore.oldest_unix_ms`).

    Raises:
        PermanentError: it can never be stored; the text begins with the code of a Reject and a colon.
    """
    payload = codec.opened(batch)
    try:
        intervals = _packed(payload, "intervals")
        hosts = _packed(payload, "hosts")
        rosters = tuple(_by(origin, roster_columns(roster)) for roster in payload.rosters)
        tables = _tables_of_payload(origin, payload)
    except PermanentError as exc:
        raise PermanentError(f"bad_rows: {exc}") from exc
    if rosters:
        tables["roster"] = _joined(rosters)
    if tables:
        check_times(tables, now_unix_ms, oldest_unix_ms)
    count = 0 if intervals is None else intervals.rows
    if count != batch.row_count:  # perhaps of a form that only later collectors know
        raise PermanentError(f"bad_rows: {batch.row_count} rows promised, {count} found")
    minutes = minutes_said(tables, oldest_unix_ms)
    tables["receipt"] = {
        "spool_id": [origin.spool_id],
        "seq": [batch.seq],
        "rows": [count],
        "rows_before": [batch.rows_before],
        "sha": [batch.sha256_16.hex()],
        "cluster": [origin.cluster],
        "node": [origin.node],
        "simulated": [origin.simulated],
    }
    return Arrival(
        origin=origin,
        first_seq=batch.seq,
        last_seq=batch.seq,
        tables=tables,
        intervals=intervals,
        hosts=hosts,
        minutes=minutes,
        interval_rows=count,
        size_bytes=len(batch.payload),
        rosters=rosters,
        batch=batch,
    )


def _packed(payload: pb.Payload, name: str) -> pb.Packed | None:
    """Return the rows of a payload, packed here where an older agent did not; None without rows."""
    if payload.HasField(f"packed_{name}"):
        found: pb.Packed = getattr(payload, f"packed_{name}")
    elif payload.HasField(name):
        message = getattr(payload, name)
        if not message.start_unix_ms:
            return None
        found = packed.pack(message)
    else:
        return None
    packed.checked(found)
    return found


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


def unfit(arrival: Arrival, now_unix_ms: int, oldest_unix_ms: int = 0) -> str | None:
    """Return why an arrival does not fit the tables, as a code, a colon and a text; None: it does."""
    try:
        for table, columns in _row_tables([arrival], now_unix_ms, oldest_unix_ms).items():
            arrow_block(TABLES[table], columns)
        for table, columns in arrival.tables.items():
            arrow_block(TABLES[table], columns)
    except PermanentError as exc:
        text = str(exc)
        return (
            text
            if text.startswith(("future: ", "too_old: ", "bad_rows: "))
            else f"bad_rows: {text}"
        )
    return None


def commit(
    store: TelemetryStore, arrivals: Sequence[Arrival], stored_unix_ms: int
) -> list[StoredRows]:
    """Store arrivals; when this returns, all of them are on disk. Return the interval rows among them.

    Raises:
        RetryableError: the store failed; commit the same arrivals again.
        PermanentError: an arrival does not fit (`unfit` finds it); nothing is lost by trying the others.
    """
    row_tables = _row_tables(arrivals, stored_unix_ms, store.oldest_unix_ms(stored_unix_ms))
    minutes: set[Minute] = {(a.origin.cluster, m) for a in arrivals for m in a.minutes}
    stored = []
    if "interval" in row_tables:
        stored = list(by_cluster(row_tables["interval"], stored_unix_ms))
        for each in stored:
            minutes |= {(each.cluster, minute) for minute in minutes_of_rows(each.columns)}
    store.marks.mark(minutes, stored_unix_ms)
    try:
        for table in _ORDER:
            columns: Mapping[str, Any] = row_tables.get(table) or _joined(
                [a.tables[table] for a in arrivals if table in a.tables]
            )
            if columns:
                stored_column = pa.repeat(pa.scalar(stored_unix_ms), len(columns["cluster"]))
                store.append(table, {**columns, "stored_unix_ms": stored_column})
    except BaseException:
        store.marks.abandon(minutes)
        raise
    store.marks.settle(minutes, stored_unix_ms)
    return stored


def _row_tables(
    arrivals: Sequence[Arrival], now_unix_ms: int, oldest_unix_ms: int
) -> dict[str, dict[str, pa.Array]]:
    """Return the packed rows of arrivals as columns of the tables ``interval`` and ``host``."""
    tables: dict[str, dict[str, pa.Array]] = {}
    for table, name, block_of in (
        ("interval", "intervals", interval_block),
        ("host", "hosts", host_block),
    ):
        found = [(a, rows) for a in arrivals if (rows := getattr(a, name)) is not None]
        if not found:
            continue
        block = block_of([rows for _, rows in found])
        starts = block.columns["start_unix_ms"].to_numpy()
        check_starts(table, int(starts.min()), int(starts.max()), now_unix_ms, oldest_unix_ms)
        tables[table] = signed([a for a, _ in found], block, table)
    return tables


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

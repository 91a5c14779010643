"""Interval rows and payloads, to the wire and back. Pure.

The agent hands over rows (``IntervalRow``), the wire carries columns as bytes (`packed`), compressed with a
dictionary that both sides have (`dictionaries/`). The collector reads many messages' bytes at once
(`flopwatch_collector.telemetry.columns`); here they come back as the messages that the agent made.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import zstandard

from flopwatch_proto import packed, rows
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

RAW_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest payload before compression; a batch that says more is refused unread."""

DICTIONARY: Final = 1
"""The dictionary that payloads are compressed with. One that was ever shipped is kept as it was, for ever:
spools hold payloads that need it."""
_DICTIONARIES: Final = (DICTIONARY,)
_ROUNDED: Final = frozenset(rows.QUANTITY_NAMES) - rows.EXACT

Columns = dict[str, list[Any]]
"""Column name → one entry per row; None where there is no value."""

Value = float | Absence

_ROW_TEXTS: Final = tuple(name for name in rows.TEXTS if name != "slot")
_CARD_TIMES: Final = tuple(q.name for q in rows.CARD_TIMES)
_BUCKETS: Final = frozenset(Bucket)
_RANGES: Final = (
    ("start_unix_ms", 0, 2**53),
    ("duration_ms", 0, 24 * 3_600_000),
)
_LENGTH_BY_SLOTS: Final = ("start_unix_ms", "duration_ms", "weight", "bucket")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalRow:
    """One card, one job, one interval, as the agent makes it.

    Attributes:
        texts: of ``rows.TEXTS`` without slot; absent or None means not known.
        card_times: of ``rows.CARD_TIMES``, whole weighted milliseconds.
        values: of ``rows.QUANTITY_NAMES``; a name left out means ``Absence.MISSING``.
    """

    slot: str
    start_unix_ms: int
    duration_ms: int
    bucket: Bucket
    weight: float = 1.0
    rogue: bool = False
    texts: Mapping[str, str | None] = field(default_factory=dict)
    card_times: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)


class Strings:
    """The dictionary of a message: text → index; 0 is null."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {"": 0}

    def add(self, text: str | None) -> int:
        """Return the index of the text, adding it when new; 0 for None."""
        return self._index.setdefault(text or "", len(self._index))

    def list(self) -> list[str]:
        """Return the texts in the order of their indexes."""
        return list(self._index)


def encode_rows(interval_rows: Sequence[IntervalRow]) -> pb.IntervalRows:
    """Return the rows as columns; quantities that no row has are left empty.

    What is measured is rounded here, once and for all, to 20 bits (``rows.EXACT`` lists what is not).
    """
    message = pb.IntervalRows()
    strings = Strings()
    for row in interval_rows:
        message.slot.append(strings.add(row.slot))
        message.start_unix_ms.append(row.start_unix_ms)
        message.duration_ms.append(row.duration_ms)
        message.weight.append(row.weight)
        message.bucket.append(cast("pb.Bucket", int(row.bucket)))
        message.rogue.append(row.rogue)
        for name in _CARD_TIMES:
            getattr(message, name).append(row.card_times.get(name, 0))
    for name in _ROW_TEXTS:
        indexes = [strings.add(row.texts.get(name)) for row in interval_rows]
        if any(indexes):
            getattr(message, name).extend(indexes)
    for name in rows.QUANTITY_NAMES:
        values = [row.values.get(name, Absence.MISSING) for row in interval_rows]
        absences = bytes(int(v) if isinstance(v, Absence) else 0 for v in values)
        if all(code == Absence.MISSING for code in absences):
            continue
        known = [0.0 if isinstance(v, Absence) else v for v in values]
        getattr(message, name).extend(_rounded(known) if name in _ROUNDED else known)
        if any(absences):
            message.absences.add(column=name, absences=absences)
    message.strings.extend(strings.list())
    return message


def _rounded(values: Sequence[float]) -> Sequence[float]:
    """Return values to 20 bits, the nearest; half-way the even one."""
    try:
        raw = struct.pack(f"<{len(values)}f", *values)
    except OverflowError:  # beyond 3e38: nothing is measured there
        return values
    bits = struct.unpack(f"<{len(values)}I", raw)
    kept = (b if b & 15 == 0 else (b + 7 + (b >> 4 & 1)) & ~15 for b in bits)
    return struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}I", *kept))


def decode_rows(message: pb.IntervalRows) -> Columns:
    """Return the columns of ``rows.COLUMNS`` plus ``not_supported`` and ``failed``.

    The last two hold, per row, the names of the quantities that the device does not have and those whose
    reading failed; a quantity that is null and in neither list was not read.

    Raises:
        PermanentError: a column's length, an index, a bucket or a number makes no sense.
    """
    count = len(message.slot)
    columns: Columns = {}
    for name in _LENGTH_BY_SLOTS:
        columns[name] = _sized(message, name, count)
    columns["rogue"] = _sized(message, "rogue", count) if message.rogue else [False] * count
    texts: list[str | None] = [*message.strings]
    if texts:
        texts[0] = None
    try:
        columns["slot"] = [texts[i] for i in message.slot]
        for name in _ROW_TEXTS:
            indexes = _sized(message, name, count, may_be_empty=True)
            columns[name] = [None if i is None else texts[i] for i in indexes]
    except IndexError:
        raise PermanentError("a text column points past the end of `strings`") from None
    if not all(columns["slot"]):
        raise PermanentError("a row without a slot")
    _check_plain(columns)
    for name in _CARD_TIMES:
        columns[name] = _sized(message, name, count)
    for name in rows.QUANTITY_NAMES:
        columns[name] = _sized(message, name, count, may_be_empty=True)
    columns["not_supported"] = [[] for _ in range(count)]
    columns["failed"] = [[] for _ in range(count)]
    _blank_absent(message, columns, count)
    return columns


def _sized(
    message: pb.IntervalRows, name: str, count: int, *, may_be_empty: bool = False
) -> list[Any]:
    values: list[Any] = getattr(message, name)[:]
    if len(values) == count:
        return values
    if may_be_empty and not values:
        return [None] * count
    raise PermanentError(f"column {name} has {len(values)} entries for {count} rows")


def _check_plain(columns: Columns) -> None:
    if not columns["slot"]:
        return
    for name, low, high in _RANGES:
        column = columns[name]
        if not (low < min(column) and max(column) <= high):
            raise PermanentError(f"row with a {name} outside ({low}, {high}]")
    if not all(0.0 < weight <= 1.0 for weight in columns["weight"]):
        raise PermanentError("row with a weight outside (0, 1]")
    if not _BUCKETS.issuperset(columns["bucket"]):
        raise PermanentError("row with a bucket which nobody here can account for")


def _blank_absent(message: pb.IntervalRows, columns: Columns, count: int) -> None:
    for absence in message.absences:
        column = columns.get(absence.column)
        if column is None or absence.column not in rows.QUANTITY_NAMES:
            raise PermanentError(f"absences of unknown column {absence.column!r}")
        if len(absence.absences) != count:
            raise PermanentError(f"absences of {absence.column} do not match {count} rows")
        for i, code in enumerate(absence.absences):
            if code:
                column[i] = None
                if code == Absence.NOT_SUPPORTED:
                    columns["not_supported"][i].append(absence.column)
                elif code == Absence.FAILED:
                    columns["failed"][i].append(absence.column)


def row_span(message: pb.IntervalRows) -> tuple[int, int] | None:
    """Return (earliest start, latest end) in unix ms, or None without rows."""
    if not message.start_unix_ms:
        return None
    ends = (s + d for s, d in zip(message.start_unix_ms, message.duration_ms, strict=True))
    return min(message.start_unix_ms), max(ends)


def pack(payload: pb.Payload) -> pb.Batch:
    """Return the payload as a Batch without seq and rows_before, which the spool assigns.

    Raises:
        PermanentError: larger than ``RAW_BYTES_MAX``; split it first.
    """
    raw = on_wire(payload).SerializeToString()
    if len(raw) > RAW_BYTES_MAX:
        raise PermanentError(f"payload of {len(raw)} bytes; split it below {RAW_BYTES_MAX}")
    first, last = row_span(payload.intervals) or (0, 0)
    return pb.Batch(
        first_unix_ms=first,
        last_unix_ms=last,
        row_count=len(payload.intervals.slot),
        sha256_16=hashlib.sha256(raw).digest()[:16],
        raw_bytes=len(raw),
        payload=_compressor().compress(raw),
    )


def unpack(batch: pb.Batch) -> pb.Payload:
    """Return the payload of a batch, checked, with its rows as the messages that were packed.

    Raises:
        PermanentError: it is too large, damaged, or not a payload. The text begins with the code that a
            Reject carries: ``too_large``, ``bad_hash`` or ``bad_payload``.
    """
    payload = opened(batch)
    try:
        if payload.HasField("packed_intervals"):
            payload.intervals.CopyFrom(packed.unpack(payload.packed_intervals, pb.IntervalRows))
        if payload.HasField("packed_hosts"):
            payload.hosts.CopyFrom(packed.unpack(payload.packed_hosts, pb.HostRows))
    except PermanentError as exc:
        raise PermanentError(f"bad_payload: {exc}") from exc
    payload.ClearField("packed_intervals")
    payload.ClearField("packed_hosts")
    return payload


def opened(batch: pb.Batch) -> pb.Payload:
    """Return the payload of a batch as it came: rows are packed, or from an older agent are not.

    Raises:
        PermanentError: as `unpack`.
    """
    if batch.raw_bytes > RAW_BYTES_MAX:
        raise PermanentError(f"too_large: payload says {batch.raw_bytes} bytes")
    try:
        raw = _inflated(batch.payload, batch.raw_bytes)
    except zstandard.ZstdError as exc:
        raise PermanentError(f"bad_payload: {exc}") from exc
    if len(raw) != batch.raw_bytes:
        raise PermanentError(f"bad_payload: {batch.raw_bytes} bytes promised, {len(raw)} found")
    if hashlib.sha256(raw).digest()[:16] != batch.sha256_16:
        raise PermanentError("bad_hash: the payload is not what was sent")
    payload = pb.Payload()
    try:
        payload.ParseFromString(raw)
    except Exception as exc:  # protobuf raises DecodeError from its C layer
        raise PermanentError(f"bad_payload: {exc}") from exc
    return payload


def on_wire(payload: pb.Payload) -> pb.Payload:
    """Return a payload with its rows packed; rows that cannot be stay as they are."""
    sent = pb.Payload()
    sent.CopyFrom(payload)
    for name in ("intervals", "hosts"):
        message = getattr(payload, name)
        if message.start_unix_ms:
            try:
                getattr(sent, f"packed_{name}").CopyFrom(packed.pack(message))
            except PermanentError:
                continue  # the collector says what is wrong with them
            sent.ClearField(name)
    return sent


def _inflated(payload: bytes, raw_bytes: int) -> bytes:
    """Return what was compressed, never more than was promised."""
    frame = zstandard.get_frame_parameters(payload)
    if frame.content_size not in (raw_bytes, zstandard.CONTENTSIZE_UNKNOWN):
        raise PermanentError(f"bad_payload: {raw_bytes} bytes promised, {frame.content_size} said")
    # A bound of 0 would be none.
    return _decompressor(frame.dict_id).decompress(payload, max_output_size=raw_bytes or 1)


# A context of zstd serves one thread at a time, and is not cheap to make.
_contexts: Final = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_contexts, "compressor"):
        dictionary = _dictionary(DICTIONARY)
        _contexts.compressor = zstandard.ZstdCompressor(level=3, dict_data=dictionary)
    return cast("zstandard.ZstdCompressor", _contexts.compressor)


def _decompressor(number: int) -> zstandard.ZstdDecompressor:
    """Return what reads payloads with that dictionary; 0 is none, as agents without one sent."""
    if not hasattr(_contexts, "decompressors"):
        _contexts.decompressors = {}
    found: zstandard.ZstdDecompressor | None = _contexts.decompressors.get(number)
    if found is None:
        if number and number not in _DICTIONARIES:
            raise PermanentError(f"bad_payload: a dictionary {number} is not known here")
        dictionary = _dictionary(number) if number else None
        found = _contexts.decompressors[number] = zstandard.ZstdDecompressor(dict_data=dictionary)
    return found


@cache
def _dictionary(number: int) -> zstandard.ZstdCompressionDict:
    path = Path(__file__).with_name("dictionaries") / f"{number}.zdict"
    return zstandard.ZstdCompressionDict(path.read_bytes())

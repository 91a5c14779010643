"""Payloads to batches that fit. Pure.

The collector refuses a message above 1 MiB and a payload above 4 MiB, and a batch that it refuses would be
refused for ever. So a payload is halved, by interval rows first and then by its other records, until
every part packs into ``bytes_max``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from flopwatch_proto import codec
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb

_RECORDS: Final = ("slots", "rosters", "events", "probes", "captures")


def split(payload: pb.Payload, bytes_max: int) -> Iterator[pb.Batch]:
    """Yield batches (without seq and rows_before) that together hold the payload.

    A single record that is too large comes as a batch without a payload: it is lost, and counted.

    Args:
        bytes_max: largest compressed payload of a batch.
    """
    if payload.ByteSize() <= codec.RAW_BYTES_MAX:
        batch = codec.pack(payload)
        if len(batch.payload) <= bytes_max:
            yield batch
            return
    try:
        parts = halves(payload)
    except PermanentError:
        yield pb.Batch(row_count=len(payload.intervals.slot), raw_bytes=payload.ByteSize())
        return
    for part in parts:
        yield from split(part, bytes_max)


def halves(payload: pb.Payload) -> tuple[pb.Payload, pb.Payload]:
    """Return two payloads that together hold the same records.

    Raises:
        PermanentError: it holds one record, or none.
    """
    count = len(payload.intervals.slot)
    if count > 1:
        first = pb.Payload(intervals=_cut(payload.intervals, 0, count // 2))
        second = pb.Payload()
        second.CopyFrom(payload)
        second.intervals.CopyFrom(_cut(payload.intervals, count // 2, count))
        return first, second
    parts = _parts(payload)
    if len(parts) < 2:
        raise PermanentError(f"too_large: one record of {payload.ByteSize()} bytes")
    first, second = pb.Payload(), pb.Payload()
    for i, part in enumerate(parts):
        (first if i < len(parts) // 2 else second).MergeFrom(part)
    return first, second


def _parts(payload: pb.Payload) -> list[pb.Payload]:
    """Return one payload per record; host rows are cut like interval rows."""
    parts = []
    if payload.intervals.slot:
        parts.append(pb.Payload(intervals=payload.intervals))
    hosts = len(payload.hosts.start_unix_ms)
    if hosts:
        middle = hosts // 2
        spans = ((0, middle), (middle, hosts)) if middle else ((0, hosts),)
        parts.extend(pb.Payload(hosts=_cut(payload.hosts, *span)) for span in spans)
    for name in _RECORDS:
        for record in getattr(payload, name):
            part = pb.Payload()
            getattr(part, name).append(record)
            parts.append(part)
    return parts


def _cut(message: Any, first: int, last: int) -> Any:
    """Return rows first … last-1 of a message of columns; its dictionary of texts stays whole."""
    cut = type(message)()
    for field, value in message.ListFields():
        if field.name == "strings":
            cut.strings.extend(value)
        elif field.name == "absences":
            for absence in value:
                codes = absence.absences[first:last]
                if any(codes):
                    cut.absences.add(column=absence.column, absences=codes)
        else:
            getattr(cut, field.name).extend(value[first:last])
    return cut

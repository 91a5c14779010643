"""Messages of a payload as columns of the tables, and what a column may not hold. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

_BUCKETS: Final = frozenset(int(bucket) for bucket in Bucket)
_PROBE_NUMBERS: Final = tuple(
    entry.name for entry in pb.Probe.DESCRIPTOR.fields if entry.cpp_type == entry.CPPTYPE_DOUBLE
)


def fields(messages: Iterable[Any], descriptor: Any) -> Columns:
    """Return a message's fields as columns; None where an optional one is not set."""

    def value(message: Any, entry: Any) -> Any:
        absent = entry.has_presence and not message.HasField(entry.name)
        return None if absent else getattr(message, entry.name)

    return {e.name: [value(m, e) for m in messages] for e in descriptor.fields}


def probe_columns(probes: Sequence[pb.Probe]) -> Columns:
    """Return probes as columns of table ``probe``.

    Raises:
        PermanentError: a number that is none.
    """
    columns = fields(probes, pb.Probe.DESCRIPTOR)
    check_finite(columns, _PROBE_NUMBERS)
    return columns


def slot_columns(node: str, slots: Sequence[pb.SlotDeclaration]) -> Columns:
    """Return declarations as columns of table ``slot``; without a node they are of `node`.

    Raises:
        PermanentError: a slot without name or state.
    """
    columns = fields(slots, pb.SlotDeclaration.DESCRIPTOR)
    columns["node"] = [each or node for each in columns["node"]]
    if not all(columns["slot"]):
        raise PermanentError("a slot without a name")
    if not all(columns["state"]):
        raise PermanentError("a slot without a state")
    return columns


def roster_columns(roster: pb.Roster) -> Columns:
    """Return a roster as columns of table ``roster``: first the roster itself, then its entries.

    Raises:
        PermanentError: a column's length or an index makes no sense.
    """
    count = len(roster.node)
    texts = ["", *roster.strings[1:]]
    columns: Columns = {}
    try:
        for name in ("node", "slot", "job", "team", "user", "workload_class"):
            indexes = list(getattr(roster, name)) or [0] * count
            columns[name] = ["", *(texts[i] for i in indexes)]
    except IndexError:
        raise PermanentError("a roster points past the end of its `strings`") from None
    columns["bucket"] = [0, *roster.bucket]
    columns["weight"] = [0.0, *(roster.weight or [1.0] * count)]
    for name, column in columns.items():
        if len(column) != count + 1:
            raise PermanentError(f"roster column {name} does not match its {count} entries")
    if not all(0.0 <= weight <= 1.0 for weight in columns["weight"]):
        raise PermanentError("a roster with a weight outside [0, 1]")
    if not set(roster.bucket) <= _BUCKETS:
        raise PermanentError("a roster with a bucket that this collector does not know")
    names = ("source", "taken_unix_ms", "valid_until_unix_ms", "pending_jobs", "pending_cards")
    constant = {name: getattr(roster, name) for name in names}
    constant["free_cards"] = roster.free_cards if roster.HasField("free_cards") else None
    return columns | {name: [value] * (count + 1) for name, value in constant.items()}


def check_finite(columns: Columns, names: Iterable[str]) -> None:
    """Refuse columns that hold infinities or NaN.

    Raises:
        PermanentError: one does.
    """
    for name in names:
        column = columns[name]
        known = [v for v in column if v is not None] if None in column else column
        if known and not math.isfinite(sum(known)):
            raise PermanentError(f"column {name} holds a value that is no number")

"""Packed rows of many batches as columns, all at once. Pure.

Messages with one layout lie alike, byte for byte; a fleet of like nodes sends few layouts. So the cells of
all messages of a layout are read as one matrix, and nothing here is done once per row in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flopwatch_proto import packed as forms
from flopwatch_proto import rows
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.packed import Layout
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

Array = npt.NDArray[Any]

_TYPES: Final = {
    forms.FLOAT28: "<f4",
    forms.FLOAT4: "<f4",
    forms.FLOAT8: "<f8",
    forms.UINT1: "<u1",
    forms.UINT2: "<u2",
}
_DAY_MS: Final = 24 * 3_600_000
_NUMBERS: Final = {f.name: f.number for f in pb.IntervalRows.DESCRIPTOR.fields}
_HOST_NUMBERS: Final = {f.name: f.number for f in pb.HostRows.DESCRIPTOR.fields}
_HOST_NAMES: Final = tuple(quantity.name for quantity in rows.HOST_QUANTITIES)
_BUCKETS: Final = np.isin(np.arange(256), [int(bucket) for bucket in Bucket])
_WHOLE: Final = ("start_unix_ms", "duration_ms", *(q.name for q in rows.CARD_TIMES))


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of many messages. Attributes: of: each row's message, by its place; columns: without origin."""

    of: Array
    columns: dict[str, pa.Array]


def interval_block(messages: Sequence[pb.Packed]) -> Block:
    """Return interval rows as columns of table ``interval``, message after message of one layout.

    Raises:
        PermanentError: a row makes no sense. Which message it is in, trying them one by one tells.
    """
    sheet = _Sheet(messages, _NUMBERS)
    columns: dict[str, pa.Array] = {}
    plain = {name: sheet.numbers(name) for name in (*_WHOLE, "weight", "bucket", "rogue")}
    _check_plain(plain)
    for name in _WHOLE:
        columns[name] = pa.array(plain[name].astype(np.int64))
    columns["weight"] = pa.array(plain["weight"])
    columns["bucket"] = pa.array(plain["bucket"].astype(np.uint8))
    columns["rogue"] = pa.array(plain["rogue"] != 0)
    columns |= sheet.texts()
    absent: dict[str, Array] = {}
    for name in rows.QUANTITY_NAMES:
        array, codes = sheet.quantity(name)
        if array is not None:
            columns[name] = array
        if codes is not None:
            absent[name] = codes
    for name, code in (("not_supported", Absence.NOT_SUPPORTED), ("failed", Absence.FAILED)):
        columns[name] = _names({n: codes == code for n, codes in absent.items()}, sheet.count)
    return Block(sheet.of, columns)


def host_block(messages: Sequence[pb.Packed]) -> Block:
    """Return rows of hosts as columns of table ``host``.

    Raises:
        PermanentError: as `interval_block`.
    """
    sheet = _Sheet(messages, _HOST_NUMBERS)
    columns: dict[str, pa.Array] = {}
    for name in ("start_unix_ms", "duration_ms"):
        numbers = sheet.numbers(name)
        if not (numbers % 1 == 0).all() or numbers.min() < 0 or numbers.max() > 2**53:
            raise PermanentError(f"host row with a {name} that is no time")
        columns[name] = pa.array(numbers.astype(np.int64))
    for name in _HOST_NAMES:
        array, _ = sheet.quantity(name)
        if array is not None:
            columns[name] = array
    return Block(sheet.of, columns)


def _check_plain(plain: dict[str, Array]) -> None:
    for name in _WHOLE:
        if not (plain[name] % 1 == 0).all():
            raise PermanentError(f"row with a {name} that is not whole")
    for name, low, high in (("start_unix_ms", 0, 2**53), ("duration_ms", 0, _DAY_MS)):
        if not (low < plain[name].min() and plain[name].max() <= high):
            raise PermanentError(f"row with a {name} outside ({low}, {high}]")
    for quantity in rows.CARD_TIMES:
        if not (plain[quantity.name].min() >= 0 and plain[quantity.name].max() < 2**32):
            raise PermanentError(f"row with a {quantity.name} outside [0, 2^32)")
    weight, bucket = plain["weight"], plain["bucket"]
    if not ((weight > 0) & (weight <= 1)).all():
        raise PermanentError("row with a weight outside (0, 1]")
    if not ((bucket >= 0) & (bucket < 256)).all() or not _BUCKETS[bucket.astype(np.uint8)].all():
        raise PermanentError("row with a bucket which nobody here can account for")


@dataclass(slots=True)
class _Group:
    """Messages of one layout and number of rows. Attributes: found: column number → its values."""

    members: list[int]
    count: int
    layout: Layout
    found: dict[int, Array]
    codes: dict[int, int]

    @property
    def size(self) -> int:
        return len(self.members) * self.count


class _Sheet:
    """The rows of messages, column by column."""

    def __init__(self, messages: Sequence[pb.Packed], numbers: dict[str, int]) -> None:
        self._messages = messages
        self._numbers = numbers
        self._groups = [_read(messages, each) for each in _alike(messages)]
        self.of = np.concatenate([np.repeat(g.members, g.count) for g in self._groups])
        self.count = len(self.of)
        self._absences = self._said_absent()
        self._places: dict[int, Array] = {}

    def numbers(self, name: str) -> Array:
        """Return a column as doubles; what a message does not have is 0."""
        number = self._numbers[name]
        return np.concatenate(
            [
                group.found[number].astype(np.float64)
                if number in group.found
                else np.zeros(group.size)
                for group in self._groups
            ]
        )

    def texts(self) -> dict[str, pa.Array]:
        """Return the columns of texts; ``''`` where there is none."""
        lists = [forms.texts_of(message.texts, message.digits) for message in self._messages]
        counts = np.array([len(each) for each in lists])
        encoded = pa.array(list(chain.from_iterable(lists)), pa.string()).dictionary_encode()
        codes, first = encoded.indices.to_numpy(), np.cumsum(counts) - counts
        base, limit = first[self.of], counts[self.of]
        columns: dict[str, pa.Array] = {}
        for name in rows.TEXTS:
            if not any(self._numbers[name] in group.found for group in self._groups):
                continue
            indexes = self.numbers(name)
            if not ((indexes >= 0) & (indexes < limit)).all():
                raise PermanentError("a text column points past the end of `strings`")
            taken = codes[base + indexes.astype(np.int64)]
            columns[name] = pa.DictionaryArray.from_arrays(
                pa.array(taken), encoded.dictionary, safe=False
            )
        if "slot" not in columns or not self.numbers("slot").all():
            raise PermanentError("a row without a slot")
        return columns

    def quantity(self, name: str) -> tuple[pa.Array | None, Array | None]:
        """Return a column, null where it has no value, and why not (`Absence`); None: nobody has either."""
        number = self._numbers[name]
        if not any(number in group.found or number in group.codes for group in self._groups):
            return None, None
        values, codes = np.zeros(self.count), np.zeros(self.count, np.uint8)
        at = 0
        for group in self._groups:
            span = slice(at, at + group.size)
            at += group.size
            if number in group.found:
                values[span] = group.found[number]
            else:
                codes[span] = group.codes.get(number, Absence.MISSING)
        for message, said in self._absences.get(name, ()):
            codes[self._rows_of(message)] = np.frombuffer(said, np.uint8)
        if not np.isfinite(values.sum()):
            raise PermanentError(f"column {name} holds a value that is no number")
        absent = codes != 0
        if absent.all():
            return None, codes
        return pa.array(values, mask=absent if absent.any() else None), codes

    def _said_absent(self) -> dict[str, list[tuple[int, bytes]]]:
        """Return what messages say of columns that have a value in some of their rows: (message, codes)."""
        said: dict[str, list[tuple[int, bytes]]] = {}
        for i, message in enumerate(self._messages):
            for absence in message.absences:
                if absence.column not in self._numbers:
                    raise PermanentError(f"absences of unknown column {absence.column!r}")
                if len(absence.absences) != message.rows:
                    raise PermanentError(f"absences of {absence.column} do not match its rows")
                said.setdefault(absence.column, []).append((i, absence.absences))
        return said

    def _rows_of(self, message: int) -> Array:
        if message not in self._places:
            self._places[message] = np.flatnonzero(self.of == message)
        return self._places[message]


def _alike(messages: Sequence[pb.Packed]) -> Iterable[list[int]]:
    groups: dict[tuple[bytes, int], list[int]] = {}
    for i, message in enumerate(messages):
        groups.setdefault((message.layout, message.rows), []).append(i)
    return groups.values()


def _read(messages: Sequence[pb.Packed], members: list[int]) -> _Group:
    """Return the cells of messages of one layout, as values."""
    layout, count = forms.checked(messages[members[0]]), messages[members[0]].rows
    cells = np.frombuffer(b"".join([messages[i].cells for i in members]), np.uint8)
    matrix = cells.reshape(len(members), layout.size_bytes(count))
    found: dict[int, Array] = {}
    for form in range(forms.CONSTANT, forms.FORMS):
        numbers = layout.forms[form]
        if not numbers:
            continue
        start, size = layout.span(form, count)
        part = matrix[:, start : start + size]
        if form == forms.CONSTANT:
            constants = np.ascontiguousarray(part).view("<f8")
            for i, number in enumerate(numbers):
                found[number] = np.repeat(constants[:, i], count)
            continue
        values = _values(part, form, len(numbers) * count).reshape(
            len(members), len(numbers), count
        )
        for i, number in enumerate(numbers):
            found[number] = values[:, i, :].reshape(-1)
    codes = {
        number: int(code) for form, code in forms.CODES.items() for number in layout.forms[form]
    }
    return _Group(members, count, layout, found, codes)


def _values(part: Array, form: int, entries: int) -> Array:
    """Return values from their bytes, which lie lowest bytes first."""
    width = forms.WIDTHS[form]
    whole = np.empty((part.shape[0], entries, width), np.uint8)
    if form == forms.FLOAT28:
        halves = part.shape[1] - 3 * entries
        low = part[:, :halves]
        whole[:, ::2, 0] = low << 4
        whole[:, 1::2, 0] = (low & 0xF0)[:, : entries // 2]
        whole[:, :, 1:] = part[:, halves:].reshape(-1, 3, entries).transpose(0, 2, 1)
    else:
        whole[:] = part.reshape(-1, width, entries).transpose(0, 2, 1)
    return whole.view(_TYPES[form])[:, :, 0]


def _names(absent: dict[str, Array], count: int) -> pa.Array:
    """Return, per row, the names of the columns that are absent there."""
    named = {name: there for name, there in absent.items() if there.any()}
    if not named:
        return pa.nulls(count, pa.list_(pa.string()))
    there = np.stack(list(named.values()), axis=1)
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    names = pa.array(list(named)).take(pa.array(np.nonzero(there)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names)

"""Columns as bytes: the message ``Packed``, from and to the messages of columns. Pure, and lossless.

A column goes in the first form that holds all its values exactly: nothing where no row has a value, one
double where all rows have the same, else floats, doubles or small integers. What a form's values are and
where they lie follows from ``layout`` and ``rows`` alone, so that a reader can stack the cells of many
messages with one layout and read all of them at once (`Layout`).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from flopwatch_proto.errors import PermanentError
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

ROWS_MAX: Final = 100_000
NOT_SUPPORTED, FAILED, CONSTANT, FLOAT28, FLOAT4, FLOAT8, UINT1, UINT2 = range(8)
FORMS: Final = 8
CODES: Final = {NOT_SUPPORTED: Absence.NOT_SUPPORTED, FAILED: Absence.FAILED}
WIDTHS: Final = {FLOAT28: 4, FLOAT4: 4, FLOAT8: 8, UINT1: 1, UINT2: 2}
"""Bytes of a value of each form, as it is read."""
_LETTERS: Final = {FLOAT28: "f", FLOAT4: "f", FLOAT8: "d", UINT1: "B", UINT2: "H"}
_HOLE: Final = "\x01"
_HOLES: Final = re.compile(_HOLE)
_DIGIT: Final = re.compile("[0-9a-f]")
_DIGITS_MIN: Final = 10  # an identifier; fewer are an address or a word, which repeat


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns a message has. Attributes: forms: per form, the field numbers in order."""

    forms: tuple[tuple[int, ...], ...]

    def size_bytes(self, count: int) -> int:
        """Return how long the cells of that many rows are."""
        return sum(self.span(FORMS - 1, count))

    def span(self, form: int, count: int) -> tuple[int, int]:
        """Return where a form's values begin in the cells, and how many bytes they take."""
        start = size = 0
        for each in range(CONSTANT, form + 1):
            start += size
            size = _size_bytes(each, len(self.forms[each]), count)
        return start, size


def _size_bytes(form: int, columns: int, count: int) -> int:
    if form == CONSTANT:
        return 8 * columns
    if form == FLOAT28:
        return 3 * columns * count + (columns * count + 1) // 2
    return WIDTHS[form] * columns * count


@lru_cache(256)
def layout_of(layout: bytes) -> Layout:
    """Return what the bytes of a layout say.

    Raises:
        PermanentError: they say nothing, or name a column twice.
    """
    forms = []
    at = 0
    for _ in range(FORMS):
        count = layout[at] if at < len(layout) else 0
        forms.append(tuple(layout[at + 1 : at + 1 + count]))
        at += 1 + count
    numbers = [number for form in forms for number in form]
    if at != len(layout) or len(set(numbers)) != len(numbers):
        raise PermanentError("a layout of columns that makes no sense")
    return Layout(tuple(forms))


def checked(packed: pb.Packed) -> Layout:
    """Return the layout of a message whose cells and texts fit it.

    Raises:
        PermanentError: they do not.
    """
    layout = layout_of(packed.layout)
    count = packed.rows
    if not 1 <= count <= ROWS_MAX or len(packed.cells) != layout.size_bytes(count):
        raise PermanentError(f"{len(packed.cells)} bytes of cells do not fit {count} rows")
    return layout


def pack(message: pb.IntervalRows | pb.HostRows) -> pb.Packed:
    """Return a message of columns in fewer bytes.

    Raises:
        PermanentError: its columns are not of one length, an absence is of no column, or a text holds U+0000.
    """
    count = len(message.start_unix_ms)
    forms: tuple[list[int], ...] = tuple([] for _ in range(FORMS))
    cells: tuple[list[Any], ...] = tuple([] for _ in range(FORMS))
    packed = pb.Packed(rows=count)
    absences = {each.column: each.absences for each in message.absences}
    for field, values in message.ListFields():
        if field.name == "strings":
            packed.texts, packed.digits = _pack_texts(values)
        elif field.name != "absences":
            if len(values) != count:
                raise PermanentError(
                    f"column {field.name} has {len(values)} entries for {count} rows"
                )
            codes = absences.pop(field.name, b"")
            form, kept = _form(values[:], codes, floating=field.cpp_type in _CPP_FLOATS)
            forms[form].append(field.number)
            cells[form].extend(kept)
            if codes and any(codes) and form not in CODES:
                packed.absences.add(column=field.name, absences=codes)
    if absences:
        raise PermanentError(f"absences of unknown column {next(iter(absences))!r}")
    packed.layout = b"".join(bytes((len(form), *form)) for form in forms)
    packed.cells = struct.pack(f"<{len(cells[CONSTANT])}d", *cells[CONSTANT]) + b"".join(
        _planes(form, cells[form]) for form in WIDTHS
    )
    return packed


def unpack(packed: pb.Packed, into: type[Any]) -> Any:
    """Return the message of columns that was packed: ``into`` is pb.IntervalRows or pb.HostRows.

    Raises:
        PermanentError: cells, layout and columns do not fit each other.
    """
    layout, count = checked(packed), packed.rows
    fields = into.DESCRIPTOR.fields_by_number
    message = into(absences=packed.absences)
    if "strings" in into.DESCRIPTOR.fields_by_name:
        message.strings.extend(texts_of(packed.texts, packed.digits))
    for form, numbers in enumerate(layout.forms):
        values = _values(packed.cells, layout, form, count)
        for i, number in enumerate(numbers):
            field = fields.get(number)
            if field is None or field.name in ("strings", "absences"):
                continue  # a column that only a newer agent knows
            if form in CODES:
                column: Sequence[Any] = [0.0] * count
                message.absences.add(column=field.name, absences=bytes([CODES[form]]) * count)
            elif form == CONSTANT:
                column = [values[i]] * count
            else:
                column = values[i * count : (i + 1) * count]
            if field.cpp_type not in _CPP_FLOATS:
                column = _whole(column, field.name)
            try:
                getattr(message, field.name).extend(column)
            except (ValueError, TypeError) as exc:
                raise PermanentError(f"column {field.name}: {exc}") from exc
    return message


def _pack_texts(texts: Sequence[str]) -> tuple[bytes, bytes]:
    """Return texts in one, and the digits that are taken out of identifiers."""
    joined = "\0".join(texts)
    if joined.count("\0") != len(texts) - 1:
        raise PermanentError("a text with U+0000 in it")
    if _HOLE in joined:
        return joined.encode(), b""
    digits: list[str] = []
    shapes = []
    for text in texts:
        found = _DIGIT.findall(text)
        if len(found) >= _DIGITS_MIN:
            digits += found
            text = _DIGIT.sub(_HOLE, text)
        shapes.append(text)
    return "\0".join(shapes).encode(), bytes.fromhex("".join(digits) + "0" * (len(digits) % 2))


@lru_cache(16_384)  # a node says the same every time
def texts_of(texts: bytes, digits: bytes) -> tuple[str, ...]:
    """Return the texts of a message by its fields of these names.

    Raises:
        PermanentError: the digits do not fit the texts, or those are no texts.
    """
    try:
        joined = texts.decode()
    except UnicodeDecodeError as exc:
        raise PermanentError(f"texts that are none: {exc}") from exc
    if digits:
        holes = joined.count(_HOLE)
        if (holes + 1) // 2 != len(digits):
            raise PermanentError(f"{len(digits)} bytes of digits do not fit {holes} places")
        each = iter(digits.hex())
        joined = _HOLES.sub(lambda _: next(each), joined)
    found = tuple(joined.split("\0"))
    if found[0]:
        raise PermanentError("texts must begin with the empty one")
    return found


_CPP_FLOATS: Final = (
    pb.IntervalRows.DESCRIPTOR.fields_by_name["weight"].cpp_type,
    pb.IntervalRows.DESCRIPTOR.fields_by_name["power_watts_max"].cpp_type,
)


def _whole(column: Sequence[Any], name: str) -> list[int]:
    if not all(math.isfinite(value) and value == int(value) for value in column):
        raise PermanentError(f"column {name} must hold whole numbers")
    return [int(value) for value in column]


def _form(values: list[Any], codes: bytes, *, floating: bool) -> tuple[int, Sequence[Any]]:
    """Return the form of a column and the values it stores."""
    if codes and any(codes):
        for form, code in CODES.items():
            if codes.count(code) == len(values):
                return form, ()
    doubles = struct.pack(f"<{len(values)}d", *values)
    if doubles == doubles[:8] * len(values):  # by their bits: 0.0 equals -0.0, and NaN nothing
        return CONSTANT, values[:1]
    if not floating:
        low, high = min(values), max(values)
        if low >= 0 and high < 65_536:
            return (UINT1 if high < 256 else UINT2), values
        return FLOAT8, values
    try:
        raw = struct.pack(f"<{len(values)}f", *values)
    except OverflowError:
        return FLOAT8, values
    if struct.pack(f"<{len(values)}d", *struct.unpack(f"<{len(values)}f", raw)) != doubles:
        return FLOAT8, values
    return (FLOAT4 if any(low & 15 for low in raw[::4]) else FLOAT28), values


def _planes(form: int, values: Sequence[Any]) -> bytes:
    """Return values byte by byte: first the lowest byte of each."""
    width = WIDTHS[form]
    raw = struct.pack(f"<{len(values)}{_LETTERS[form]}", *values)
    planes = [raw[i::width] for i in range(width)]
    if form == FLOAT28:
        low = planes[0] + b"\0"
        planes[0] = bytes(a >> 4 | b for a, b in zip(low[:-1:2], low[1::2], strict=False))
    return b"".join(planes)


def _values(cells: bytes, layout: Layout, form: int, count: int) -> Sequence[Any]:
    if form < CONSTANT:
        return ()
    start, size = layout.span(form, count)
    raw = cells[start : start + size]
    if form == CONSTANT:
        return struct.unpack(f"<{size // 8}d", raw)
    width = WIDTHS[form]
    entries = len(layout.forms[form]) * count
    joined = bytearray(width * entries)
    if form == FLOAT28:
        halves = size - 3 * entries
        low = [nibble << 4 for byte in raw[:halves] for nibble in (byte & 15, byte >> 4)]
        raw = bytes(low[:entries]) + raw[halves:]
    for i in range(width):
        joined[i::width] = raw[i * entries : (i + 1) * entries]
    return struct.unpack(f"<{entries}{_LETTERS[form]}", joined)

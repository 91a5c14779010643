"""The contract: stubs in step, no break, one catalogue, and a codec that neither loses nor invents."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import stubs
from contract import breaks
from flopwatch_proto import codec, rows
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.rows import Absence, Bucket, SlotState
from flopwatch_proto.v1 import telemetry_pb2 as pb

_PLUMBING = {"strings", "absences"}


def test_the_committed_stubs_and_descriptor_are_what_the_contract_generates(
    tmp_path: Path,
) -> None:
    stubs.generate(tmp_path)
    assert stubs.stale(tmp_path) == []


# ---- evolution ----------------------------------------------------------------------------------


def _reserve(message: DescriptorProto, field: FieldDescriptorProto) -> None:
    message.reserved_range.add(start=field.number, end=field.number + 1)
    message.reserved_name.append(field.name)


def _field(file: FileDescriptorProto, message: str, name: str) -> FieldDescriptorProto:
    return next(
        f for m in file.message_type if m.name == message for f in m.field if f.name == name
    )


def _message(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(m for m in file.message_type if m.name == name)


def _remove_a_field(file: FileDescriptorProto) -> None:
    _message(file, "Batch").field.remove(_field(file, "Batch", "rows_before"))


def _reuse_a_number(file: FileDescriptorProto) -> None:
    field = _field(file, "Batch", "rows_before")
    field.name = "cost"


def _rename_a_field(file: FileDescriptorProto) -> None:
    _field(file, "IntervalRows", "card_ms").name = "card_milliseconds"


def _move_a_field(file: FileDescriptorProto) -> None:
    _field(file, "Batch", "seq").number = 99


def _change_a_type(file: FileDescriptorProto) -> None:
    _field(file, "Batch", "seq").type = FieldDescriptorProto.TYPE_INT32


def _change_a_message_type(file: FileDescriptorProto) -> None:
    _field(file, "AgentFrame", "gap").type_name = ".flopwatch.v1.Batch"


def _change_a_label(file: FileDescriptorProto) -> None:
    _field(file, "IntervalRows", "card_ms").label = FieldDescriptorProto.LABEL_OPTIONAL


def _leave_a_oneof(file: FileDescriptorProto) -> None:
    _field(file, "AgentFrame", "gap").ClearField("oneof_index")


def _remove_a_message(file: FileDescriptorProto) -> None:
    file.message_type.remove(_message(file, "Drain"))


def _rename_an_enum_value(file: FileDescriptorProto) -> None:
    file.enum_type[0].value[3].name = "BUCKET_BROKEN"


def _remove_an_enum_value(file: FileDescriptorProto) -> None:
    del file.enum_type[0].value[3]


def _swap_enum_values(file: FileDescriptorProto) -> None:
    values = file.enum_type[0].value
    values[3].number, values[4].number = values[4].number, values[3].number


def _stop_streaming(file: FileDescriptorProto) -> None:
    file.service[0].method[0].client_streaming = False


def _answer_something_else(file: FileDescriptorProto) -> None:
    file.service[0].method[0].output_type = ".flopwatch.v1.Ack"


def _rename_a_method(file: FileDescriptorProto) -> None:
    file.service[0].method[0].name = "Send"


def _remove_a_service(file: FileDescriptorProto) -> None:
    del file.service[0]


def _change_the_package(file: FileDescriptorProto) -> None:
    file.package = "flopwatch.v2"


@pytest.mark.parametrize(
    "change",
    [
        _remove_a_field,
        _reuse_a_number,
        _rename_a_field,
        _move_a_field,
        _change_a_type,
        _change_a_message_type,
        _change_a_label,
        _leave_a_oneof,
        _remove_a_message,
        _rename_an_enum_value,
        _remove_an_enum_value,
        _swap_enum_values,
        _stop_streaming,
        _answer_something_else,
        _rename_a_method,
        _remove_a_service,
        _change_the_package,
    ],
)
def test_the_differ_catches_a_breaking_change(
    change: Callable[[FileDescriptorProto], None],
) -> None:
    old, new = stubs.reference(), stubs.reference()
    change(new.file[0])
    assert breaks(old, new) != []


def test_the_differ_lets_the_contract_grow() -> None:
    old, new = stubs.reference(), stubs.reference()
    file = new.file[0]
    file.message_type.add(name="Extra")
    _message(file, "Batch").field.add(
        name="more",
        number=50,
        type=FieldDescriptorProto.TYPE_INT64,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
    )
    file.enum_type[0].value.add(name="BUCKET_EXTRA", number=77)
    file.service[0].method.add(name="Extra", input_type=".a", output_type=".b")
    assert breaks(old, new) == []


def test_a_field_may_go_when_its_number_and_name_stay_reserved_for_ever() -> None:
    old, new = stubs.reference(), stubs.reference()
    message = _message(new.file[0], "Batch")
    field = _field(new.file[0], "Batch", "rows_before")
    _reserve(message, field)
    message.field.remove(field)
    assert breaks(old, new) == []
    later = FileDescriptorSet.FromString(new.SerializeToString())
    _message(later.file[0], "Batch").ClearField("reserved_range")
    _message(later.file[0], "Batch").ClearField("reserved_name")
    assert len(breaks(new, later)) == 2


# ---- catalogue ----------------------------------------------------------------------------------


def _fields(message: Any) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.fields} - _PLUMBING


def test_the_catalogue_of_rows_is_the_fields_of_the_message() -> None:
    assert _fields(pb.IntervalRows) == set(rows.COLUMNS)
    assert len(rows.COLUMNS) == len(set(rows.COLUMNS))


def test_the_catalogue_of_hosts_is_the_fields_of_the_message() -> None:
    quantities = {quantity.name for quantity in rows.HOST_QUANTITIES}
    assert _fields(pb.HostRows) == quantities | {"start_unix_ms", "duration_ms"}


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (Bucket, pb.Bucket, "BUCKET_"),
        (Absence, pb.Absence, "ABSENCE_"),
        (SlotState, pb.SlotState, "SLOT_STATE_"),
    ],
)
def test_our_enums_have_the_names_and_numbers_of_the_contract(
    ours: Any, theirs: Any, prefix: str
) -> None:
    expected = {
        name.removeprefix(prefix): number
        for name, number in theirs.items()
        if not name.endswith("_UNSPECIFIED")
    }
    assert {member.name: member.value for member in ours} == expected


def test_every_quantity_says_its_meaning_once() -> None:
    quantities = (*rows.CARD_TIMES, *rows.QUANTITIES, *rows.HOST_QUANTITIES)
    assert all(quantity.meaning for quantity in quantities)


# ---- codec --------------------------------------------------------------------------------------

_NUMBERS = st.floats(min_value=0, max_value=2.0**99, width=32)
_ROW_TEXTS = tuple(name for name in rows.TEXTS if name != "slot")
_NAMES = st.text(min_size=1, max_size=12)


@st.composite
def _interval_rows(draw: st.DrawFn) -> IntervalRow:
    return IntervalRow(
        slot=draw(_NAMES),
        start_unix_ms=draw(st.integers(1, 2**53 - 1)),
        duration_ms=draw(st.integers(1, 24 * 3_600_000)),
        bucket=draw(st.sampled_from(Bucket)),
        weight=draw(st.floats(min_value=0, max_value=1, exclude_min=True)),
        rogue=draw(st.booleans()),
        texts=draw(st.dictionaries(st.sampled_from(_ROW_TEXTS), st.none() | _NAMES, max_size=5)),
        card_times=draw(
            st.dictionaries(
                st.sampled_from([q.name for q in rows.CARD_TIMES]), st.integers(0, 2**32 - 1)
            )
        ),
        values=draw(
            st.dictionaries(
                st.sampled_from(rows.QUANTITY_NAMES),
                _NUMBERS | st.sampled_from(Absence),
                max_size=8,
            )
        ),
    )


def _check(row: IntervalRow, decoded: dict[str, Any]) -> None:
    for name in ("slot", "start_unix_ms", "duration_ms", "bucket", "weight", "rogue"):
        assert decoded[name] == getattr(row, name)
    assert {n: decoded[n] for n in _ROW_TEXTS} == {n: row.texts.get(n) for n in _ROW_TEXTS}
    for quantity in rows.CARD_TIMES:
        assert decoded[quantity.name] == row.card_times.get(quantity.name, 0)
    said = {name: row.values.get(name, Absence.MISSING) for name in rows.QUANTITY_NAMES}
    for name, value in said.items():
        if isinstance(value, Absence):
            assert decoded[name] is None
        elif name in rows.EXACT:
            assert decoded[name] == value
        else:
            assert decoded[name] == pytest.approx(value, rel=2**-20, abs=1e-40)
    for column, absence in (("not_supported", Absence.NOT_SUPPORTED), ("failed", Absence.FAILED)):
        assert decoded[column] == [name for name, value in said.items() if value is absence]


@settings(max_examples=60, deadline=None)
@given(st.lists(_interval_rows(), max_size=6))
def test_rows_come_back_from_the_wire_as_they_were_with_every_absence_distinct(
    interval_rows: list[IntervalRow],
) -> None:
    batch = codec.pack(pb.Payload(intervals=codec.encode_rows(interval_rows)))
    sent = pb.Batch.FromString(batch.SerializeToString())
    columns = codec.decode_rows(codec.unpack(sent).intervals)
    assert {len(column) for column in columns.values()} == {len(interval_rows)}
    for i, row in enumerate(interval_rows):
        decoded = {name: column[i] for name, column in columns.items()}
        for listed in ("not_supported", "failed"):
            decoded[listed] = sorted(decoded[listed], key=rows.QUANTITY_NAMES.index)
        _check(row, decoded)


def _row(**values: float | Absence) -> IntervalRow:
    return IntervalRow(
        slot="0000:18:00.0",
        start_unix_ms=1_760_000_000_000,
        duration_ms=10_000,
        bucket=Bucket.ACTIVE,
        card_times={"card_ms": 10_000},
        values=values,
    )


def test_a_zero_is_a_value_and_an_absence_is_not() -> None:
    sent = [_row(energy_joules=0.0), _row(energy_joules=Absence.FAILED), _row()]
    columns = codec.decode_rows(codec.encode_rows(sent))
    assert columns["energy_joules"] == [0.0, None, None]
    assert columns["failed"] == [[], ["energy_joules"], []]


# ---- damage -------------------------------------------------------------------------------------


def _batch() -> pb.Batch:
    return codec.pack(pb.Payload(intervals=codec.encode_rows([_row(energy_joules=7000.0)])))


def _sealed(raw: bytes, **changes: Any) -> pb.Batch:
    """A batch whose envelope is right, whatever its payload is."""
    batch = pb.Batch(
        raw_bytes=len(raw),
        sha256_16=hashlib.sha256(raw).digest()[:16],
        payload=zstandard.compress(raw),
    )
    for name, value in changes.items():
        setattr(batch, name, value)
    return batch


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (_sealed(b"", raw_bytes=codec.RAW_BYTES_MAX + 1), "too_large"),
        (_sealed(b"x", sha256_16=bytes(16)), "bad_hash"),
        (_sealed(b"x", payload=b"not zstd"), "bad_payload"),
        (_sealed(b"xyz", raw_bytes=2), "bad_payload"),
        (_sealed(b"xyz", raw_bytes=4), "bad_payload"),
        (_sealed(b"\xff\xff\xff"), "bad_payload"),
    ],
)
def test_a_damaged_batch_is_refused_with_its_code(batch: pb.Batch, code: str) -> None:
    with pytest.raises(PermanentError, match=rf"^{code}:"):
        codec.unpack(batch)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_flipped_bit_in_the_payload_is_never_taken_for_other_rows(data: st.DataObject) -> None:
    batch = _batch()
    whole = codec.unpack(batch)
    damaged = bytearray(batch.payload)
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    batch.payload = bytes(damaged)
    assert _unpacked(batch) in (whole, "bad_hash", "bad_payload")


def _unpacked(batch: pb.Batch) -> pb.Payload | str:
    try:
        return codec.unpack(batch)
    except PermanentError as exc:
        return str(exc).partition(":")[0]


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_small_batch_that_inflates_to_gigabytes_is_read_no_further_than_it_promised(
    says_its_size: bool,
) -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=says_its_size)
    bomb = compressor.compress(bytes(256 * 1024 * 1024))
    assert len(bomb) < 65_536
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PermanentError, match=r"^bad_payload:"):
        codec.unpack(pb.Batch(raw_bytes=1000, payload=bomb))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 65_536  # KiB


def test_a_payload_larger_than_the_limit_is_not_packed() -> None:
    payload = pb.Payload(events=[pb.Event(text="x" * codec.RAW_BYTES_MAX)])
    with pytest.raises(PermanentError, match="split it"):
        codec.pack(payload)


def _change(name: str, value: Any) -> pb.IntervalRows:
    message = codec.encode_rows([_row(energy_joules=1.0), _row(energy_joules=2.0)])
    del getattr(message, name)[:]
    getattr(message, name).extend(value)
    return message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("duration_ms", [10_000]),
        ("duration_ms", [10_000, 0]),
        ("start_unix_ms", [0, 1]),
        ("weight", [1.0, 1.5]),
        ("weight", [1.0, float("nan")]),
        ("bucket", [0, 4]),
        ("energy_joules", [1.0]),
        ("card_ms", [1, 2, 3]),
        ("slot", [0, 1]),
        ("slot", [1, 99]),
        ("job", [99, 0]),
        ("absences", [pb.AbsenceColumn(column="energy_joules", absences=b"\0")]),
        ("absences", [pb.AbsenceColumn(column="duration_ms", absences=b"\0\0")]),
        ("absences", [pb.AbsenceColumn(column="nonsense", absences=b"\0\0")]),
        ("bucket", [77, 4]),
    ],
)
def test_rows_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(PermanentError):
        codec.decode_rows(_change(name, value))


def test_an_absence_that_only_a_newer_agent_knows_is_a_value_that_nobody_read() -> None:
    absence = pb.AbsenceColumn(column="energy_joules", absences=b"\0\x09")
    columns = codec.decode_rows(_change("absences", [absence]))
    assert columns["energy_joules"] == [1.0, None]
    assert columns["not_supported"] == columns["failed"] == [[], []]

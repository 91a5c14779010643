"""Packed columns come back as they were, older batches are still read, and the wire stays what it is."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_proto import codec, packed, rows
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

_DICTIONARY_SHA256 = "3106a4b713c23678aad71f07c2121bbf6e7823370272a85897d93fd570119b02"
_BATCH = base64.b64decode(
    "EICAs8GcMxiQzrPBnDMgAjIQKDEpdansiTMuOX4pGr4ZyDjfAUJ/KLUv/SEB360DAKQEQtwBCAISOzQ3MTEtGhA8O9"
    "CMoXcT0UWs/M6x2T8gIhcAATIOAwQFCgsMDQ8oKSorXG4qcMyCnHlCQAiUwUB0+S9DAAAAAABYu0AQ/A0AZEuH6lhi"
    "9NKKFlzN2Vc8op06RMKjJykbtne7c+Jdut+87dRDsA=="
)

_NUMBERS = st.one_of(
    st.sampled_from((0.0, -0.0, 1.0, 10_000.0, 0.1, 65_535.0, 1e300)),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)
_TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8),
    st.sampled_from(("GPU-00ff-3c3bd08ca177", "sim2209225934", "a\x01b", "deadbeefdead\x01")),
)


def a_row(**values: float | Absence) -> IntervalRow:
    return IntervalRow(
        slot="0000:18:00.0",
        start_unix_ms=1_760_000_000_000,
        duration_ms=10_000,
        bucket=Bucket.ACTIVE,
        texts={"job": "4711", "device_uuid": "GPU-3c3bd08c-a177-13d1-45ac-fcceb1d93f20"},
        card_times={"card_ms": 10_000, "covered_ms": 9_000},
        values=values,
    )


@st.composite
def _messages(draw: st.DrawFn) -> pb.IntervalRows:
    count = draw(st.integers(1, 9))
    message = pb.IntervalRows(strings=["", *draw(st.lists(_TEXTS, max_size=5))])

    def column(each: st.SearchStrategy[float]) -> list[float]:
        if draw(st.booleans()):
            return [draw(each)] * count
        return draw(st.lists(each, min_size=count, max_size=count))

    message.start_unix_ms.extend(column(st.integers(0, 2**53)))  # type: ignore[arg-type]
    message.duration_ms.extend(column(st.integers(0, 2**32 - 1)))  # type: ignore[arg-type]
    message.slot.extend(column(st.integers(0, 2**17)))  # type: ignore[arg-type]
    message.rogue.extend(column(st.booleans()))  # type: ignore[arg-type]
    for name in draw(st.lists(st.sampled_from(rows.QUANTITY_NAMES[:8]), unique=True, max_size=4)):
        codes = bytes(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
        values = column(_NUMBERS)
        getattr(message, name).extend(0.0 if c else v for c, v in zip(codes, values, strict=True))
        if any(codes):
            message.absences.add(column=name, absences=codes)
    return message


@settings(max_examples=100, deadline=None)
@given(_messages())
def test_columns_come_back_as_they_were_to_the_last_bit(message: pb.IntervalRows) -> None:
    sent = pb.Packed.FromString(packed.pack(message).SerializeToString())
    came = packed.unpack(sent, pb.IntervalRows)
    said = {each.column: each.absences for each in message.absences}
    assert {each.column: each.absences for each in came.absences} == said
    del message.absences[:], came.absences[:]
    assert came.SerializeToString(deterministic=True) == message.SerializeToString(
        deterministic=True
    )


@settings(max_examples=80, deadline=None)
@given(_messages(), st.data())
def test_damaged_cells_are_refused_or_read_but_never_break(
    message: pb.IntervalRows, data: st.DataObject
) -> None:
    sent = packed.pack(message)
    name = data.draw(st.sampled_from(("layout", "cells", "texts", "digits")))
    setattr(sent, name, data.draw(st.binary(max_size=40)))
    try:
        packed.unpack(sent, pb.IntervalRows)
    except PermanentError:
        return
    assert packed.checked(sent).size_bytes(sent.rows) == len(sent.cells)


def test_what_is_measured_is_rounded_once_and_what_is_counted_never() -> None:
    measured, counted = 6096.499388656503, 3.0000000001e15
    row = a_row(energy_joules=measured, model_flops=counted)
    message = codec.encode_rows([row])
    assert message.energy_joules[0] == pytest.approx(measured, rel=2**-20)
    assert message.energy_joules[0] != measured
    assert message.model_flops[0] == counted
    assert codec.unpack(codec.pack(pb.Payload(intervals=message))).intervals == message


def test_the_dictionary_is_the_one_that_was_shipped() -> None:
    path = Path(codec.__file__).with_name("dictionaries") / "1.zdict"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == _DICTIONARY_SHA256
    frame = zstandard.get_frame_parameters(codec.pack(pb.Payload(events=[pb.Event()])).payload)
    assert frame.dict_id == codec.DICTIONARY == 1


def test_a_batch_of_today_is_read_for_ever() -> None:
    row = a_row(energy_joules=7000.0, sm_active_ms=Absence.FAILED, u_flops=4.5e15)
    payload = codec.unpack(pb.Batch.FromString(_BATCH))
    assert payload.intervals == codec.encode_rows([row, row])


def test_a_batch_from_before_packing_is_still_read() -> None:
    payload = pb.Payload(intervals=codec.encode_rows([a_row(energy_joules=7000.0)]))
    raw = payload.SerializeToString()
    batch = pb.Batch(
        sha256_16=hashlib.sha256(raw).digest()[:16],
        raw_bytes=len(raw),
        payload=zstandard.compress(raw),
    )
    assert codec.unpack(batch) == payload


def test_a_payload_with_a_dictionary_that_nobody_knows_is_refused() -> None:
    trained = zstandard.train_dictionary(
        512, [bytes([i, i + 1] * 50) for i in range(200)], dict_id=77
    )
    raw = b"xyz"
    batch = pb.Batch(
        sha256_16=hashlib.sha256(raw).digest()[:16],
        raw_bytes=3,
        payload=zstandard.ZstdCompressor(dict_data=trained).compress(raw),
    )
    with pytest.raises(PermanentError, match="bad_payload: a dictionary 77"):
        codec.unpack(batch)

"""Many messages read at once give what each of them gives alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flopwatch_collector.telemetry.columns import host_block, interval_block
from flopwatch_proto import codec, packed, rows
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb


def _row(number: int, **values: float | Absence) -> IntervalRow:
    return IntervalRow(
        slot=f"0000:{number:02x}:00.0",
        start_unix_ms=1_760_000_000_000 + 1000 * number,
        duration_ms=10_000,
        bucket=Bucket.ACTIVE,
        weight=0.5 if number % 2 else 1.0,
        texts={"job": f"job-{number}", "device_uuid": f"GPU-{number:024x}"},
        card_times={"card_ms": 10_000 - number},
        values=values,
    )


def _message(*found: IntervalRow) -> pb.IntervalRows:
    return codec.encode_rows(found)


MESSAGES = (
    _message(*(_row(i, sm_active_ms=0.1 * i, energy_joules=6e3 + i) for i in range(8))),
    _message(*(_row(i, sm_active_ms=0.2 * i, energy_joules=5e3 + i) for i in range(8))),
    _message(_row(3, sm_active_ms=Absence.FAILED, fp64_active_ms=Absence.NOT_SUPPORTED)),
    _message(_row(1, sm_active_ms=7.0), _row(2, sm_active_ms=Absence.FAILED), _row(4)),
    _message(*(_row(i % 250, model_flops=1e15 + i) for i in range(300))),
)


def test_many_messages_at_once_are_what_each_is_alone() -> None:
    block = interval_block([packed.pack(message) for message in MESSAGES])
    for i, message in enumerate(MESSAGES):
        at = np.flatnonzero(block.of == i)
        for name, column in codec.decode_rows(message).items():
            wanted = column
            if name in rows.TEXTS:
                wanted = [text or "" for text in column]
            found = block.columns[name].take(at).to_pylist() if name in block.columns else None
            if name in ("not_supported", "failed"):
                found = [each or [] for each in found or [[]] * len(at)]
            elif found is None:
                found = ["" if name in rows.TEXTS else None] * len(at)
            assert found == wanted, (i, name)


def test_rows_of_hosts_too() -> None:
    first = pb.HostRows(start_unix_ms=[1, 2], duration_ms=[10, 20], cpu_busy_ms=[0.5, 0.0])
    first.absences.add(column="cpu_busy_ms", absences=b"\0\3")
    second = pb.HostRows(start_unix_ms=[5], duration_ms=[10], nic_tx_bytes=[8.0])
    block = host_block([packed.pack(first), packed.pack(second)])
    assert block.of.tolist() == [0, 0, 1]
    assert block.columns["start_unix_ms"].to_pylist() == [1, 2, 5]
    assert block.columns["cpu_busy_ms"].to_pylist() == [0.5, None, None]
    assert block.columns["nic_tx_bytes"].to_pylist() == [None, None, 8.0]


def _start_of_zero(message: pb.IntervalRows) -> None:
    message.start_unix_ms[0] = 0


def _too_long(message: pb.IntervalRows) -> None:
    message.duration_ms[0] = 2**31


def _too_heavy(message: pb.IntervalRows) -> None:
    message.weight[0] = 1.5


def _no_weight(message: pb.IntervalRows) -> None:
    message.weight[0] = float("nan")


def _strange_bucket(message: pb.IntervalRows) -> None:
    message.bucket[0] = 77  # type: ignore[call-overload]


def _far_text(message: pb.IntervalRows) -> None:
    message.job[0] = 99


def _no_slot(message: pb.IntervalRows) -> None:
    message.slot[0] = 0


def _no_number(message: pb.IntervalRows) -> None:
    message.sm_active_ms[0] = float("inf")


@pytest.mark.parametrize(
    "damage",
    [
        _start_of_zero,
        _too_long,
        _too_heavy,
        _no_weight,
        _strange_bucket,
        _far_text,
        _no_slot,
        _no_number,
    ],
)
def test_one_row_that_makes_no_sense_is_found_among_many(
    damage: Callable[[pb.IntervalRows], None],
) -> None:
    bad = pb.IntervalRows()
    bad.CopyFrom(MESSAGES[0])
    damage(bad)
    good = packed.pack(MESSAGES[1])
    interval_block([good])
    with pytest.raises(PermanentError):
        interval_block([good, packed.pack(bad), good])

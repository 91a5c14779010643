"""Readings in between: seen by the recorder, not by the fold."""

from __future__ import annotations

from flopwatch_agent.cadence import Cadence
from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import Device, Reading, Share
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence, Bucket

START = 1_800_000_000_000
CARD = Device(slot="a", kind="gpu", sku="NVIDIA H100 80GB HBM3")


def reading(ms: int, *, alive: bool = True, **values: Value) -> Reading:
    return Reading(
        device=CARD,
        taken_unix_ms=START + ms,
        boottime_ns=ms * 1_000_000,
        values=values,
        alive=alive,
        failure=None if alive else "unresponsive",
    )


def counted(ms: int) -> Reading:
    """A reading at 10 Hz with the driver's counters in every third one."""
    if ms % 300:
        return reading(ms, sm_clock_mhz=1755.0)
    return reading(ms, sm_clock_mhz=1755.0, sm_active_ratio=0.9, tensor_active_ratio=0.5)


def test_at_the_usual_cadence_every_reading_is_folded() -> None:
    cadence = Cadence()
    assert cadence.folds(reading(0, sm_active_ratio=0.5))
    assert cadence.folds(reading(1000, sm_active_ratio=Absence.FAILED))
    assert cadence.folds(reading(2000))
    assert cadence.folds(reading(3000, sm_active_ratio=0.5))


def test_of_frequent_readings_those_are_folded_that_lack_nothing() -> None:
    cadence = Cadence()
    folded = [ms for ms in range(0, 1300, 100) if cadence.folds(counted(ms))]
    assert folded == [0, 300, 600, 900, 1200]


def test_a_counter_that_ceases_holds_readings_back_for_a_second_only() -> None:
    cadence = Cadence()
    assert cadence.folds(counted(0))
    lacking = [ms for ms in range(100, 1400, 100) if cadence.folds(reading(ms, sm_clock_mhz=1.0))]
    assert lacking == [900, 1000, 1100, 1200, 1300]


def test_a_device_that_does_not_answer_is_folded_at_once_and_so_is_its_return() -> None:
    cadence = Cadence()
    assert cadence.folds(counted(0))
    assert cadence.folds(reading(100, alive=False))
    assert cadence.folds(reading(200))


def test_a_row_read_ten_times_a_second_is_as_covered_as_any_other() -> None:
    cadence = Cadence()
    fold = Fold(interval_ms=10_000, dtype="bf16", gap_ms_max=30_000)
    rows = []
    for ms in range(0, 12_100, 100):
        if cadence.folds(counted(ms)):
            rows += fold.add(counted(ms), (Share(bucket=Bucket.ACTIVE, job="j"),))
    (row,) = rows
    assert row.card_times["counted_ms"] == row.card_times["card_ms"] == 10_000
    assert row.values["sm_active_ms"] == 9_000.0

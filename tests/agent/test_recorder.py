"""The flight recorder: what it holds, what it answers, and where it stops."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from flopwatch_agent.reading import FIELDS, Device, Reading
from flopwatch_agent.recorder import (
    COLUMNS_MAX,
    KEPT_MS,
    PART_BYTES_MAX,
    PART_READINGS_MAX,
    PARTS_AT_ONCE_MAX,
    PENDING_MAX,
    SETTLE_MS,
    Recorder,
)
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

NOW = 1_800_000_000_000


def reading(taken: int, slot: str = "a", /, **values: Value) -> Reading:
    device = Device(slot=slot, kind="gpu", sku="NVIDIA H100 80GB HBM3")
    return Reading(device=device, taken_unix_ms=taken, boottime_ns=taken, values=values)


def watched(times: Iterable[int], *slots: str, recorder: Recorder | None = None) -> Recorder:
    made = recorder or Recorder()
    for taken in times:
        for slot in slots or ("a",):
            made.see(reading(taken, slot, power_watts=float(taken - NOW)), ())
    return made


def asked(start: int, end: int, **more: object) -> pb.CaptureRequest:
    given = {"id": "c", "from_unix_ms": start, "to_unix_ms": end} | more
    return pb.CaptureRequest(**given)  # type: ignore[arg-type]


def everything(recorder: Recorder, now: int) -> list[pb.Capture]:
    parts: list[pb.Capture] = []
    while more := recorder.due(now):
        parts += more
    return parts


def columns(part: pb.Capture) -> dict[str, list[float]]:
    return {column.name: list(column.values) for column in part.columns}


def test_a_window_that_lies_back_is_answered_with_every_reading_of_every_slot() -> None:
    recorder = watched(range(NOW, NOW + 90_000, 1000), "a", "b")
    recorder.request(asked(NOW + 10_000, NOW + 80_000), NOW + 90_000)
    parts = everything(recorder, NOW + 90_000)
    assert [(p.id, p.slot, p.part, p.last) for p in parts] == [
        ("c", "a", 0, False),
        ("c", "a", 1, True),
        ("c", "b", 0, False),
        ("c", "b", 1, True),
    ]
    for slot in ("a", "b"):
        times = [t for p in parts if p.slot == slot for t in p.taken_unix_ms]
        assert times == list(range(NOW + 10_000, NOW + 80_000, 1000))
    assert columns(parts[0])["power_watts"][0] == 10_000.0
    assert recorder.events() == ()
    assert recorder.counters.answered == 1


def test_a_window_ahead_is_answered_when_it_is_over_and_speeds_reading_up_meanwhile() -> None:
    recorder = watched(range(NOW, NOW + 5000, 1000))
    recorder.request(asked(NOW + 5000, NOW + 15_000, readings_per_second=10), NOW + 3000)
    recorder.request(asked(NOW, NOW + 9000, id="d", readings_per_second=4), NOW + 3000)
    rates = [recorder.readings_per_second(NOW + s * 1000) for s in (-2, 3, 4, 14, 15)]
    assert rates == [1, 4, 10, 10, 1]
    watched(range(NOW + 5000, NOW + 15_000, 100), recorder=recorder)
    assert [p.id for p in everything(recorder, NOW + 15_000)] == ["d"]
    (part,) = everything(recorder, NOW + 15_000 + SETTLE_MS)
    assert (len(part.taken_unix_ms), part.last) == (100, True)
    assert recorder.readings_per_second(NOW + 14_000) == 1


def test_a_request_beyond_the_rate_gets_the_highest_there_is() -> None:
    recorder = Recorder()
    recorder.request(asked(NOW, NOW + 1000, readings_per_second=4_000_000_000), NOW)
    assert recorder.readings_per_second(NOW) == 10


def test_what_has_no_value_is_nan_and_a_field_never_seen_is_no_column() -> None:
    recorder = Recorder()
    recorder.see(reading(NOW, power_watts=Absence.FAILED, sm_active_ratio=Absence.MISSING), ())
    recorder.see(reading(NOW + 1000, power_watts=300.0), ())
    recorder.see(reading(NOW + 2000), ())  # the driver did not answer
    recorder.request(asked(NOW, NOW + 5000), NOW + 9000)
    (part,) = everything(recorder, NOW + 9000)
    assert list(columns(part)) == ["power_watts"]
    first, second, third = columns(part)["power_watts"]
    assert math.isnan(first)
    assert second == 300.0
    assert math.isnan(third)


def test_a_field_that_comes_later_moves_no_value_of_another() -> None:
    recorder = Recorder()
    recorder.see(reading(NOW, power_watts=1.0), ())
    recorder.see(reading(NOW + 1000, power_watts=2.0, temperature_celsius=20.0), ())
    recorder.see(reading(NOW + 2000, sm_clock_mhz=3.0, power_watts=4.0), ())
    recorder.request(asked(NOW, NOW + 3000), NOW + 10_000)
    (part,) = everything(recorder, NOW + 10_000)
    held = columns(part)
    assert held["power_watts"] == [1.0, 2.0, 4.0]
    assert held["temperature_celsius"][1] == 20.0
    assert held["sm_clock_mhz"][2] == 3.0
    assert sum(map(math.isnan, held["temperature_celsius"] + held["sm_clock_mhz"])) == 4


def test_a_counter_keeps_its_differences_whatever_its_height() -> None:
    recorder = Recorder()
    for i in range(3):
        recorder.see(reading(NOW + i * 100, energy_joules_total=1e9 + 70.5 * i), ())
    recorder.request(asked(NOW, NOW + 1000), NOW + 9000)
    (part,) = everything(recorder, NOW + 9000)
    assert columns(part)["energy_joules_total"] == [0.0, 70.5, 141.0]


def test_a_window_before_what_is_held_yields_what_there_is_and_says_from_when() -> None:
    recorder = watched(range(NOW, NOW + 20_000, 1000))
    recorder.request(asked(NOW - 60_000, NOW + 10_000), NOW + 20_000)
    recorder.request(asked(NOW, NOW + 10_000, id="d", slots=["gone"]), NOW + 20_000)
    parts = everything(recorder, NOW + 20_000)
    assert [(p.slot, p.part, p.last, len(p.taken_unix_ms)) for p in parts] == [
        ("a", 1, True, 10),
        ("gone", 0, True, 0),
    ]
    short, gone = recorder.events()
    assert (short.kind, short.slot, short.code) == ("capture_short", "a", 60_000)
    assert str(NOW) in short.text
    assert (gone.slot, gone.code) == ("gone", 10_000)


def test_a_recorder_that_holds_nothing_answers_that() -> None:
    recorder = Recorder()
    recorder.request(asked(NOW, NOW + 1000), NOW + 9000)
    (part,) = everything(recorder, NOW + 9000)
    assert (part.slot, part.last, len(part.taken_unix_ms)) == ("", True, 0)


def test_asking_twice_changes_nothing() -> None:
    recorder = watched(range(NOW, NOW + 5000, 1000))
    for _ in range(3):
        recorder.request(asked(NOW, NOW + 5000), NOW + 9000)
    assert len(everything(recorder, NOW + 9000)) == 1
    recorder.request(asked(NOW, NOW + 5000), NOW + 60_000)
    assert everything(recorder, NOW + 60_000) == []
    assert recorder.counters.repeated == 3


def test_an_answer_after_a_restart_has_the_same_parts() -> None:
    window = asked(NOW, NOW + 180_000)
    whole = watched(range(NOW, NOW + 180_000, 1000))
    whole.request(window, NOW + 190_000)
    restarted = watched(range(NOW + 130_000, NOW + 180_000, 1000))
    restarted.request(window, NOW + 190_000)
    first = {p.part: list(p.taken_unix_ms) for p in everything(whole, NOW + 190_000)}
    again = {p.part: list(p.taken_unix_ms) for p in everything(restarted, NOW + 190_000)}
    assert again.keys() <= first.keys()
    assert all(set(times) <= set(first[part]) for part, times in again.items())


@pytest.mark.parametrize(
    "wrong",
    [
        asked(NOW, NOW),
        asked(0, NOW),
        asked(NOW, NOW + 16 * 60_000),
        asked(NOW - 24 * 60_000, NOW + 10 * 60_000),
        asked(NOW, NOW + 1, id=""),
        asked(NOW, NOW + 1, id="x" * 65),
        asked(NOW, NOW + 1, slots=["s"] * 257),
        pb.CaptureRequest(),
    ],
)
def test_a_request_that_makes_no_sense_is_counted_and_told(wrong: pb.CaptureRequest) -> None:
    recorder = watched([NOW])
    recorder.request(wrong, NOW)
    assert recorder.due(NOW + 3_600_000) == []
    assert recorder.counters.refused == 1
    (event,) = recorder.events()
    assert event.kind == "capture_refused"
    assert recorder.events() == ()


def test_only_so_many_requests_wait() -> None:
    recorder = watched([NOW])
    for i in range(PENDING_MAX + 3):
        recorder.request(asked(NOW, NOW + 60_000, id=str(i)), NOW)
    assert recorder.counters.refused == 3
    assert len(recorder.events()) == 3
    assert len(everything(recorder, NOW + 70_000)) == PENDING_MAX


def test_fifteen_minutes_are_held_and_what_is_older_goes_without_a_count() -> None:
    recorder = watched(range(NOW, NOW + 2 * KEPT_MS, 1000))
    end = NOW + 2 * KEPT_MS
    recorder.request(asked(end - KEPT_MS, end), end)
    parts = everything(recorder, end + SETTLE_MS)
    assert sum(len(p.taken_unix_ms) for p in parts) == KEPT_MS // 1000
    assert recorder.counters.dropped_readings == 0
    assert recorder.held_bytes < 12 * (KEPT_MS // 1000 + 100)


def test_a_slot_that_is_gone_is_forgotten() -> None:
    recorder = watched([NOW], "gone")
    watched(range(NOW + KEPT_MS, NOW + 2 * KEPT_MS, 1000), recorder=recorder)
    recorder.request(asked(NOW + KEPT_MS, NOW + KEPT_MS + 1000), NOW + 2 * KEPT_MS)
    assert {p.slot for p in everything(recorder, NOW + 2 * KEPT_MS)} == {"a"}


def test_memory_is_bounded_and_the_oldest_gives_way_counted() -> None:
    recorder = Recorder(bytes_max=100_000)
    watched(range(NOW, NOW + 600_000, 100), "a", "b", recorder=recorder)
    assert recorder.held_bytes < 101_000
    held = recorder.held_bytes // 12
    assert 12_000 - recorder.counters.dropped_readings == held
    recorder.request(asked(NOW, NOW + 600_000), NOW + 700_000)
    newest = {p.slot: max(p.taken_unix_ms) for p in everything(recorder, NOW + 700_000)}
    assert newest == {"a": NOW + 599_900, "b": NOW + 599_900}


def test_parts_come_a_few_at_a_time_and_each_fits_a_payload() -> None:
    names = [*FIELDS, *(f"more_{i}" for i in range(COLUMNS_MAX))][: COLUMNS_MAX + 4]
    recorder = Recorder(bytes_max=1 << 30)
    for taken in range(NOW, NOW + 10 * 60_000, 50):  # twice as often as it may be asked for
        recorder.see(reading(taken, **dict.fromkeys(names, 1e9)), ())
    recorder.request(asked(NOW, NOW + 10 * 60_000), NOW + 700_000)
    first = recorder.due(NOW + 700_000)
    second = recorder.due(NOW + 700_000)
    assert (len(first), len(second)) == (PARTS_AT_ONCE_MAX, 10 - PARTS_AT_ONCE_MAX)
    for part in (*first, *second):
        assert len(part.taken_unix_ms) == PART_READINGS_MAX
        assert len(part.columns) == COLUMNS_MAX
        assert part.ByteSize() <= PART_BYTES_MAX
    assert recorder.counters.dropped_readings == 10 * PART_READINGS_MAX


def test_a_clock_that_steps_back_loses_nothing() -> None:
    recorder = watched([*range(NOW, NOW + 60_000, 1000), *range(NOW - 5000, NOW + 5000, 1000)])
    recorder.request(asked(NOW - 10_000, NOW + 60_000), NOW + 90_000)
    assert sum(len(p.taken_unix_ms) for p in everything(recorder, NOW + 90_000)) == 70

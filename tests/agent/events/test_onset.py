"""When a card's readings turn bad, and when they are good again."""

from __future__ import annotations

from typing import Any

from flopwatch_agent.events.onset import HELD_MS, QUIET_MS, Onset
from flopwatch_agent.reading import Device, Reading
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

CARD = Device(slot="0000:18:00.0", kind="gpu", sku="NVIDIA H100 80GB HBM3", uuid="GPU-1")
POWER, THERMAL = 0x4, 0x40


class Watch:
    """An onset watcher and the readings it sees, one a second."""

    def __init__(self) -> None:
        self.onset = Onset()
        self.second = 0

    def see(
        self, seconds: int = 1, *, device: Device = CARD, alive: bool = True, **values: Value
    ) -> list[pb.Event]:
        for _ in range(seconds):
            self.second += 1
            reading = Reading(
                device=device,
                taken_unix_ms=1_790_000_000_000 + 1000 * self.second,
                boottime_ns=10**9 * self.second,
                values=values if alive else {},
                alive=alive,
                failure=None if alive else "unresponsive",
            )
            self.onset.see(reading, ())
        return list(self.onset.events())


def kinds(events: list[pb.Event]) -> list[tuple[str, int]]:
    return [(event.kind, event.code) for event in events]


def test_throttling_is_told_when_it_lasts_and_when_it_is_over() -> None:
    watch = Watch()
    watch.see(clock_event_reasons=0)
    assert watch.see(HELD_MS // 1000, clock_event_reasons=THERMAL) == []
    (onset,) = watch.see(clock_event_reasons=THERMAL)
    assert (onset.kind, onset.code, onset.slot) == ("throttle_onset", THERMAL, CARD.slot)
    assert watch.see(100, clock_event_reasons=THERMAL) == []
    assert watch.see(HELD_MS // 1000, clock_event_reasons=0) == []
    assert kinds(watch.see(clock_event_reasons=0)) == [("throttle_end", THERMAL)]


def test_a_flutter_is_neither_onset_nor_end() -> None:
    watch = Watch()
    for _ in range(100):
        assert watch.see(20, clock_event_reasons=POWER) == []
        assert watch.see(1, clock_event_reasons=0) == []


def test_the_drivers_counter_stands_before_the_bit() -> None:
    watch = Watch()
    seconds = 0.0
    told = []
    for share in (0.9,) * 40 + (0.3,) * 100 + (0.0,) * 40:
        seconds += share
        told += watch.see(throttled_power_seconds_total=seconds, clock_event_reasons=0)
    # A card held back for a third of the time is neither: the state stands.
    assert kinds(told) == [("throttle_onset", POWER), ("throttle_end", POWER)]
    assert told[1].time_unix_ms - told[0].time_unix_ms > 100_000


def test_silence_of_the_driver_says_nothing() -> None:
    watch = Watch()
    watch.see(20, clock_event_reasons=THERMAL)
    assert watch.see(60, alive=False) == []
    assert watch.see(60, clock_event_reasons=Absence.FAILED) == []
    assert watch.see(20, clock_event_reasons=THERMAL) == []


def test_errors_that_rise_are_told_with_their_number_and_not_too_often() -> None:
    watch = Watch()
    assert watch.see(ecc_uncorrected_total=5.0, nvlink_errors_total=0.0) == []
    events = watch.see(ecc_uncorrected_total=7.0, nvlink_errors_total=3.0)
    assert kinds(events) == [("ecc_uncorrected", 2), ("nvlink_errors", 3)]
    assert watch.see(QUIET_MS // 1000 - 1, ecc_uncorrected_total=9.0) == []
    assert kinds(watch.see(2, ecc_uncorrected_total=10.0)) == [("ecc_uncorrected", 3)]
    # The driver was loaded again: the counter began anew.
    assert watch.see(100, ecc_uncorrected_total=0.0) == []
    assert kinds(watch.see(ecc_uncorrected_total=1.0)) == [("ecc_uncorrected", 1)]


def test_row_remapping_is_told_when_it_appears() -> None:
    watch = Watch()
    assert watch.see(5, remapped_rows_pending=0.0, remapped_rows_failed=0.0) == []
    events = watch.see(5, remapped_rows_pending=1.0, remapped_rows_failed=0.0)
    assert kinds(events) == [("remap_pending", 1)]
    events = watch.see(5, remapped_rows_pending=1.0, remapped_rows_failed=1.0)
    assert kinds(events) == [("remap_failed", 1)]
    # Another card in the slot has a history of its own.
    other = Device(slot=CARD.slot, kind="gpu", sku=CARD.sku, uuid="GPU-2")
    assert kinds(watch.see(device=other, remapped_rows_pending=1.0)) == [("remap_pending", 1)]


def test_a_link_that_is_slow_under_load_is_told_and_one_that_sleeps_is_not() -> None:
    link: dict[str, Any] = {"pcie_link_generation_limit": 5.0, "pcie_link_width_limit": 16.0}
    watch = Watch()
    idle = {**link, "pcie_link_generation": 1.0, "pcie_link_width": 16.0, "sm_active_ratio": 0.0}
    assert watch.see(100, **idle) == []
    busy = {**idle, "sm_active_ratio": 0.9, "pcie_link_generation": 5.0, "pcie_link_width": 8.0}
    (event,) = watch.see(100, **busy)
    assert (event.kind, event.code) == ("pcie_degraded", 8)
    assert "16" in event.text
    assert watch.see(100, **{**busy, "pcie_link_width": 16.0}) == []
    assert watch.see(100, sm_active_ratio=0.9) == []

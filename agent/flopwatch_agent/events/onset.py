"""A watcher that tells when a card's own readings turn bad: throttling, memory errors, links. Pure.

Throttling has a state per card and reason:

    free ──held back in every reading for 30 s──► throttled: `throttle_onset`
    throttled ──not held back in any for 30 s──► free: `throttle_end`

A reading says "held back" where at least half of the time since the one before was spent so by the
driver's counter, or where the reason's bit is set if there is no counter; "not held back" is below a
tenth. Between the two, and where the driver says nothing, neither run goes on.

Counters of errors tell a rise, and not oftener than once in `QUIET_MS`; a fall is a restart of the counter.
Gauges tell when they become 1. All of it begins anew when another card is in the slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from flopwatch_agent.reading import Reading, Share
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

HELD_MS: Final = 30_000
QUIET_MS: Final = 60_000
_HELD_RATIO_MIN: Final = 0.5
_FREE_RATIO_MAX: Final = 0.1
_LOAD_RATIO_MIN: Final = 0.05
"""A card whose SMs do less may let its link sleep."""

_REASONS: Final = (
    (0x4, "power limit", "throttled_power_seconds_total"),
    (0x10, "sync boost", "throttled_sync_boost_seconds_total"),
    (0x20, "software thermal limit", "throttled_thermal_sw_seconds_total"),
    (0x40, "hardware thermal protection", "throttled_thermal_hw_seconds_total"),
    (0x80, "external power brake", "throttled_power_brake_seconds_total"),
)
"""Bit of ``clock_event_reasons``, its name, and the driver's counter of it."""

_COUNTERS: Final = (
    ("ecc_uncorrected_total", "ecc_uncorrected", "memory errors not corrected"),
    ("nvlink_errors_total", "nvlink_errors", "errors of the NVLinks"),
)
_GAUGES: Final = (
    ("remapped_rows_pending", "remap_pending", "rows of memory wait to be remapped"),
    ("remapped_rows_failed", "remap_failed", "remapping rows of memory failed"),
)
_LINKS: Final = (
    ("pcie_link_generation", "generation"),
    ("pcie_link_width", "width"),
)


@dataclass(slots=True)
class _Run:
    """One reason, or one link, of one card. Attributes: since_ms: of the run against the state."""

    bad: bool = False
    since_ms: float | None = None

    def turned(self, looks_bad: bool | None, now_ms: float) -> bool:
        """Take a reading; return whether the state changed with it."""
        if looks_bad is None or looks_bad == self.bad:
            self.since_ms = None
            return False
        if self.since_ms is None:
            self.since_ms = now_ms
        if now_ms - self.since_ms < HELD_MS:
            return False
        self.bad, self.since_ms = looks_bad, None
        return True


@dataclass(slots=True)
class _Card:
    """What is remembered of one card. Attributes: told_ms, told: of each counter's last event."""

    uuid: str | None
    reading: Reading
    runs: dict[str, _Run] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    told_ms: dict[str, float] = field(default_factory=dict)

    def run(self, name: str) -> _Run:
        return self.runs.setdefault(name, _Run())


class Onset:
    """See the module."""

    def __init__(self) -> None:
        self._cards: dict[str, _Card] = {}
        self._events: list[pb.Event] = []

    def see(self, reading: Reading, shares: Sequence[Share]) -> None:
        """Look at a reading; a dark one says nothing."""
        if not reading.alive or reading.device.kind != "gpu":
            return
        card = self._cards.get(reading.device.slot)
        if card is None or card.uuid != reading.device.uuid:
            card = _Card(uuid=reading.device.uuid, reading=reading)
            self._cards[reading.device.slot] = card
            card.told = {name: v for name, _, _ in _COUNTERS if (v := _value(reading, name))}
        else:
            self._see_throttling(card, reading)
        self._see_counters(card, reading)
        self._see_gauges(card, reading)
        self._see_links(card, reading)
        card.reading = reading

    def events(self) -> Sequence[pb.Event]:
        """Return what began or ended since the last call."""
        events, self._events = self._events, []
        return events

    def _see_throttling(self, card: _Card, reading: Reading) -> None:
        for bit, name, counter in _REASONS:
            held = _held(card.reading, reading, bit, counter)
            run = card.run(name)
            if run.turned(held, _now_ms(reading)):
                kind = "throttle_onset" if run.bad else "throttle_end"
                self._tell(reading, kind, bit, name)

    def _see_counters(self, card: _Card, reading: Reading) -> None:
        for name, kind, words in _COUNTERS:
            value = _value(reading, name)
            if value is None:
                continue
            before = min(card.told.get(name, 0.0), value)
            quiet_ms = _now_ms(reading) - card.told_ms.get(name, -QUIET_MS)
            if value > before and quiet_ms < QUIET_MS:
                continue
            if value > before:
                card.told_ms[name] = _now_ms(reading)
                rise = round(value - before)
                self._tell(reading, kind, rise, f"{rise} {words} more, {value:.0f} in all")
            card.told[name] = value

    def _see_gauges(self, card: _Card, reading: Reading) -> None:
        for name, kind, words in _GAUGES:
            value = _value(reading, name)
            if value is None:
                continue
            if value and not card.told.get(name):
                self._tell(reading, kind, round(value), words)
            card.told[name] = value

    def _see_links(self, card: _Card, reading: Reading) -> None:
        active = _value(reading, "sm_active_ratio")
        if active is None:
            active = _value(reading, "gpu_utilization_ratio")
        for name, words in _LINKS:
            now, limit = _value(reading, name), _value(reading, f"{name}_limit")
            slow = None
            if now is not None and limit is not None and active is not None:
                slow = now < limit if active >= _LOAD_RATIO_MIN else None
            run = card.run(name)
            if run.turned(slow, _now_ms(reading)) and run.bad:
                text = f"PCIe {words} {now:.0f} under load, the slot allows {limit:.0f}"
                self._tell(reading, "pcie_degraded", round(now or 0), text)

    def _tell(self, reading: Reading, kind: str, code: int, text: str) -> None:
        event = pb.Event(
            slot=reading.device.slot,
            time_unix_ms=reading.taken_unix_ms,
            kind=kind,
            code=code,
            text=text,
        )
        self._events.append(event)


def _now_ms(reading: Reading) -> float:
    return reading.boottime_ns / 1e6


def _value(reading: Reading, name: str) -> float | None:
    value = reading.values.get(name)
    return None if value is None or isinstance(value, Absence) else float(value)


def _held(before: Reading, now: Reading, bit: int, counter: str) -> bool | None:
    """Return whether the card was held back between two readings; None where that is not clear."""
    old, new = _value(before, counter), _value(now, counter)
    seconds = (now.boottime_ns - before.boottime_ns) / 1e9
    if old is not None and new is not None and new >= old and seconds > 0:
        ratio = (new - old) / seconds
        return True if ratio >= _HELD_RATIO_MIN else False if ratio < _FREE_RATIO_MAX else None
    reasons = _value(now, "clock_event_reasons")
    return None if reasons is None else bool(int(reasons) & bit)

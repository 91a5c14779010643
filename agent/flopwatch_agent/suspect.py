"""Telemetry that knows when it is lying: values that cannot be so are failed before anyone counts them.

    source ── reading ──► Suspicion.checked ── reading ──► fold, watchers

A value that is caught becomes ``Absence.FAILED`` and never a zero, a limit or a guess. Onset and end are
events (``counter_suspect``, ``counter_trusted``); in between the value fails silently. Caught are:

- the impossible: not a number, negative, or a ratio above ``RATIO_MAX``;
- silent zeros: no SM cycle counted while kernels run and the board draws power (NVIDIA/DCGM#303);
- stuck values: the same double, bit for bit, while the load moves;
- an energy counter that is nowhere near the power it sums up.

An idle card is honest: its zeros are zeros. So is a steady one: what never changes is suspect only while
something else, measured apart from it, does. Pure but for what it remembers; time is the readings' own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from flopwatch_agent.reading import FIELDS, Reading
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

IMPOSSIBLE, SILENT_ZERO, STUCK, ENERGY = 1, 2, 3, 4
"""Codes of the events."""

RATIO_MAX: Final = 1.02
"""A mean over a pair of samples may end a little above 1 (two counters are not latched at one instant). MIG
instances were seen at 1.29 of "their" SMs (NVIDIA/DCGM#152): a wrong divisor, and no number to publish."""

ZERO_SECONDS: Final = 2.0
"""NVML's utilisation is of up to the last second: at a job's edge it may disagree with the pair of samples
for so long and no longer. A resident kernel keeps one SM of some hundred active: more than exactly 0."""

ZERO_SECONDS_DCGM: Final = 120.0
"""An exporter's means come an interval late (30 s by default): what it says may be of before the job."""

BUSY_UTILISATION_MIN: Final = 0.95
BUSY_POWER_RATIO_MIN: Final = 0.3
"""Of the limit. Idle cards draw 10 to 22 % of it (H100 72 of 700 W, A100 60 of 400 W, L4 16 of 72 W)."""

STUCK_SECONDS: Final = 120.0
"""The metrics are quotients of counts of about 1e9 cycles: under a load that moves, the same double twice is
chance; for two minutes, at a reading a second, it is none."""

WITNESS_UTILISATION_MIN: Final = 0.2
WITNESS_POWER_FACTOR_MIN: Final = 1.2
"""How far a witness must have moved while the value stood: well beyond the noise of a steady load (5 % of
power). The power sensor and the utilisation do not come from the counters that they bear witness against."""

ENERGY_SECONDS_MIN: Final = 60.0
ENERGY_FACTOR_MAX: Final = 2.0
ENERGY_JOULES_MIN: Final = 1_000.0
"""Over a minute the integral of power read once a second is within some percent of the counter; boards whose
sensor looks a quarter of the time (arXiv 2312.02741) may be off by tens. Twice, and by more than a card
draws at idle in 15 s, is neither."""

GAP_SECONDS_MAX: Final = 30.0
"""Longer between two readings, and nothing is known of the time between: what was gathered is forgotten."""

END_READINGS: Final = 30
"""A suspicion ends after so many readings without it, so that one that comes and goes is one event."""

_EVENTS_MAX: Final = 1_000
_VALUE_MAX: Final = 1e30
_BELOW_ZERO: Final = frozenset({"temperature_celsius", "memory_temperature_celsius"})
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    name: (
        -_VALUE_MAX if name in _BELOW_ZERO else 0.0,
        RATIO_MAX if name.endswith("_ratio") else _VALUE_MAX,
    )
    for name in FIELDS
}
_UNBOUNDED: Final = (-math.inf, math.inf)
_PROFILED: Final = tuple(
    name
    for name in FIELDS
    if name.endswith(("_active_ratio", "_occupancy_ratio")) and name != "graphics_active_ratio"
)
"""Counters of the SMs: what is silently zero is so all together, and what may be stuck."""

_Doubts = dict[tuple[str, int], str]
"""(field, code) → what is wrong with it, in words."""


@dataclass(slots=True)
class _Slot:
    """What is remembered of one slot.

    Attributes:
        doubts: those told and not ended → readings since they last held.
        zero_since_ns: boottime since when the counters look silently zero.
        last: profiled field → its value, and since when (boottime) it has been that.
        load: utilisation and power from which a move is measured.
        moved_ns: boottime when the load last moved.
        energy: of the window's first reading: boottime (ns) and counter (J), then joules by power since.
        energy_wrong: what the last whole window said.
        disagreement: what was told last of the cycle counters.
    """

    doubts: dict[tuple[str, int], int] = field(default_factory=dict)
    zero_since_ns: int | None = None
    last: dict[str, tuple[Value, int]] = field(default_factory=dict)
    load: tuple[float, float] = (0.0, 0.0)
    moved_ns: int = 0
    read_ns: int = 0
    energy: tuple[int, float, float] | None = None
    energy_wrong: str | None = None
    disagreement: str | None = None

    def forget(self) -> None:
        """Forget what was gathered of the time before; doubts stay."""
        self.zero_since_ns = None
        self.last.clear()
        self.energy = None


class Suspicion:
    """Looks at the readings of any number of slots. Attributes: failed_total: values failed so far."""

    def __init__(self) -> None:
        self.failed_total = 0
        self._slots: dict[str, _Slot] = {}
        self._events: deque[pb.Event] = deque(maxlen=_EVENTS_MAX)

    def checked(self, reading: Reading) -> Reading:
        """Return the reading, with what cannot be so failed; the same object where nothing is wrong."""
        slot = self._slots.setdefault(reading.device.slot, _Slot())
        if not reading.alive:
            slot.forget()
            return reading
        seconds = (reading.boottime_ns - slot.read_ns) / 1e9
        slot.read_ns = reading.boottime_ns
        if not 0.0 < seconds <= GAP_SECONDS_MAX:
            slot.forget()
        values = reading.values
        doubts: _Doubts = {
            **dict(_impossible(values)),
            **_silent_zero(slot, reading),
            **_stuck(slot, values),
            **_energy(slot, reading, seconds),
        }
        wrong = {name for name, _ in doubts}
        if any(code == SILENT_ZERO for _, code in doubts):
            wrong.update(name for name in _PROFILED if _is_zero(values.get(name)))
        instances = reading.instances
        if instances:
            instances, of_instances = _checked_instances(instances)
            doubts |= of_instances
        self._tell(slot, reading, doubts)
        if not doubts:
            return reading
        self.failed_total += max(len(wrong), len(doubts))
        failed = dict.fromkeys(wrong, Absence.FAILED)
        return replace(reading, values={**values, **failed}, instances=instances)

    def events(self) -> Sequence[pb.Event]:
        """Return what is worth telling since the last call."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def _tell(self, slot: _Slot, reading: Reading, doubts: _Doubts) -> None:
        for key, why in doubts.items():
            if key not in slot.doubts:
                self._event(reading, "counter_suspect", key[1], "warning", f"{key[0]}: {why}")
            slot.doubts[key] = 0
        for key in [key for key in slot.doubts if key not in doubts]:
            slot.doubts[key] += 1
            if slot.doubts[key] >= END_READINGS:
                del slot.doubts[key]
                text = f"{key[0]} is believed again"
                self._event(reading, "counter_trusted", key[1], "info", text)
        if reading.disagreement is not None and slot.disagreement is None:
            text = f"cycle counters are not used: {reading.disagreement}"
            self._event(reading, "counter_disagreement", 0, "warning", text)
        slot.disagreement = reading.disagreement

    def _event(self, reading: Reading, kind: str, code: int, severity: str, text: str) -> None:
        self._events.append(
            pb.Event(
                slot=reading.device.slot,
                time_unix_ms=reading.taken_unix_ms,
                kind=kind,
                code=code,
                severity=severity,
                text=text,
            )
        )


def _impossible(values: Mapping[str, Value]) -> Iterator[tuple[tuple[str, int], str]]:
    for name, value in values.items():
        low, high = _BOUNDS.get(name, _UNBOUNDED)
        # An absence is a small number too.
        if not low <= value <= high and value.__class__ is not Absence:
            yield (name, IMPOSSIBLE), f"{value:.6g} is not between {low:g} and {high:g}"


def _checked_instances(
    instances: Mapping[str, Mapping[str, Value]],
) -> tuple[Mapping[str, Mapping[str, Value]], _Doubts]:
    """Return the values of the MIG devices without the impossible ones, and what was wrong."""
    doubts: _Doubts = {}
    checked = dict(instances)
    for uuid, values in instances.items():
        for (name, code), why in _impossible(values):
            doubts[f"{name} of {uuid}", code] = why
            checked[uuid] = {**checked[uuid], name: Absence.FAILED}
    return checked, doubts


def _load(slot: _Slot, values: Mapping[str, Value]) -> tuple[float, float]:
    """Return utilisation and power; what is not known is as it was."""
    used, watts = values.get("gpu_utilization_ratio"), values.get("power_watts")
    return (
        used if isinstance(used, float) else slot.load[0],
        watts if isinstance(watts, float) else slot.load[1],
    )


def _is_zero(value: Value | None) -> bool:
    return isinstance(value, float) and value == 0.0


def _silent_zero(slot: _Slot, reading: Reading) -> _Doubts:
    values = reading.values
    if "sm_active_ratio" not in values:
        return {}  # between two samples
    used, watts = values.get("gpu_utilization_ratio"), values.get("power_watts")
    limit = values.get("power_limit_watts")
    silent = (
        _is_zero(values["sm_active_ratio"])
        and isinstance(used, float)
        and isinstance(watts, float)
        and isinstance(limit, float)
        and used >= BUSY_UTILISATION_MIN
        and watts >= BUSY_POWER_RATIO_MIN * limit > 0.0
    )
    if not silent:
        slot.zero_since_ns = None
    elif slot.zero_since_ns is None:
        slot.zero_since_ns = slot.read_ns
    least = ZERO_SECONDS_DCGM if reading.method == "dcgm" else ZERO_SECONDS
    if slot.zero_since_ns is None or slot.read_ns - slot.zero_since_ns < least * 1e9:
        return {}
    why = f"0 with every counter of the SMs, at a utilisation of {used:.0%} and {watts:.0f} W"
    return {("sm_active_ratio", SILENT_ZERO): why}


def _stuck(slot: _Slot, values: Mapping[str, Value]) -> _Doubts:
    doubts: _Doubts = {}
    (used, watts), (used_before, watts_before) = _load(slot, values), slot.load
    if abs(used - used_before) >= WITNESS_UTILISATION_MIN or max(
        watts, watts_before
    ) > WITNESS_POWER_FACTOR_MIN * min(watts, watts_before):
        slot.load, slot.moved_ns = (used, watts), slot.read_ns
    last, now_ns = slot.last, slot.read_ns
    for name in _PROFILED:
        value = values.get(name)
        if value is None:
            continue  # between two samples
        before = last.get(name)
        if before is None or before[0] != value:
            last[name] = (value, now_ns)
        # All and nothing are where honest counters stand still.
        elif (
            before[1] < slot.moved_ns
            and now_ns - before[1] >= STUCK_SECONDS * 1e9
            and isinstance(value, float)
            and 0.0 < value < 1.0
        ):
            doubts[name, STUCK] = f"stands at {value!r} while the load moves"
    return doubts


def _energy(slot: _Slot, reading: Reading, seconds: float) -> _Doubts:
    """Judge the counter by whole windows; what the last one said holds until the next."""
    joules, watts = reading.values.get("energy_joules_total"), reading.values.get("power_watts")
    if not isinstance(joules, float) or not isinstance(watts, float):
        slot.energy = None
        return {}  # absent: there is nothing to believe
    since_ns, start, by_power = slot.energy or (reading.boottime_ns, joules, 0.0)
    if slot.energy is not None:
        by_power += watts * seconds
    if joules < start:  # it started again
        since_ns, start, by_power = reading.boottime_ns, joules, 0.0
    if reading.boottime_ns - since_ns >= ENERGY_SECONDS_MIN * 1e9:
        counted = joules - start
        low, high = sorted((counted, by_power))
        slot.energy_wrong = None
        if high > ENERGY_FACTOR_MAX * low and high - low >= ENERGY_JOULES_MIN:
            what = f"counted {counted:.0f} J where the power adds up to {by_power:.0f} J"
            slot.energy_wrong = what
        since_ns, start, by_power = reading.boottime_ns, joules, 0.0
    slot.energy = (since_ns, start, by_power)
    why = slot.energy_wrong
    return {} if why is None else {("energy_joules_total", ENERGY): why}

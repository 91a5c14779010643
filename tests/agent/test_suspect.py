"""Values that cannot be so are failed; honest ones, constant ones among them, are left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from flopwatch_agent.reading import Device, Reading
from flopwatch_agent.suspect import (
    END_READINGS,
    ENERGY,
    IMPOSSIBLE,
    SILENT_ZERO,
    STUCK,
    STUCK_SECONDS,
    Suspicion,
)
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

CARD = Device(slot="0000:18:00.0", kind="gpu", sku="NVIDIA H100 80GB HBM3")
BUSY: Mapping[str, Value] = {
    "gpu_utilization_ratio": 1.0,
    "sm_active_ratio": 0.9,
    "sm_occupancy_ratio": 0.6,
    "tensor_active_ratio": 0.45,
    "dram_active_ratio": 0.3,
    "fp64_active_ratio": 0.0,
    "power_watts": 620.0,
    "power_limit_watts": 700.0,
    "temperature_celsius": 60.0,
}
IDLE: Mapping[str, Value] = {
    **dict.fromkeys((n for n in BUSY if n.endswith("_ratio")), 0.0),
    "power_watts": 72.0,
    "power_limit_watts": 700.0,
    "temperature_celsius": -2.0,
}
ZEROS: Mapping[str, Value] = {
    **dict.fromkeys((n for n in BUSY if n.endswith("_ratio")), 0.0),
    "gpu_utilization_ratio": 1.0,
}


class Card:
    """Readings of one card, a second apart, and what became of them."""

    def __init__(self) -> None:
        self.suspicion = Suspicion()
        self.events: list[pb.Event] = []
        self._second = 0.0
        self._joules = 1e6

    def read(self, values: Mapping[str, Value] = BUSY, **more: Any) -> Reading:
        self._second += more.pop("seconds", 1)
        watts = values.get("power_watts", 0.0)
        self._joules += watts if isinstance(watts, float) else 0.0
        energy: Mapping[str, Value] = {"energy_joules_total": self._joules}
        raw = Reading(
            device=CARD,
            taken_unix_ms=round(self._second * 1000),
            boottime_ns=round(self._second * 10) * 100_000_000,
            values={**energy, **values},
            **more,
        )
        checked = self.suspicion.checked(raw)
        self.events += self.suspicion.events()
        self.changed = checked is not raw
        return checked

    def told(self) -> list[tuple[str, int]]:
        return [(event.kind, event.code) for event in self.events]


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sm_active_ratio", 1.294),
        ("tensor_active_ratio", -0.01),
        ("gpu_utilization_ratio", 2.55),
        ("dram_active_ratio", math.nan),
        ("sm_clock_mhz", math.inf),
        ("pcie_tx_bytes_per_second", -1.0),
        ("power_watts", -5.0),
        ("energy_joules_total", math.nan),
    ],
)
def test_the_impossible_fails_at_once_and_alone(card: Card, name: str, value: float) -> None:
    card.read()
    values = card.read({**BUSY, name: value}).values
    assert values[name] is Absence.FAILED
    assert {n for n, v in values.items() if isinstance(v, Absence)} == {name}
    [event] = card.events
    assert (event.kind, event.code, event.slot) == ("counter_suspect", IMPOSSIBLE, CARD.slot)
    assert event.text.startswith(f"{name}: ")


def test_a_little_above_one_and_below_freezing_are_possible(card: Card) -> None:
    card.read({**BUSY, "sm_active_ratio": 1.01, "temperature_celsius": -10.0})
    assert not card.changed


def test_a_suspicion_is_told_once_and_ends_once(card: Card) -> None:
    for _ in range(3):
        card.read({**BUSY, "sm_active_ratio": 1.3})
        card.read()
    assert card.told() == [("counter_suspect", IMPOSSIBLE)]
    for _ in range(END_READINGS):
        card.read()
    assert card.told() == [("counter_suspect", IMPOSSIBLE), ("counter_trusted", IMPOSSIBLE)]
    assert card.events[-1].text == "sm_active_ratio is believed again"
    card.read({**BUSY, "sm_active_ratio": 1.3})
    assert card.told()[2:] == [("counter_suspect", IMPOSSIBLE)]


def test_zeros_under_a_load_are_failed_and_never_published_for_long(card: Card) -> None:
    seen = [card.read({**BUSY, **ZEROS}) for _ in range(10)]
    states = [reading.values["sm_active_ratio"] for reading in seen]
    assert states == [0.0] * 2 + [Absence.FAILED] * 8
    assert seen[-1].values["tensor_active_ratio"] is Absence.FAILED
    assert seen[-1].values["fp64_active_ratio"] is Absence.FAILED
    assert seen[-1].values["gpu_utilization_ratio"] == 1.0
    assert card.told() == [("counter_suspect", SILENT_ZERO)]
    assert card.read().values["sm_active_ratio"] == 0.9


def test_readings_between_two_samples_neither_hide_zeros_nor_hasten_the_verdict(card: Card) -> None:
    between = {
        n: v for n, v in BUSY.items() if not n.endswith(("_active_ratio", "occupancy_ratio"))
    }
    states = []
    for i in range(30):
        values = {**BUSY, **ZEROS} if i % 2 == 0 else between
        states.append(card.read(values, seconds=0.1).values.get("sm_active_ratio"))
    assert [i for i, state in enumerate(states) if state is Absence.FAILED] == [20, 22, 24, 26, 28]


def test_zeros_of_an_exporter_may_be_of_before_the_job(card: Card) -> None:
    states = [
        card.read({**BUSY, **ZEROS}, method="dcgm").values["sm_active_ratio"] for _ in range(125)
    ]
    assert states == [0.0] * 120 + [Absence.FAILED] * 5


def test_a_witness_that_is_not_heard_has_not_moved(card: Card) -> None:
    for i in range(round(2 * STUCK_SECONDS)):
        heard: dict[str, Value] = {"power_watts": Absence.FAILED} if i % 2 else {}
        card.read({**BUSY, **heard})
    assert card.events == []


def test_zeros_that_are_absent_stay_absent(card: Card) -> None:
    values = {**BUSY, **ZEROS, "fp64_active_ratio": Absence.NOT_SUPPORTED}
    for _ in range(3):
        reading = card.read(values)
    assert reading.values["fp64_active_ratio"] is Absence.NOT_SUPPORTED


@pytest.mark.parametrize(
    "values",
    [
        IDLE,
        {**BUSY, **ZEROS, "power_watts": 90.0},  # a context that does nothing, as some drivers say
        {**BUSY, **ZEROS, "gpu_utilization_ratio": 0.5},
        {**BUSY, "tensor_active_ratio": 0.0, "dram_active_ratio": 0.0},  # not that kind of work
        {**BUSY, "tensor_active_ratio": 1.0, "sm_active_ratio": 1.0},
        BUSY,
    ],
)
def test_an_honest_constant_is_believed_for_ever(card: Card, values: Mapping[str, Value]) -> None:
    for _ in range(round(3 * STUCK_SECONDS)):
        card.read(values)
        assert not card.changed
    assert card.events == []


def test_a_value_that_stands_while_the_load_moves_is_stuck(card: Card) -> None:
    def load(i: int) -> dict[str, Value]:
        half = {"sm_active_ratio": 0.5 + i * 1e-6, "dram_active_ratio": 0.2 + i * 1e-6}
        power = 620.0 if i % 2 else 400.0
        return {**BUSY, **half, "sm_occupancy_ratio": 0.4 + i * 1e-6, "power_watts": power}

    count = round(STUCK_SECONDS)
    states = [card.read(load(i)).values["tensor_active_ratio"] for i in range(count + 5)]
    assert states == [0.45] * count + [Absence.FAILED] * 5
    assert card.told() == [("counter_suspect", STUCK)]
    assert "tensor_active_ratio: stands at 0.45" in card.events[0].text
    assert card.read({**load(500), "tensor_active_ratio": 0.4501}).values[
        "tensor_active_ratio"
    ] == pytest.approx(0.4501)


def test_a_hole_between_readings_starts_the_watch_over(card: Card) -> None:
    for i in range(round(2 * STUCK_SECONDS)):
        power = 620.0 if i % 2 else 400.0
        card.read({**BUSY, "power_watts": power}, seconds=31 if i % 50 == 49 else 1)
    assert STUCK not in [code for _, code in card.told()]


def test_an_energy_counter_far_from_the_power_is_failed_until_it_agrees(card: Card) -> None:
    for _ in range(130):
        reading = card.read({**BUSY, "energy_joules_total": 5e5})
    assert reading.values["energy_joules_total"] is Absence.FAILED
    assert reading.values["power_watts"] == 620.0
    assert card.told() == [("counter_suspect", ENERGY)]
    assert "counted 0 J" in card.events[0].text
    for _ in range(220):  # a window with the jump in it, whole ones that agree, the end
        reading = card.read()
    assert isinstance(reading.values["energy_joules_total"], float)
    assert card.told()[-1] == ("counter_trusted", ENERGY)


def test_an_energy_counter_that_restarts_or_differs_a_little_is_honest(card: Card) -> None:
    joules = 1e6
    for i in range(400):
        joules = 0.0 if i == 150 else joules + 620.0 * 1.3
        card.read({**BUSY, "energy_joules_total": joules})
    assert card.events == []


def test_a_silent_driver_is_not_judged(card: Card) -> None:
    for _ in range(2):
        card.read({**BUSY, **ZEROS})
    card.read({}, alive=False, failure="unresponsive")
    assert not card.changed
    card.read({**BUSY, **ZEROS})
    assert not card.changed
    assert card.events == []


def test_values_of_a_mig_device_are_looked_at_too(card: Card) -> None:
    parts = {"MIG-1": {"sm_active_ratio": 1.294, "tensor_active_ratio": 0.4}, "MIG-2": dict(BUSY)}
    reading = card.read(instances=parts)
    assert reading.instances["MIG-1"] == {
        "sm_active_ratio": Absence.FAILED,
        "tensor_active_ratio": 0.4,
    }
    assert reading.instances["MIG-2"] == BUSY
    assert reading.values["sm_active_ratio"] == 0.9
    assert card.events[0].text.startswith("sm_active_ratio of MIG-1: 1.294 is not between")


def test_cycle_counters_that_were_given_up_are_told_once(card: Card) -> None:
    why = "tensor_active_ratio is 0.2000 by cycles and 0.4600 by utilisation"
    for said in (None, why, why, None, why):
        card.read(disagreement=said)
        assert not card.changed
    assert card.told() == [("counter_disagreement", 0)] * 2
    assert why in card.events[0].text

"""Cards cut into MIG devices: what the child says of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fakenvml import Script, device, mig
from flopwatch_agent.driver.messages import DeviceReading
from flopwatch_proto.rows import Absence

BIG = "MIG-00000000-0000-0000-0000-000000000000"
SMALL = "MIG-00000000-0000-0000-0000-000000000001"
ONE_G = {"sms": 16, "gi_slices": 1, "ci_slices": 1, "memory_mib": 9984}

Start = Callable[..., Any]


def card(**keys: Any) -> list[str]:
    return device(0, mig_mode=1, sm_clock_mhz=1650, **keys)


def cycles(scale: float, tensor: float) -> dict[int, float]:
    elapsed = 1650e6 * scale
    return {248: elapsed, 249: 0.9 * elapsed, 250: tensor * elapsed}


def instance_values(reading: DeviceReading, uuid: str, name: str) -> float | Absence:
    said = reading.instances[uuid]
    return said.values.get(name, Absence(said.absences.get(name, Absence.MISSING)))


def test_each_device_has_its_weight_and_the_metrics_of_its_gpu_instance(
    start: Start, script: Script
) -> None:
    script.write(
        card(gpm={2: 50, 5: 25, 20: 10}),
        mig(0, 0, gi=1, gpm={2: 90, 5: 45, 10: 30}),
        mig(0, 1, gi=9, gpm={2: 20, 5: 10, 10: 5}, **ONE_G),
    )
    child = start()
    [info] = child.inventory().devices
    assert info.instances == (BIG, SMALL)
    assert info.instance_weights == pytest.approx((3 / 7, 1 / 7))
    first, second = child.card(), child.card()
    assert instance_values(first, BIG, "sm_active_ratio") is Absence.MISSING
    assert instance_values(second, BIG, "sm_active_ratio") == pytest.approx(0.90)
    assert instance_values(second, BIG, "tensor_active_ratio") == pytest.approx(0.45)
    assert instance_values(second, SMALL, "dram_active_ratio") == pytest.approx(0.05)
    assert instance_values(second, SMALL, "fp64_active_ratio") is Absence.NOT_SUPPORTED
    assert "pcie_tx_bytes_per_second" not in second.instances[BIG].values  # the card's alone
    assert second.values["sm_active_ratio"] == pytest.approx(0.50)


def test_the_cycles_of_an_instance_are_measured_against_its_own_sms(
    start: Start, script: Script
) -> None:
    script.write(
        card(gpm={2: 90, 5: 25, **cycles(132, 0.25)}),
        mig(0, 0, gi=1, gpm={2: 90, 5: 45, **cycles(60, 0.45)}),
        mig(0, 1, gi=9, gpm={2: 90, 5: 10, **cycles(16, 0.10)}, **ONE_G),
    )
    child = start()
    child.inventory()
    for _ in range(3):
        reading = child.card()
    assert reading.method == "cycle_counters"
    assert reading.disagreement is None
    assert instance_values(reading, SMALL, "tensor_active_ratio") == pytest.approx(0.10)
    assert instance_values(reading, SMALL, "sm_clock_mhz") == pytest.approx(1650, rel=0.5)


def test_compute_instances_of_one_gpu_instance_share_what_it_counts(
    start: Start, script: Script
) -> None:
    part: dict[str, Any] = {"sms": 20, "ci_slices": 1}
    script.write(
        card(gpm={2: 50, 5: 25}),
        mig(0, 0, gi=1, ci=0, gpm={2: 90, 5: 45, **cycles(60, 0.45)}, **part),
        mig(0, 1, gi=1, ci=1, **part),
    )
    child = start()
    [info] = child.inventory().devices
    assert info.instance_weights == pytest.approx((1 / 7, 1 / 7))
    for _ in range(3):
        reading = child.card()
    assert reading.disagreement is None  # the counters are of all 60 SMs, not of the instance's 20
    assert instance_values(reading, BIG, "tensor_active_ratio") == pytest.approx(0.45)
    assert instance_values(reading, SMALL, "tensor_active_ratio") == pytest.approx(0.45)
    assert child.calls()["nvmlGpmMigSampleGet"] == 3


def test_a_card_that_cannot_be_sampled_as_a_whole_is_the_sum_of_its_instances(
    start: Start, script: Script
) -> None:
    script.write(
        card(gpm={2: 50}),
        mig(0, 0, gi=1, gpm={2: 90, 5: 45}),
        "error nvmlGpmSampleGet UNKNOWN",
    )
    child = start()
    child.inventory()
    child.read()
    reading = child.card()
    assert reading.values["tensor_active_ratio"] == pytest.approx(0.45 * 3 / 7)
    assert reading.absences["pcie_tx_bytes_per_second"] == Absence.FAILED


def test_one_instance_without_cycle_counters_makes_the_whole_reading_the_lesser(
    start: Start, script: Script
) -> None:
    script.write(
        card(),
        mig(0, 0, gi=1, gpm={2: 90, 5: 45, **cycles(60, 0.45)}),
        mig(0, 1, gi=9, gpm={2: 20, 5: 10}, **ONE_G),
    )
    child = start()
    child.inventory()
    for _ in range(3):
        reading = child.card()
    assert reading.method == "gpm"
    # The card itself has no metrics: it is as active as its parts, and the three slices left are idle.
    assert reading.values["tensor_active_ratio"] == pytest.approx(0.45 * 3 / 7 + 0.10 / 7)


def test_an_instance_whose_number_is_used_again_starts_over(start: Start, script: Script) -> None:
    script.write(card(), mig(0, 0, gi=1, gpm={2: 90, 5: 45}))
    child = start()
    child.inventory()
    child.read()
    assert BIG in child.card().instances
    script.write(card(), mig(0, 1, gi=1, gpm={2: 20, 5: 10}, **ONE_G))
    reply = child.read()
    assert reply.stale
    assert reply.devices[0].instances == {}
    assert child.inventory().devices[0].instances == (SMALL,)
    assert instance_values(child.card(), SMALL, "sm_active_ratio") is Absence.MISSING
    assert instance_values(child.card(), SMALL, "sm_active_ratio") == pytest.approx(0.20)


def test_a_sample_that_fails_starts_the_instance_over(start: Start, script: Script) -> None:
    script.write(card(gpm={2: 50}), mig(0, 0, gi=1, gpm={2: 90, 5: 45}))
    child = start()
    child.inventory()
    child.read()
    script.add("error nvmlGpmMigSampleGet NOT_FOUND")
    failed = child.card()
    assert instance_values(failed, BIG, "sm_active_ratio") is Absence.FAILED
    assert failed.values["sm_active_ratio"] == pytest.approx(0.50)
    script.remove("error nvmlGpmMigSampleGet NOT_FOUND")
    assert instance_values(child.card(), BIG, "sm_active_ratio") is Absence.MISSING
    assert instance_values(child.card(), BIG, "sm_active_ratio") == pytest.approx(0.90)


def test_a_card_without_metrics_still_lists_its_instances(start: Start, script: Script) -> None:
    script.write(card(), mig(0, 0, gi=1))
    child = start()
    child.inventory()
    child.read()
    reading = child.card()
    assert reading.failure is None
    assert instance_values(reading, BIG, "sm_active_ratio") is Absence.NOT_SUPPORTED
    assert reading.absences["sm_active_ratio"] == Absence.NOT_SUPPORTED


def test_metrics_of_instances_that_are_denied_say_so(start: Start, script: Script) -> None:
    script.write(card(gpm={2: 50}), mig(0, 0, gi=1, gpm={2: 90}))
    script.add("error nvmlGpmMigSampleGet NO_PERMISSION")
    child = start()
    child.inventory()
    reading = child.card()
    assert reading.gpm_denied
    assert instance_values(reading, BIG, "sm_active_ratio") is Absence.FAILED
    assert reading.values["power_watts"] == 72.0

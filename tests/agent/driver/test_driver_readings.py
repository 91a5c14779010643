"""What the driver child reads, and in which units."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from fakenvml import Script, device
from flopwatch_agent.driver.messages import DeviceReading, EventsRequest, ProcessInfo
from flopwatch_agent.driver.processes import PLAUSIBLE_MAX, believed
from flopwatch_agent.reading import FIELDS
from flopwatch_proto.rows import Absence

GPM = {
    1: 97,
    2: 90,
    3: 60,
    4: 50,
    5: 45,
    6: 1,
    7: 44,
    8: 6,
    9: 2,
    10: 30,
    11: 3,
    12: 4,
    13: 5,
    20: 10,
    21: 20,
    60: 30,
    61: 40,
}
MIB = 1024 * 1024

Start = Callable[..., Any]
"""Starts a child (conftest.py) on a library without the functions named."""


def absence(reading: DeviceReading, name: str) -> Absence:
    """What stands for a value that is not there."""
    assert name not in reading.values
    return Absence(reading.absences.get(name, Absence.MISSING))


EXPECTED = {
    "gpu_utilization_ratio": 0.97,
    "memory_utilization_ratio": 0.41,
    "graphics_active_ratio": 0.97,
    "sm_active_ratio": 0.90,
    "sm_occupancy_ratio": 0.60,
    "integer_active_ratio": 0.50,
    "tensor_active_ratio": 0.45,
    "dfma_active_ratio": 0.01,
    "hmma_active_ratio": 0.44,
    "dmma_active_ratio": 0.06,
    "imma_active_ratio": 0.02,
    "dram_active_ratio": 0.30,
    "fp64_active_ratio": 0.03,
    "fp32_active_ratio": 0.04,
    "fp16_active_ratio": 0.05,
    "sm_clock_mhz": 1650,
    "pcie_tx_bytes_per_second": 10 * MIB,
    "pcie_rx_bytes_per_second": 20 * MIB,
    "nvlink_rx_bytes_per_second": 30 * MIB,
    "nvlink_tx_bytes_per_second": 40 * MIB,
    "energy_joules_total": 5.0,
    "throttled_power_seconds_total": 2.5,
    "throttled_thermal_sw_seconds_total": 3.0,
    "throttled_thermal_hw_seconds_total": 0.0,
    "throttled_power_brake_seconds_total": 0.0,
    "throttled_sync_boost_seconds_total": 0.5,
    "throttled_application_clock_seconds_total": 0.0,
    "ecc_corrected_total": 3,
    "ecc_uncorrected_total": 1,
    "nvlink_errors_total": 7,
    "memory_clock_mhz": 2619,
    "power_watts": 620.5,
    "power_limit_watts": 700,
    "temperature_celsius": 61,
    "memory_temperature_celsius": 80,
    "memory_used_bytes": 7 << 30,
    "memory_total_bytes": (80 << 30) - 463 * MIB,
    "pcie_link_generation": 5,
    "pcie_link_width": 16,
    "pcie_link_generation_limit": 5,
    "pcie_link_width_limit": 16,
    "remapped_rows_pending": 0,
    "remapped_rows_failed": 0,
    "clock_event_reasons": 4,
}


def test_values_arrive_in_the_units_of_their_names(start: Start, script: Script) -> None:
    script.write(
        device(
            0,
            gpm=GPM,
            fields={
                74: "count 2500000000 0",
                269: "count 3000000000 0",
                76: "count 500000000 0",
                59: 7,
            },
            power_milliwatts=620500,
            energy_millijoules="count 5000 0",
            util_gpu=97,
            util_memory=41,
            sm_clock_mhz=1650,
            memory_used=7 << 30,
            temperature_c=61,
            memory_temperature_c=80,
            event_reasons=4,
            ecc_sbe_volatile=3,
            ecc_dbe_volatile=1,
        )
    )
    child = start()
    child.inventory()
    child.read()
    values = child.card().values
    assert values == pytest.approx(EXPECTED)
    assert EXPECTED.keys() == FIELDS.keys()


def test_not_supported_failed_and_missing_are_three_things(start: Start, script: Script) -> None:
    script.write(
        device(0, gpm=GPM, memory_temperature_c=None), "error nvmlDeviceGetTemperature UNKNOWN"
    )
    child = start()
    child.inventory()
    reading = child.card()
    assert absence(reading, "memory_temperature_celsius") is Absence.NOT_SUPPORTED
    assert absence(reading, "temperature_celsius") is Absence.FAILED
    assert absence(reading, "sm_active_ratio") is Absence.MISSING
    assert reading.values["power_watts"] == 72.0


def test_where_the_field_is_not_supported_the_older_function_answers_in_the_same_reading(
    start: Start, script: Script
) -> None:
    script.add("device 0 field_return 186 NOT_SUPPORTED", "device 0 field_return 83 NOT_SUPPORTED")
    child = start()
    child.inventory()
    values = child.card().values
    assert values["power_watts"] == 72.0
    assert values["energy_joules_total"] > 0


def test_what_is_not_supported_is_not_asked_again_until_the_cards_are_listed_anew(
    start: Start, script: Script
) -> None:
    script.write(device(0, temperature_c=None))
    child = start()
    child.inventory()
    child.read()
    child.read()
    assert child.calls()["nvmlDeviceGetTemperature"] == 1
    script.write(device(0, temperature_c=50))
    assert absence(child.card(), "temperature_celsius") is Absence.NOT_SUPPORTED
    child.inventory()
    assert child.card().values["temperature_celsius"] == 50


def test_the_sm_clock_is_the_mean_of_the_drivers_buffer(start: Start, script: Script) -> None:
    script.add("device 0 sm_clock_mhz 1000")
    child = start()
    child.inventory()
    child.read()
    means = []
    for _ in range(20):  # a machine that stalls here empties the buffer before it is read
        script.add("device 0 sm_clock_mhz 2000")
        child.ask(EventsRequest())  # the driver takes note of its new script when it is called
        time.sleep(0.2)  # ten samples of its buffer
        script.add("device 0 sm_clock_mhz 2000 @0 1000")  # now 1000 again, but not in the buffer
        means.append(child.card().values["sm_clock_mhz"])
        if means[-1] > 1000:
            break
    assert max(means) > 1000


def test_an_idle_cards_empty_buffer_falls_back_to_the_clock_now(
    start: Start, script: Script
) -> None:
    script.add("device 0 samples_idle 1 sm_clock_mhz 345")
    child = start()
    child.inventory()
    assert child.card().values["sm_clock_mhz"] == 345


def test_metrics_are_means_between_consecutive_readings(start: Start, script: Script) -> None:
    # One percent a second: a mean over [a, b] is (a + b) / 2, so two of them in a row differ by half
    # the time they cover together, and by something else if they left a hole between them.
    script.write(device(0, gpm={2: "0 ~100000 100000"}))
    child = start()
    child.inventory()
    first = child.card()
    second = child.card()
    time.sleep(0.7)
    third = child.card()
    rise = (third.values["sm_active_ratio"] - second.values["sm_active_ratio"]) * 100
    covered = (third.boottime_ns - first.boottime_ns) / 1e9
    assert rise == pytest.approx(covered / 2, abs=0.15)


def test_every_metric_has_a_return_code_of_its_own(start: Start, script: Script) -> None:
    script.add(
        "device 0 gpm_return 7 NO_DATA",
        "device 0 gpm_return 9 NOT_SUPPORTED",
        "device 0 gpm_return 20 NOT_SUPPORTED",
        "device 0 pcie_tx_kib 4",
    )
    child = start()
    child.inventory()
    child.read()
    reading = child.card()
    assert absence(reading, "hmma_active_ratio") is Absence.FAILED
    assert absence(reading, "imma_active_ratio") is Absence.NOT_SUPPORTED
    assert reading.values["tensor_active_ratio"] == pytest.approx(0.45)
    assert reading.values["pcie_tx_bytes_per_second"] == 4096


def test_a_metric_that_is_not_a_number_failed(start: Start, script: Script) -> None:
    script.add("device 0 gpm 5 nan")
    child = start()
    child.inventory()
    child.read()
    reading = child.card()
    assert absence(reading, "tensor_active_ratio") is Absence.FAILED
    assert reading.values["sm_active_ratio"] == pytest.approx(0.90)


def test_metrics_without_permission_failed_and_say_so(start: Start, script: Script) -> None:
    script.add("error nvmlGpmSampleGet NO_PERMISSION")
    child = start()
    child.inventory()
    reading = child.card()
    assert reading.gpm_denied
    assert absence(reading, "sm_active_ratio") is Absence.FAILED
    assert reading.values["power_watts"] == 72.0


def test_every_sample_is_freed(start: Start) -> None:
    child = start()
    for _ in range(3):
        child.inventory()
        child.read()
        child.read()
    assert child.quit() == 0
    calls = child.calls()
    assert calls["nvmlGpmSampleAlloc"] == calls["nvmlGpmSampleFree"] == 6
    assert calls["nvmlEventSetCreate"] == calls["nvmlEventSetFree"] == 3
    assert calls["nvmlShutdown"] == 1


def test_a_driver_without_these_functions_still_answers_what_it_has(start: Start) -> None:
    child = start(
        "nvmlGpmSampleAlloc",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetSamples",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlEventSetCreate",
        "nvmlDeviceGetNumGpuCores",
    )
    assert child.inventory().devices[0].sm_count is None
    reading = child.card()
    assert reading.values["power_watts"] == 72.0
    assert reading.values["sm_clock_mhz"] == 345
    assert reading.values["clock_event_reasons"] == 1
    assert reading.values["memory_used_bytes"] == 600 * MIB
    assert absence(reading, "sm_active_ratio") is Absence.NOT_SUPPORTED
    assert absence(reading, "throttled_power_seconds_total") is Absence.NOT_SUPPORTED


def test_links_are_counted_where_there_are_no_metrics(start: Start, script: Script) -> None:
    script.write(device(0, fields={138: "count 0 1024", 139: "count 0 2048"}))
    child = start()
    child.inventory()
    assert absence(child.card(), "nvlink_tx_bytes_per_second") is Absence.MISSING
    values = child.card().values
    assert values["nvlink_tx_bytes_per_second"] == pytest.approx(MIB, rel=0.3)
    assert values["nvlink_rx_bytes_per_second"] == pytest.approx(2 * MIB, rel=0.3)


def test_a_card_is_named_by_its_place_and_counted_in_its_own_sms(
    start: Start, script: Script
) -> None:
    a100: dict[str, Any] = {
        "name": "NVIDIA A100-SXM4-80GB",
        "cores": 6912,
        "cc_major": 8,
        "cc_minor": 0,
    }
    script.write(device(0), device(1, pci="00010000:C8:00.0", serial=None, **a100))
    h100, other = start().inventory().devices
    assert (h100.slot, h100.sm_count, h100.clock_mhz_max) == ("0000:18:00.0", 132, 1980)
    assert (other.slot, other.sm_count, other.serial) == ("10000:c8:00.0", 108, None)
    assert other.sku == "NVIDIA A100-SXM4-80GB"


def test_processes_come_with_their_memory_and_start(start: Start, script: Script) -> None:
    me = os.getpid()
    script.add(
        f"device 0 process {me} compute 1000",
        "device 0 process 0 compute 5",
        "device 0 process 77 graphics 5",
        f"device 0 process {2**31 - 5} compute na",
    )
    child = start()
    child.inventory()
    processes = child.card().processes
    assert processes is not None
    mine = next(process for process in processes if process.pid == me)
    assert mine.memory_bytes == 1000
    assert mine.started_unix_ms is not None
    assert mine.started_unix_ms / 1000 == pytest.approx(psutil.Process().create_time(), abs=2)


def test_processes_that_nobody_can_have_are_not_told_on_a_host() -> None:
    known = ProcessInfo(pid=7, started_unix_ms=1_000)
    unknown = ProcessInfo(pid=8)
    assert believed([known, unknown], sees_every_pid=True) == [known]
    # In a pid namespace of its own an agent cannot tell: somebody holds the card.
    assert believed([known, unknown], sees_every_pid=False) == [known, unknown]


def test_an_absurd_list_of_processes_says_nothing(start: Start, script: Script) -> None:
    pids = range(2_000_000_000, 2_000_000_000 + PLAUSIBLE_MAX + 1)
    script.add(*(f"device 0 process {pid} compute 1" for pid in pids))
    child = start()
    child.inventory()
    assert child.card().processes is None


def test_an_impossible_amount_of_memory_is_not_told(start: Start, script: Script) -> None:
    script.add(f"device 0 process {os.getpid()} compute {1 << 50}")
    child = start()
    child.inventory()
    processes = child.card().processes
    assert processes is not None
    assert [process.memory_bytes for process in processes] == [None]

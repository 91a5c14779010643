"""What holds a card back, by the thresholds that the module states."""

from __future__ import annotations

import pytest

from flopwatch.cli.bottleneck import hint, throttle

BUSY = {
    "sm_active_ratio": 0.9,
    "tensor_active_ratio": 0.3,
    "dram_active_ratio": 0.3,
    "sm_clock_mhz": 1755.0,
    "clock_event_reasons": 0.0,
    "pcie_link_generation": 5.0,
    "pcie_link_width": 16.0,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "latency"),
        ({"tensor_active_ratio": 0.5}, "compute"),
        ({"fp64_active_ratio": 0.7}, "compute"),
        ({"dram_active_ratio": 0.6}, "memory"),
        ({"dram_active_ratio": 0.6, "tensor_active_ratio": 0.6}, "compute"),
        ({"nvlink_rx_bytes_per_second": 120e9}, "link"),
        ({"pcie_tx_bytes_per_second": 40e9}, "link"),
        ({"pcie_tx_bytes_per_second": 40e9, "pcie_link_width": 32.0}, "latency"),
        ({"pcie_tx_bytes_per_second": 4e9, "pcie_link_generation": 2.0}, "latency"),
        ({"pcie_tx_bytes_per_second": 5e9, "pcie_link_generation": 2.0}, "link"),
        ({"pcie_tx_bytes_per_second": 5e9, "pcie_link_generation": 9.0}, "latency"),
        ({"sm_active_ratio": 0.4}, "input"),
        ({"sm_active_ratio": 0.01}, "idle"),
        ({"clock_event_reasons": 64.0}, "throttled"),
        ({"clock_event_reasons": 64.0, "sm_clock_mhz": 1970.0}, "latency"),
        ({"clock_event_reasons": 4.0}, "latency"),
        ({"clock_event_reasons": 4.0, "sm_clock_mhz": 1400.0}, "throttled"),
        ({"clock_event_reasons": 1.0, "sm_clock_mhz": 345.0}, "latency"),
        ({"clock_event_reasons": 64.0, "sm_active_ratio": 0.0}, "idle"),
    ],
)
def test_the_first_rule_that_holds_gives_the_hint(change: dict[str, float], said: str) -> None:
    assert hint({**BUSY, **change}, 1980.0) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        ({"gpu_utilization_ratio": 1.0}, None),
        ({"gpu_utilization_ratio": 0.0}, "idle"),
        ({"sm_active_ratio": 0.9}, None),
        ({"sm_active_ratio": 0.9, "tensor_active_ratio": 0.1}, None),
        ({"sm_active_ratio": 0.9, "dram_active_ratio": 0.8}, "memory"),
        ({"sm_active_ratio": 0.3}, "input"),
    ],
)
def test_without_the_counters_to_tell_there_is_no_hint(
    values: dict[str, float], said: str | None
) -> None:
    assert hint(values, None) == said


def test_the_gravest_reason_for_a_clock_is_named_and_none_is_not_unknown() -> None:
    assert throttle(0x44) == "heat (hardware)"
    assert throttle(0x04) == "power limit"
    assert throttle(0x01) == ""
    assert throttle(None) is None

"""The cards as Prometheus sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from flopwatch_agent.exposition import SHARES_MAX, CardGauges, DcgmNames
from flopwatch_agent.newest import FORGET_SECONDS, STALE_SECONDS, Newest
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence, Bucket

SECOND = 1_000_000_000
START = 1_000 * SECOND
H100 = "NVIDIA H100 80GB HBM3"
FREE = (Share(bucket=Bucket.FREE),)
Samples = dict[str, dict[tuple[str, ...], float]]


def card(index: int = 0, **more: Any) -> Device:
    return Device(
        slot=f"0000:{index:02x}:00.0",
        kind="gpu",
        sku=more.pop("sku", H100),
        uuid=f"GPU-{index}",
        minor=index,
        clock_mhz_max=1980.0,
        **more,
    )


def reading(
    device: Device, at_ns: int = START, failure: str | None = None, **values: Value
) -> Reading:
    return Reading(
        device=device,
        taken_unix_ms=at_ns // 1_000_000,
        boottime_ns=at_ns,
        values=values,
        processes=(Process(pid=7),),
        alive=failure is None,
        failure=failure,
    )


def scraped(collector: Collector, *labels: str) -> Samples:
    """What a scrape shows of series with these labels: name → labels' values → value, each once."""
    registry = CollectorRegistry()
    registry.register(collector)
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if not sample.labels.keys() >= set(labels):
                continue
            key = tuple(sample.labels[label] for label in labels or ("slot",))
            series = found.setdefault(sample.name, {})
            assert key not in series
            series[key] = sample.value
    return found


def shown(newest: Newest, at_ns: int = START) -> Samples:
    return scraped(CardGauges(newest, lambda: at_ns, dtype="bf16"))


def holders(newest: Newest, *labels: str) -> dict[tuple[str, ...], float]:
    gauges = CardGauges(newest, lambda: START, dtype="bf16")
    return scraped(gauges, *labels)["flopwatch_card_allocation_info"]


def watching(*readings: Reading, shares: Sequence[Share] = FREE) -> Newest:
    newest = Newest()
    for one in readings:
        newest.see(one, shares)
    return newest


def test_values_are_in_base_units_and_what_is_absent_has_no_sample() -> None:
    newest = watching(
        reading(
            card(),
            power_watts=612.5,
            sm_clock_mhz=1755.0,
            sm_active_ratio=0.0,
            energy_joules_total=10.0,
            temperature_celsius=Absence.FAILED,
            dram_active_ratio=Absence.NOT_SUPPORTED,
        )
    )
    found = shown(newest)
    slot = ("0000:00:00.0",)
    assert found["flopwatch_card_power_watts"] == {slot: 612.5}
    assert found["flopwatch_card_sm_clock_hertz"] == {slot: 1.755e9}
    assert found["flopwatch_card_sm_active_ratio"] == {slot: 0.0}
    assert found["flopwatch_card_energy_joules_total"] == {slot: 10.0}
    assert found["flopwatch_card_processes"] == {slot: 1.0}
    assert "flopwatch_card_temperature_celsius" not in found
    assert "flopwatch_card_dram_active_ratio" not in found
    assert "flopwatch_card_memory_used_bytes" not in found


def test_a_card_that_does_not_answer_has_its_state_and_no_numbers() -> None:
    newest = watching(
        reading(card(0), power_watts=1.0),
        reading(card(1), power_watts=2.0),
        reading(card(1), START + SECOND, failure="gpu_is_lost"),
    )
    found = shown(newest, START + SECOND)
    assert found["flopwatch_card_answers"] == {("0000:00:00.0",): 1.0, ("0000:01:00.0",): 0.0}
    assert found["flopwatch_card_power_watts"] == {("0000:00:00.0",): 1.0}
    assert found["flopwatch_card_coverage_ratio"][("0000:01:00.0",)] == 0.5


def test_a_reading_of_long_ago_says_nothing_and_in_the_end_is_forgotten() -> None:
    newest = watching(reading(card(), power_watts=1.0))
    late = START + int((STALE_SECONDS + 1) * SECOND)
    found = shown(newest, late)
    assert "flopwatch_card_power_watts" not in found
    assert found["flopwatch_card_reading_age_seconds"] == {("0000:00:00.0",): STALE_SECONDS + 1}
    assert found["flopwatch_card_answers"] == {("0000:00:00.0",): 0.0}
    assert shown(newest, late + int(FORGET_SECONDS * SECOND)) == {}


def test_coverage_is_of_the_last_minute_alone() -> None:
    newest = Newest()
    for second in range(120):
        failure = "unresponsive" if second < 60 or second % 2 else None
        newest.see(reading(card(), START + second * SECOND, failure), FREE)
    found = shown(newest, START + 119 * SECOND)
    assert found["flopwatch_card_coverage_ratio"] == {("0000:00:00.0",): 0.5}
    long_after = START + 159 * SECOND
    assert shown(newest, long_after)["flopwatch_card_coverage_ratio"] == {
        ("0000:00:00.0",): pytest.approx(10 / 60)
    }


def test_who_holds_a_card_is_one_series_each_and_its_weights_sum_to_one() -> None:
    shares = (
        Share(bucket=Bucket.ACTIVE, weight=0.5, job="41", team="vision", user="ada"),
        Share(bucket=Bucket.ACTIVE, weight=0.25, job="42", rogue=True, source="processes"),
        Share(bucket=Bucket.FREE, weight=0.25, instance="MIG-3"),
    )
    newest = watching(reading(card(), power_watts=400.0), shares=shares)
    assert holders(newest, "bucket", "job_id", "team", "user", "mig", "rogue") == {
        ("ACTIVE", "41", "vision", "ada", "", "false"): 0.5,
        ("ACTIVE", "42", "", "", "", "true"): 0.25,
        ("FREE", "", "", "", "MIG-3", "false"): 0.25,
    }
    newest.see(reading(card(), START + SECOND), FREE)
    assert holders(newest, "bucket", "job_id") == {("FREE", ""): 1.0}


def test_a_crowd_on_a_card_is_bounded_in_series_and_names_and_loses_no_weight() -> None:
    crowd = 10 * SHARES_MAX
    shares = [
        Share(bucket=Bucket.ACTIVE, weight=1 / crowd, job="j" * 999 + str(i)) for i in range(3)
    ]
    shares += [Share(bucket=Bucket.ACTIVE, weight=1 / crowd, job=f"{i}") for i in range(3, crowd)]
    found = holders(watching(reading(card()), shares=shares), "job_id")
    assert len(found) <= SHARES_MAX + 1
    assert sum(found.values()) == pytest.approx(1.0)
    assert max(len(name) for (name,) in found) == 200


def test_hfu_is_the_product_of_activity_and_clock_and_bounded_without_a_reference_clock() -> None:
    known = reading(card(0), tensor_active_ratio=0.6, sm_clock_mhz=1830.0 / 2)
    bounded = reading(
        card(1, sku="NVIDIA B300 SXM6 AC"), tensor_active_ratio=0.6, sm_clock_mhz=990.0
    )
    unknown = reading(card(2, sku="NVIDIA Nothing"), tensor_active_ratio=0.6, sm_clock_mhz=990.0)
    found = shown(watching(known, bounded, unknown))
    lo, hi = found["flopwatch_card_hfu_lo_ratio"], found["flopwatch_card_hfu_hi_ratio"]
    assert found["flopwatch_card_hfu_ratio"] == {("0000:00:00.0",): pytest.approx(0.3)}
    # 95 % of counter, sampled clock and calibration: 1.96 √(0.5² + 0.4² + 1²) % = 2.33 %.
    assert lo[("0000:00:00.0",)] == pytest.approx(0.3 * 0.97673, abs=1e-5)
    assert hi[("0000:00:00.0",)] == pytest.approx(0.3 * 1.02327, abs=1e-5)
    assert lo[("0000:01:00.0",)] == pytest.approx(0.3 * 0.97673, abs=1e-5)
    assert hi[("0000:01:00.0",)] == pytest.approx(0.6 * 1.02327, abs=1e-5)
    assert ("0000:02:00.0",) not in lo
    assert "flopwatch_card_mfu_ratio" not in found


def test_mfu_is_what_jobs_declared_in_the_last_minute_over_the_peak() -> None:
    newest = Newest()
    for second in range(11):
        share = Share(bucket=Bucket.ACTIVE, job="1", model_flops_total=second * 494.7e12)
        newest.see(reading(card(), START + second * SECOND), (share,))
    found = shown(newest, START + 10 * SECOND)
    assert found["flopwatch_card_mfu_ratio"] == {("0000:00:00.0",): pytest.approx(0.5, abs=2e-3)}
    newest.see(reading(card(), START + 11 * SECOND), FREE)
    assert "flopwatch_card_mfu_ratio" not in shown(newest, START + 11 * SECOND)


def test_dcgm_names_have_the_exporters_units_and_labels() -> None:
    newest = watching(
        reading(
            card(3),
            sm_clock_mhz=1755.0,
            gpu_utilization_ratio=0.97,
            energy_joules_total=12.5,
            memory_used_bytes=2.0**30,
            memory_total_bytes=80.0 * 2**30,
            tensor_active_ratio=0.45,
            pcie_tx_bytes_per_second=1e9,
            dram_active_ratio=Absence.FAILED,
        ),
        reading(Device(slot="cpu", kind="cpu", sku="Xeon"), memory_used_bytes=1.0),
    )
    labels = ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname")
    found = scraped(DcgmNames(newest, lambda: START, hostname="n1"), *labels)
    key = ("0", "GPU-3", "00000000:03:00.0", "nvidia3", H100, "n1")
    assert found == {
        "DCGM_FI_DEV_SM_CLOCK": {key: 1755.0},
        "DCGM_FI_DEV_GPU_UTIL": {key: 97.0},
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": {key: 12_500.0},
        "DCGM_FI_DEV_FB_USED": {key: 1024.0},
        "DCGM_FI_DEV_FB_TOTAL": {key: 81_920.0},
        "DCGM_FI_DEV_FB_FREE": {key: 80_896.0},
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": {key: 0.45},
        "DCGM_FI_PROF_PCIE_TX_BYTES": {key: 1e9},
    }

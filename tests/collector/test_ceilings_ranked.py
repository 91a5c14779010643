"""Cards against their own fleet and their own past: who is slow, falling or corrupt, and who is compared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwatch_collector.ceilings import below, bringups, ceilings, read, spread
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.web.records import probes

H100 = "NVIDIA H100 80GB HBM3"
NOON = 1_793_534_400_000


def probe(card: int, flops: float = 700e12, at_ms: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "cluster": "atlas", "node": f"n{card // 8}", "slot": f"0000:{card % 8:02x}:00.0",
        "start_unix_ms": NOON + at_ms, "kind": "gemm", "dtype": "bf16", "sku": H100,
        "device_uuid": f"GPU-{card}", "serial": f"{1654 + card}", "driver_version": "595.58.03",
        "sustained": True, "median_flops": flops, "median_value": 0.0, "unit": "", "outcome": "",
        "reason": "", "simulated": False,
    } | more  # fmt: skip


def fleet(count: int = 16) -> list[dict[str, Any]]:
    return [probe(card, 700e12 * (1 + 0.004 * ((card * 7) % 5 - 2))) for card in range(count)]


def suspects(probes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(s["what"], s["device_uuid"]) for s in ceilings(probes)["suspects"]]


def test_a_fleet_has_its_median_spread_and_quartiles() -> None:
    (one,) = ceilings(fleet())["fleets"]
    assert (one["sku"], one["dtype"], one["kind"], one["sustained"]) == (H100, "bf16", "gemm", True)
    assert one["cards"] == sum(one["histogram"]) == 16
    assert one["p25"] <= one["median"] <= one["p75"]
    assert one["mad"] == pytest.approx(0.004 * 700e12)
    assert one["cards_list"][0]["below"] == max(card["below"] for card in one["cards_list"])
    assert ceilings(fleet())["suspects"] == []


def test_a_card_below_its_fleet_is_slow_and_the_text_says_by_how_much() -> None:
    found = ceilings([*fleet(), probe(99, 640e12)])["suspects"]
    assert [(s["what"], s["device_uuid"]) for s in found] == [("slow", "GPU-99")]
    assert found[0]["text"] == "8.6 % below 17 cards alike (gemm bf16, sustained)"
    assert found[0]["action"].startswith("Probe it again, sustained")


@pytest.mark.parametrize(
    "more",
    [
        {"sustained": False},
        {"dtype": "fp8"},
        {"kind": "tensor"},
        {"simulated": True},
        {"sku": "B200"},
    ],
)
def test_only_what_was_probed_alike_is_compared(more: dict[str, Any]) -> None:
    assert suspects([*fleet(), probe(99, 300e12, **more)]) == []


def test_a_small_difference_in_a_fleet_that_agrees_to_the_digit_is_none() -> None:
    same = [probe(card) for card in range(16)]
    assert suspects([*same, probe(99, 690e12)]) == []
    assert suspects([*same, probe(99, 670e12)]) == [("slow", "GPU-99")]


def test_a_few_cards_are_no_fleet() -> None:
    assert suspects([*fleet(3), probe(99, 300e12)]) == []


def test_of_a_latency_more_is_worse() -> None:
    late: dict[str, Any] = {"kind": "launch", "dtype": "", "unit": "s", "median_flops": 0.0}
    cards = [probe(card, median_value=5e-6, **late) for card in range(8)]
    slow = [*cards, probe(98, median_value=9e-6, **late), probe(99, median_value=2e-6, **late)]
    assert suspects(slow) == [("slow", "GPU-98")]


def test_a_card_that_reaches_less_than_it_did_is_falling() -> None:
    hour = 3_600_000
    past = [probe(0, 700e12, at_ms=-hour * n) for n in range(1, 4)]
    assert suspects([probe(0, 660e12), *past]) == [("falling", "GPU-0")]
    assert suspects([probe(0, 660e12), *past[:2]]) == []
    assert suspects([probe(0, 699e12), *past]) == []


def test_a_corrupt_card_stays_named_whatever_later_screens_say() -> None:
    screens = [
        probe(1, 0.0, kind="sdc", at_ms=1_000),
        probe(1, 0.0, kind="sdc", outcome="corrupt", reason="1 of 64 products is wrong"),
    ]
    found = ceilings([*fleet(), *screens])
    (named,) = found["suspects"]
    assert (named["what"], named["device_uuid"]) == ("corrupt", "GPU-1")
    assert named["text"] == "1 × 1 of 64 products is wrong"
    assert "return the card" in named["action"]
    assert [one["kind"] for one in found["fleets"]] == ["gemm"]


def test_the_newest_result_of_a_card_counts_also_where_it_moved() -> None:
    moved = probe(0, 500e12, at_ms=5, node="n7", slot="0000:aa:00.0")
    (one,) = ceilings([*fleet(), moved])["fleets"]
    assert one["cards"] == 16
    assert (one["cards_list"][0]["node"], one["cards_list"][0]["results"]) == ("n7", 2)


@given(st.lists(st.floats(1e-9, 1e18), min_size=1, max_size=40))
def test_a_spread_holds_every_value(values: list[float]) -> None:
    of = spread(values)
    assert sum(of["histogram"]) == len(values)
    assert of["min"] <= of["p25"] <= of["p75"] <= of["max"]
    assert of["min"] <= of["median"] <= of["max"]
    assert below(of["median"], of["median"], "") == 0.0


def stored(store: TelemetryStore, *probes: dict[str, Any]) -> None:
    rows = [
        one
        | {"seconds": 1.0, "p10_flops": 0.0, "p90_flops": 0.0, "p10_value": 0.0, "p90_value": 0.0}
        | {"result_json": "{}", "kappa": None, "stored_unix_ms": NOON}
        for one in probes
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    store.append("probe", columns)


def test_the_store_is_asked_for_what_was_asked(store: TelemetryStore) -> None:
    stored(
        store,
        probe(0),
        probe(1, cluster="other"),
        probe(2, outcome="aborted"),
        probe(3, at_ms=-10_000),
        probe(4, kind="bringup", outcome="ok"),
        probe(4, kind="bringup", at_ms=5, outcome="failed", reason="sdc"),
    )
    assert [p["device_uuid"] for p in read(store, NOON, cluster="atlas")] == ["GPU-0"]
    assert len(read(store, NOON - 20_000)) == 3
    assert read(store, NOON, sku="B200") == []
    (one,) = bringups(store, NOON, "atlas")
    assert (one["outcome"], one["reason"]) == ("failed", "sdc")
    listed = probes(store, Window(start=NOON, end=NOON + 10), "atlas")
    assert {(p["slot"], p["outcome"]) for p in listed if p["kind"] == "gemm"} == {
        ("0000:00:00.0", "ok"),
        ("0000:02:00.0", "aborted"),
    }

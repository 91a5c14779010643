"""Rows of a card in parts: MIG devices with weights, and where the activity of each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_proto.codec import IntervalRow, Value, encode_rows
from flopwatch_proto.rows import Absence, Bucket

NOON = 1_793_534_400_000
BIG, SMALL = "MIG-big", "MIG-small"
CARD = Device(
    slot="0000:18:00.0",
    kind="gpu",
    sku="NVIDIA H100 80GB HBM3",
    uuid="GPU-1",
    instances=(BIG, SMALL),
    instance_weights=(3 / 7, 1 / 7),
)
CARD_VALUES: Mapping[str, Value] = {
    "sm_active_ratio": 0.5,
    "tensor_active_ratio": 0.25,
    "sm_clock_mhz": 1830.0,
    "power_watts": 300.0,
}
PARTS: Mapping[str, Mapping[str, Value]] = {
    BIG: {"sm_active_ratio": 0.9, "tensor_active_ratio": 0.7, "sm_clock_mhz": 1830.0},
    SMALL: {"sm_active_ratio": 0.2, "tensor_active_ratio": 0.1},
}
BIG_JOB = Share(bucket=Bucket.ACTIVE, job="big", instance=BIG, source="kubernetes")


def reading(at_s: int, **more: Any) -> Reading:
    arguments: dict[str, Any] = {
        "device": CARD,
        "values": {**CARD_VALUES, "energy_joules_total": 300.0 * at_s},
        "processes": (Process(pid=1),),
        "instances": PARTS,
        **more,
    }
    return Reading(
        taken_unix_ms=NOON + at_s * 1000, boottime_ns=(at_s + 1000) * 1_000_000_000, **arguments
    )


def rows_of(readings: Sequence[Reading], shares: Sequence[Share]) -> list[IntervalRow]:
    fold = Fold()
    rows = [row for item in readings for row in fold.add(item, shares)]
    encode_rows(rows)
    return rows + fold.close(readings[-1].taken_unix_ms)


def by_instance(rows: Sequence[IntervalRow]) -> dict[str | None, IntervalRow]:
    found = {row.texts["instance"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_cut_card_has_a_row_per_mig_device_and_one_for_the_slices_left() -> None:
    rows = by_instance(rows_of([reading(0), reading(10)], [BIG_JOB]))
    assert {name: row.bucket for name, row in rows.items()} == {
        BIG: Bucket.ACTIVE,
        SMALL: Bucket.FREE,
        None: Bucket.FREE,
    }
    assert sum(row.weight for row in rows.values()) == pytest.approx(1.0)
    assert sum(row.card_times["card_ms"] for row in rows.values()) == 10_000
    assert rows[BIG].weight == pytest.approx(3 / 7)
    assert rows[BIG].card_times["card_ms"] == 4286
    assert rows[SMALL].card_times["resident_ms"] == 0
    assert rows[BIG].texts["job"] == "big"


def test_activity_is_the_devices_own_and_the_rest_the_cards_by_weight() -> None:
    rows = by_instance(rows_of([reading(0), reading(10)], [BIG_JOB]))
    big, small = rows[BIG].values, rows[SMALL].values
    assert big["tensor_active_ms"] == pytest.approx(0.7 * 10_000 * 3 / 7)
    assert small["tensor_active_ms"] == pytest.approx(0.1 * 10_000 / 7)
    assert big["energy_joules"] == pytest.approx(3000 * 3 / 7)
    assert big["power_watts_max"] == 300
    peak = 989e12
    u = big["u_flops"]
    assert isinstance(u, float)
    assert u == pytest.approx(0.7 * peak * 10 * 3 / 7, rel=1e-3)


def test_the_activity_of_a_cut_card_is_that_of_its_devices_and_no_more() -> None:
    rows = by_instance(rows_of([reading(0), reading(10)], [BIG_JOB]))
    assert rows[None].values["tensor_active_ms"] == 0.0  # cut for nobody
    assert rows[None].values["sm_clock_mhz_seconds"] == pytest.approx(18_300 * 3 / 7)
    assert rows[None].card_times["counted_ms"] == rows[None].card_times["card_ms"]
    other = Share(bucket=Bucket.ACTIVE, job="rest", source="slurm")
    held = by_instance(rows_of([reading(0), reading(10)], [BIG_JOB, other]))
    assert held[None].values["tensor_active_ms"] == pytest.approx(0.1 * 10_000 / 7)
    assert held[None].weight == pytest.approx(4 / 7)


def test_silence_leaves_every_part_as_long_as_the_card() -> None:
    dead = reading(7, alive=False, failure="unresponsive", values={}, instances={})
    rows = by_instance(rows_of([reading(0), reading(5), dead, reading(10)], [BIG_JOB]))
    assert sum(row.card_times["card_ms"] for row in rows.values()) == 10_000
    for row in rows.values():
        assert abs(row.card_times["covered_ms"] - row.card_times["card_ms"] / 2) <= 1
        assert row.duration_ms == 10_000


def test_shares_of_one_device_divide_it() -> None:
    pair = [replace(BIG_JOB, weight=0.5, job=job) for job in ("a", "b")]
    rows = rows_of([reading(0), reading(10)], pair)
    weights = {row.texts["job"]: row.weight for row in rows if row.texts["instance"] == BIG}
    assert weights == pytest.approx({"a": 1.5 / 7, "b": 1.5 / 7})


def test_what_holds_no_device_has_what_is_left_beside_those_that_do() -> None:
    held = Share(bucket=Bucket.HELD, source="slurm")
    rows = by_instance(rows_of([reading(0), reading(10)], [BIG_JOB, held]))
    assert {name: row.bucket for name, row in rows.items()} == {
        BIG: Bucket.ACTIVE,
        None: Bucket.HELD,
    }
    assert rows[None].weight == pytest.approx(4 / 7)


def test_a_job_on_the_whole_card_has_the_cards_activity() -> None:
    share = Share(bucket=Bucket.ACTIVE, job="all", source="processes")
    [row] = rows_of([reading(0), reading(10)], [share])
    assert row.weight == 1.0
    assert row.values["tensor_active_ms"] == pytest.approx(2500)


def test_a_device_whose_activity_is_not_known_does_not_get_the_cards() -> None:
    gone: Mapping[str, Mapping[str, Value]] = {
        BIG: {"sm_active_ratio": Absence.NOT_SUPPORTED, "tensor_active_ratio": Absence.FAILED}
    }
    readings = [reading(0, instances=gone), reading(10, instances=gone)]
    rows = by_instance(rows_of(readings, [BIG_JOB]))
    assert rows[BIG].values["sm_active_ms"] is Absence.NOT_SUPPORTED
    assert rows[BIG].values["tensor_active_ms"] is Absence.FAILED
    assert rows[BIG].card_times["counted_ms"] == 0
    assert "tensor_active_ms" not in rows[SMALL].values
    assert rows[SMALL].values["sm_clock_mhz_seconds"] == pytest.approx(18_300 / 7)


def test_instances_that_change_cut_the_row() -> None:
    other = replace(CARD, instances=(SMALL,), instance_weights=(1 / 7,))
    readings = [reading(0), reading(4), reading(10, device=other)]
    rows = rows_of([*readings, reading(20, device=other)], [Share(bucket=Bucket.FREE)])
    first = [row for row in rows if row.start_unix_ms == NOON]
    assert {row.texts["instance"] for row in first} == {BIG, SMALL, None}
    later = by_instance([row for row in rows if row.start_unix_ms == NOON + 10_000])
    assert set(later) == {SMALL, None}
    assert later[SMALL].weight == pytest.approx(1 / 7)
    assert sum(row.weight for row in later.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("methods", "method"),
    [
        (["cycle_counters", "cycle_counters"], "cycle_counters"),
        (["cycle_counters", "gpm"], "gpm"),
        (["dcgm", "cycle_counters"], "dcgm"),
    ],
)
def test_a_row_names_the_least_trusted_method_of_what_it_counted(
    methods: list[str], method: str
) -> None:
    card = replace(CARD, instances=(), instance_weights=())
    readings = [reading(0, device=card)]
    readings += [
        reading(5 * i, device=card, method=name, instances={}) for i, name in enumerate(methods, 1)
    ]
    [row] = rows_of(readings, [Share(bucket=Bucket.ACTIVE, job="a")])
    assert row.texts["efficiency_method"] == method


def test_readings_without_activity_say_nothing_of_the_method() -> None:
    card = replace(CARD, instances=(), instance_weights=())
    blind = reading(5, device=card, values={}, method="gpm", instances={})
    sure = reading(10, device=card, method="cycle_counters", instances={})
    [row] = rows_of([reading(0, device=card), blind, sure], [Share(bucket=Bucket.ACTIVE, job="a")])
    assert row.texts["efficiency_method"] == "cycle_counters"
    assert row.card_times["counted_ms"] == 5000


def test_double_precision_on_the_tensor_pipe_counts_by_either_of_its_names() -> None:
    card = replace(CARD, instances=(), instance_weights=())
    share = [Share(bucket=Bucket.ACTIVE, job="a")]
    rows = [
        rows_of(
            [
                reading(0, device=card),
                reading(10, device=card, values={**CARD_VALUES, "imma_active_ratio": 0.0, **more}),
            ],
            share,
        )[0]
        for more in (
            {"dfma_active_ratio": 0.25},
            {"dmma_active_ratio": 0.25, "dfma_active_ratio": 0.0},
        )
    ]
    first, second = (row.values["hardware_hi_flops"] for row in rows)
    assert first == pytest.approx(second)
    assert "_dmma_active_ms" not in rows[1].values

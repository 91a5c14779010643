"""The rules of account, on evidence written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence_tables import (
    GPM_SPREAD,
    H100_BF16_FLOPS,
    MINUTE,
    roster,
    roster_table,
    row,
    row_table,
    slot,
    slot_table,
)
from flopwatch_collector.ledger.account import account
from flopwatch_collector.ledger.evidence import (
    Heard,
    Window,
    heard_of,
    rosters_of,
    rows_of,
    seats_of,
)
from flopwatch_collector.ledger.figures import figures, lost_points
from flopwatch_collector.ledger.sheet import Sheet, sheet_of_lines
from flopwatch_collector.ledger.waterfall import waterfall
from flopwatch_proto.rows import Bucket

Records = Sequence[Mapping[str, Any]]


def sheet(
    rows: Records,
    *,
    slots: Records | None = None,
    rosters: Records = (),
    start: int = 0,
    end: int = MINUTE,
    now: int | None = None,
    before: Mapping[str, int] | None = None,
    after: Mapping[str, int] | None = None,
) -> Sheet:
    seats = seats_of(slot_table([slot()] if slots is None else slots))
    heard = Heard.nothing(seats)
    if before or after:
        heard = heard_of(_heard(before or {}), _heard(after or {}), seats)
    lines = account(
        Window(start=start, end=end),
        now_unix_ms=end if now is None else now,
        seats=seats,
        rows=rows_of(row_table(rows), seats),
        rosters=rosters_of(roster_table(rosters), seats),
        heard=heard,
    )
    return sheet_of_lines(lines)


def _heard(words: Mapping[str, int]) -> pa.Table:
    return pa.table(
        {
            "node": pa.array(["n0"] * len(words), pa.string()),
            "slot": pa.array(list(words), pa.string()),
            "heard_unix_ms": pa.array(list(words.values()), pa.int64()),
        }
    )


def steps(made: Sheet) -> dict[str, float]:
    return {s["step"]: s["share"] for s in waterfall(made) if s["share"] is not None}


def minute(**more: Any) -> list[dict[str, Any]]:
    return [row(t, **more) for t in range(0, MINUTE, 10_000)]


def test_the_worked_vector_comes_out_to_five_digits() -> None:
    made = sheet(minute(sm=0.90, tensor=0.45, clock=1650 / 1830))
    shares = steps(made)
    assert shares["sm_idle"] == pytest.approx(0.10, abs=5e-6)
    assert shares["clock"] == pytest.approx(0.08852, abs=5e-6)
    assert shares["tensor_gap"] == pytest.approx(0.40574, abs=5e-6)
    assert shares["hardware_flops"] == pytest.approx(0.40574, abs=5e-6)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
    hfu = figures(made, MINUTE)["hfu"]
    assert hfu["value"] == pytest.approx(0.40574, abs=5e-6)
    assert hfu["value"] * H100_BF16_FLOPS == pytest.approx(401.4e12, rel=1e-4)


def test_a_gap_of_fifteen_minutes_is_missing_from_its_first_second() -> None:
    made = sheet([row(0)], end=16 * MINUTE, slots=[slot()])
    assert made.time(Bucket.MISSING) == 16 * MINUTE - 10_000
    assert made.time(Bucket.UNSEEN) == 0


def test_a_shorter_gap_is_unseen_and_final_once_closed() -> None:
    made = sheet([row(0), row(50_000)])
    assert made.time(Bucket.UNSEEN) == 40_000
    assert made.time(column="provisional_ms") == 0


def test_an_open_gap_is_provisional_until_it_is_fifteen_minutes_old() -> None:
    made = sheet([row(0)], now=10 * MINUTE)
    assert made.time(Bucket.UNSEEN) == 50_000
    assert made.time(column="provisional_ms") == 50_000
    assert sheet([row(0)], now=15 * MINUTE + 10_000).time(Bucket.MISSING) == 50_000


def test_a_gap_is_judged_by_its_length_outside_the_window() -> None:
    window: dict[str, Any] = {"start": 20 * MINUTE, "end": 21 * MINUTE, "now": 60 * MINUTE}
    short = sheet([], **window, before={"s0": 19 * MINUTE}, after={"s0": 22 * MINUTE})
    assert short.time(Bucket.UNSEEN) == MINUTE
    long = sheet([], **window, before={"s0": 10 * MINUTE}, after={"s0": 25 * MINUTE})
    assert long.time(Bucket.MISSING) == MINUTE


def test_a_gap_never_reaches_outside_the_service_of_its_slot() -> None:
    slots = [slot(start=10 * MINUTE, end=20 * MINUTE)]
    made = sheet([], slots=slots, end=60 * MINUTE)
    assert made.time(Bucket.UNSEEN) == 10 * MINUTE
    assert made.time() == 10 * MINUTE


def test_a_roster_speaks_for_a_card_without_a_row() -> None:
    said = roster(0, [{"bucket": Bucket.ACTIVE, "job": "j", "team": "t"}])
    made = sheet([], rosters=said)
    assert made.time(Bucket.ALLOCATED) == MINUTE
    assert set(made.texts["job"]) == {"j"}
    shown = figures(made, MINUTE)
    assert shown["allocation"] == {"value": 1.0, "lo": 1.0, "hi": 1.0, "coverage": 0.0}
    assert shown["hfu"]["value"] is None
    assert steps(made)["unattributed"] == 1


def test_a_roster_holds_to_the_next_one_and_at_most_five_minutes() -> None:
    said = roster(0, [{"bucket": Bucket.FREE}], valid_ms=60 * MINUTE)
    made = sheet([], rosters=said, end=10 * MINUTE)
    assert made.time(Bucket.FREE) == 5 * MINUTE
    both = [*said, *roster(MINUTE, [])]
    assert sheet([], rosters=both, end=10 * MINUTE).time(Bucket.FREE) == MINUTE


def test_a_rosters_word_on_down_is_missing_at_once() -> None:
    said = roster(0, [{"bucket": Bucket.MISSING}])
    assert sheet([], rosters=said).time(Bucket.MISSING) == MINUTE


def test_a_failed_card_stays_failed_though_the_roster_allocates_it() -> None:
    said = roster(0, [{"bucket": Bucket.ACTIVE, "job": "j"}])
    assert sheet(minute(bucket=Bucket.FAILED), rosters=said).time(Bucket.FAILED) == MINUTE


def test_an_allocated_card_without_a_process_is_idle_and_a_process_without_allocation_rogue() -> (
    None
):
    allocated = roster(0, [{"bucket": Bucket.ACTIVE, "job": "j"}])
    made = sheet(minute(bucket=Bucket.FREE), rosters=allocated)
    assert made.time(Bucket.IDLE_ALLOC) == MINUTE
    assert steps(made)["no_process"] == 1
    free = roster(0, [{"bucket": Bucket.FREE}])
    rogue = sheet(minute(bucket=Bucket.ACTIVE), rosters=free)
    assert rogue.time(Bucket.FREE) == MINUTE
    assert rogue.rogue.all()


def test_a_shared_card_counts_once_and_each_job_its_weight() -> None:
    rows = [*minute(weight=0.5, job="a", sm=0.8, tensor=0.4), *minute(weight=0.5, job="b")]
    said = roster(
        0,
        [
            {"bucket": Bucket.ACTIVE, "job": "a", "weight": 0.5},
            {"bucket": Bucket.ACTIVE, "job": "b", "weight": 0.5},
        ],
    )
    made = sheet(rows, rosters=said)
    assert made.time() == MINUTE
    assert made.where(made.texts["job"] == "a").time() == MINUTE // 2
    assert figures(made, MINUTE)["cards"]["allocated"] == 1.0


def test_of_overlapping_spools_the_newest_wins_whole() -> None:
    old = minute(bucket=Bucket.FREE)
    new = [row(t + 5_000, spool_id="b", stored_unix_ms=2) for t in range(0, 50_000, 10_000)]
    made = sheet([*old, *new])
    assert made.time(Bucket.ACTIVE) == 50_000
    assert made.time() == MINUTE


def test_a_row_is_cut_where_the_roster_changes() -> None:
    said = [
        *roster(0, [{"bucket": Bucket.ACTIVE, "job": "a"}]),
        *roster(3_333, [{"bucket": Bucket.FREE}]),
    ]
    made = sheet([row(0, sm=0.9, tensor=0.5)], rosters=said, end=10_000)
    assert made.time(Bucket.ACTIVE) == 3_333
    assert made.time(Bucket.FREE) == 6_667
    assert steps(made)["sm_idle"] == pytest.approx(0.1 * 0.3333, abs=1e-6)


def test_a_job_that_starts_declaring_moves_no_headline() -> None:
    silent = sheet(minute(sm=0.9, tensor=0.43))
    talking = sheet(minute(sm=0.9, tensor=0.43, model_flops=0.36 * H100_BF16_FLOPS * 10))
    before, after = figures(silent, MINUTE), figures(talking, MINUTE)
    assert before["hfu"]["value"] == after["hfu"]["value"] == pytest.approx(0.43)
    assert before["allocation"] == after["allocation"]
    assert before["yield"] == after["yield"]
    assert before["mfu"]["declared_share"] == 0
    assert after["mfu"]["declared_share"] == 1
    assert before["mfu"]["value"] is None
    assert before["mfu"]["lo"] == pytest.approx(0.72 * 0.43 * (1 - GPM_SPREAD))
    assert before["mfu"]["hi"] == pytest.approx(0.43 * (1 + GPM_SPREAD))
    assert after["mfu"]["value"] == pytest.approx(0.36)
    assert after["mfu"]["lo"] == after["mfu"]["hi"] == after["mfu"]["value"]
    shares = steps(talking)
    assert shares["model_flops"] == pytest.approx(0.36)
    assert shares["recompute"] == pytest.approx(0.07)
    assert shares["hardware_flops"] == 0


def test_an_unknown_sku_counts_in_allocation_and_not_in_hfu() -> None:
    known = minute(sm=0.9, tensor=0.5)
    strange = minute(sm=0.9, tensor=0.5, name="s1", sku="X9", capacity_flops=None, u_flops=None,
                     u_lo_flops=None, u_hi_flops=None, counted_ms=0)  # fmt: skip
    made = sheet([*known, *strange], slots=[slot(), slot(name="s1", sku="X9")])
    shown = figures(made, MINUTE)
    assert shown["cards"]["allocated"] == 2.0
    assert shown["hfu"]["value"] == pytest.approx(0.5)
    assert steps(made)["unattributed"] == pytest.approx(0.5)


def test_without_a_reference_clock_the_clock_step_is_null_and_u_is_bounded() -> None:
    bound = 0.5 * H100_BF16_FLOPS * 10
    rows = minute(sm=0.9, tensor=0.5, counted_ms=0, u_flops=None, sm_active_clock_ms=None,
                  tensor_active_clock_ms=None, u_lo_flops=0.8 * bound, u_hi_flops=bound)  # fmt: skip
    made = sheet(rows)
    fall = {s["step"]: s["share"] for s in waterfall(made)}
    assert fall["clock"] is None
    assert fall["tensor_gap"] == pytest.approx(0.4)
    hfu = figures(made, MINUTE)["hfu"]
    assert hfu["value"] is None
    assert hfu["lo"] == pytest.approx(0.4 * (1 - GPM_SPREAD))
    assert hfu["hi"] == pytest.approx(0.5 * (1 + GPM_SPREAD))


@pytest.mark.parametrize(
    ("method", "spread"),
    [("cycle_counters", 0.02191), ("gpm", GPM_SPREAD), ("dcgm", 0.04152)],
)
def test_a_method_that_knows_less_has_wider_bounds(method: str, spread: float) -> None:
    hfu = figures(sheet(minute(sm=0.9, tensor=0.5, efficiency_method=method)), MINUTE)["hfu"]
    assert hfu["value"] == pytest.approx(0.5)
    assert hfu["lo"] == pytest.approx(0.5 * (1 - spread), abs=1e-5)
    assert hfu["hi"] == pytest.approx(0.5 * (1 + spread), abs=1e-5)


def test_methods_are_mixed_by_what_each_of_them_counted() -> None:
    idle = minute(sm=0.1, tensor=0.0, name="s1", efficiency_method="dcgm")
    busy = minute(sm=0.9, tensor=0.4, efficiency_method="gpm")
    equal = minute(sm=0.9, tensor=0.4, name="s1", efficiency_method="dcgm")
    slots = [slot(), slot(name="s1")]
    alone = figures(sheet([*busy, *idle], slots=slots), MINUTE)["hfu"]
    assert alone["hi"] == pytest.approx(0.2 * (1 + GPM_SPREAD))
    mixed = figures(sheet([*busy, *equal], slots=slots), MINUTE)["hfu"]
    assert mixed["hi"] == pytest.approx(0.4 * (1 + (GPM_SPREAD + 0.04152) / 2), abs=1e-5)


def test_a_card_with_neither_counters_nor_declaration_is_unattributed() -> None:
    blind = dict.fromkeys(
        ("sm_active_ms", "tensor_active_ms", "sm_active_clock_ms", "tensor_active_clock_ms",
         "u_flops", "u_lo_flops", "u_hi_flops"),
    )  # fmt: skip
    made = sheet(minute(counted_ms=0, efficiency_method="none", power_watts_max=690.0, **blind))
    shares = {name: share for name, share in steps(made).items() if share}
    assert shares == {"unattributed": pytest.approx(1.0)}
    shown = figures(made, MINUTE)
    assert (shown["hfu"]["value"], shown["hfu"]["lo"], shown["hfu"]["hi"]) == (None, None, None)
    assert (shown["mfu"]["value"], shown["mfu"]["lo"], shown["mfu"]["hi"]) == (None, None, None)
    assert shown["hfu"]["methods"] == [{"method": "none", "share": 1.0}]


def test_lost_points_name_the_buckets() -> None:
    rows = [*minute(), *minute(name="s1", bucket=Bucket.FREE)]
    made = sheet(rows, slots=[slot(), slot(name="s1")])
    assert lost_points(made) == {"FREE": 50.0}


_BUCKETS = st.sampled_from([b for b in Bucket if b not in (Bucket.UNSEEN, Bucket.MISSING)])
_SPOKEN = st.sampled_from(list(Bucket)[1:])


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 89), _BUCKETS, st.floats(0, 1), st.floats(0, 1)
        ),
        max_size=40,
        unique_by=lambda r: (r[0], r[1]),
    ),
    said=st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 3), _SPOKEN), max_size=6),
)
def test_every_millisecond_is_accounted_once_and_a_is_v_times_s(rows: Any, said: Any) -> None:
    slots = [slot(name=f"s{i}", start=i * 1_234) for i in range(4)]
    made = sheet(
        [
            row(t * 10_000, b, name=f"s{s}", sm=max(x, y), tensor=y, clock=0.5 + x)
            for s, t, b, x, y in rows
        ],
        slots=slots,
        rosters=[
            r for t, s, b in said for r in roster(t, [{"slot": f"s{s}", "bucket": b, "job": "j"}])
        ],
        end=15 * MINUTE,
        now=20 * MINUTE,
    )
    assert made.time() == sum(15 * MINUTE - i * 1_234 for i in range(4))
    fall = waterfall(made)
    assert sum(s["share"] or 0 for s in fall) == pytest.approx(1, abs=1e-9)
    assert sum(s["card_seconds"] or 0 for s in fall) == pytest.approx(made.time() / 1000, abs=1e-6)
    shown = figures(made, 15 * MINUTE)
    a, v, s = (shown[n]["value"] for n in ("allocation", "availability", "schedulable_allocation"))
    if s is not None:
        assert a == pytest.approx(v * s, abs=1e-9)
    assert not any(np.isinf(values).any() for values in made.sums.values())

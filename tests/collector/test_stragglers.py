"""Culprits named among victims, in generated jobs: every figure here is simulated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from flopwatch.simulate.ranks import KINDS, Job, generate
from flopwatch_collector.jobs.alignment import aligned
from flopwatch_collector.jobs.crowd import Counters, outlier
from flopwatch_collector.jobs.lag import Floats, curve_of, fit
from flopwatch_collector.jobs.stragglers import Stragglers, find

PLANTED_SEED = 500_000
CLEAN_SEED = 510_000
HELD_OUT_SEED = 900_000


def counters(job: Job) -> Counters:
    return Counters(
        nodes=job.nodes, slots=job.slots, taken_s=job.taken_unix_ms / 1000, fields=job.fields
    )


def looked(jobs: Iterable[Job]) -> Counter[str]:
    """Count jobs by what was said of them."""
    said: Counter[str] = Counter()
    for job in jobs:
        found = find(counters(job))
        first = found.culprits[0] if found.culprits else None
        if job.fault is None:
            said["clean"] += 1
            said["invented"] += first is not None
            continue
        said["planted"] += 1
        if first is not None and job.fault.is_at(first.node, first.slot):
            said["named"] += 1
            said["kind"] += first.kind == job.fault.kind
    return said


def test_of_100_jobs_the_culprit_is_named_first_and_none_is_invented() -> None:
    planted = [(PLANTED_SEED + i, KINDS[i % len(KINDS)]) for i in range(75)]
    said = looked(generate(seed, kind) for seed, kind in planted)
    assert said["named"] >= 0.9 * said["planted"], said
    assert said["kind"] >= 0.85 * said["planted"], said
    clean = looked(generate(CLEAN_SEED + i, None) for i in range(25))
    assert clean["invented"] <= 0.05 * clean["clean"], clean


def test_jobs_of_seeds_held_out_are_judged_as_well() -> None:
    said = looked(generate(HELD_OUT_SEED + i, KINDS[i % len(KINDS)]) for i in range(20))
    assert said["named"] >= 0.85 * said["planted"], said
    clean = looked(generate(HELD_OUT_SEED + 1000 + i, None) for i in range(40))
    assert clean["invented"] <= 2, clean


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told_apart_with_its_evidence(kind: str) -> None:
    job = generate(7_001, kind, 0.3, nodes=16)
    found = find(counters(job))
    assert job.fault is not None
    first = found.culprits[0]
    assert (first.kind, job.fault.is_at(first.node, first.slot)) == (kind, True)
    assert (first.slot is None) == (kind == "data_stall")
    assert 0.5 <= first.confidence < 1
    assert any(character.isdigit() for character in first.evidence[0])
    shown = found.shown()
    assert shown["judged"] is True
    assert shown["culprits"][0]["evidence"] == list(first.evidence)


def test_a_thermal_throttle_stands_beside_a_slow_clock() -> None:
    said = [
        find(counters(generate(seed, "slow_clock", 0.3, nodes=8))) for seed in range(7_100, 7_108)
    ]
    told = [f for f in said if any("thermal hw" in e for c in f.culprits for e in c.evidence)]
    assert 1 <= len(told) < len(said)  # the generator tells it of some of them only


def test_cards_are_compared_at_one_moment_whatever_their_readings_begin_with() -> None:
    job = counters(generate(7_001, "late_rank", 0.3, nodes=8))
    one = np.arange(len(job.nodes)) % 8 == 3  # of each node: the window began behind its reading

    def cut(values: Floats) -> Floats:
        moved = np.concatenate([values[:, 1:], np.full((len(values), 1), np.nan)], axis=1)
        return np.where(one[:, None], moved, values)

    shifted = replace(
        job, taken_s=cut(job.taken_s), fields={n: cut(v) for n, v in job.fields.items()}
    )
    whole, same = aligned(job).fields, aligned(shifted).fields
    for name, values in whole.items():
        np.testing.assert_array_equal(same[name][~one], values[~one])
        np.testing.assert_array_equal(same[name][one, 1:], values[one, 1:])
    said, found = find(job), find(shifted)
    assert [(c.kind, c.node, c.slot) for c in found.culprits] == [
        (c.kind, c.node, c.slot) for c in said.culprits
    ]


def test_moments_at_which_few_cards_have_counters_are_left_out() -> None:
    job = counters(generate(7_001, None, nodes=8))
    seldom = np.arange(job.taken_s.shape[1]) % 2 == 0
    one = np.arange(len(job.nodes)) % 8 == 0  # a card of each node, whose counters come between
    holes = seldom[None, :] == one[:, None]
    fields = {n: np.where(holes, np.nan, v) for n, v in job.fields.items()}
    found = aligned(replace(job, fields=fields))
    assert found.taken_s.shape[1] == pytest.approx(seldom.sum(), abs=1)
    assert np.isnan(found.fields["sm_active_ratio"][one]).all()
    assert find(replace(job, fields=fields)).culprits == ()


def test_the_step_is_seen_in_the_counters() -> None:
    job = generate(7_201, None, nodes=16)
    found = find(counters(job))
    assert found.step_s == pytest.approx(job.step_s, rel=0.15)


@pytest.mark.parametrize("kind", ["slow_clock", "slow_card"])
def test_rows_of_10_s_show_clocks_and_say_the_rest_with_less_confidence(kind: str) -> None:
    fine = counters(generate(7_301, kind, 0.4, nodes=16))
    width = fine.taken_s.shape[1] // 2
    coarse = Counters(
        nodes=fine.nodes,
        slots=fine.slots,
        taken_s=fine.taken_s[:, :width] * 10,
        fields={
            name: values[:, : 2 * width].reshape(len(values), width, 2).mean(axis=2)
            for name, values in fine.fields.items()
        },
    )
    found = find(coarse)
    assert found.culprits[0].kind == kind
    assert (found.culprits[0].confidence <= 0.7) == (kind != "slow_clock")
    assert found.step_s is None


def test_idle_nodes_are_counted_and_not_blamed() -> None:
    jobs = (generate(seed, None) for seed in range(7_400, 7_440))
    found = next(f for f in (find(counters(job)) for job in jobs) if f.idle_cards)
    assert found.idle_cards % 8 == 0
    assert found.culprits == ()
    assert found.reason == "nobody stands out from its peers"


def judged(found: Stragglers) -> tuple[bool, str]:
    return found.judged, found.reason


def test_what_is_too_little_is_not_judged() -> None:
    job = counters(generate(7_001, "slow_clock", 0.5, nodes=8))
    few = Counters(
        nodes=job.nodes[:8],
        slots=job.slots[:8],
        taken_s=job.taken_s[:8],
        fields={name: values[:8] for name, values in job.fields.items()},
    )
    said = judged(find(few))
    assert said[0] is False
    assert said[1].startswith("8 working cards on 1 nodes")
    blind = replace(job, fields={"power_watts": job.fields["power_watts"]})
    assert judged(find(blind)) == (False, "its cards have no counters of SM and tensor activity")
    nothing = Counters(nodes=[], slots=[], taken_s=np.empty((0, 0)), fields={})
    assert find(nothing).judged is False


def test_lags_far_below_the_time_between_readings_are_found() -> None:
    rng = np.random.default_rng(5)
    nodes, readings, step_s = 32, 60, 2.3
    ticks = np.arange(readings) + rng.uniform(0, 1, (nodes, 1))

    def mean(at: Floats) -> Floats:  # of 1 + sin, over the second before
        w = 2 * np.pi / step_s
        return np.asarray(1 - (np.cos(w * at) - np.cos(w * (at - 1))) / w)

    values = mean(ticks)
    values[3] = mean(ticks[3] - 0.1)
    curve = curve_of(ticks, values, 1.0)
    by_node = fit(curve.own - curve.others, curve.others, curve.slope).lag_s
    assert by_node[3] == pytest.approx(0.1, abs=0.02)
    assert np.abs(np.delete(by_node, 3)).max() < 0.06
    # Cards of one node are read together: a thousandth of the time between readings is seen.
    card = mean(ticks - 0.002) - mean(ticks)
    beside = fit(card[5:6], curve.others[5:6], curve.slope[5:6]).lag_s
    assert beside[0] == pytest.approx(0.002, rel=0.3)


def test_an_outlier_must_leave_the_next_behind() -> None:
    values = np.concatenate([np.linspace(-1, 1, 40), [8.0, 7.9]])
    crowded = outlier(values, np.arange(42), 0.01)
    alone = outlier(values[:-1], np.arange(41), 0.01)
    assert crowded is not None
    assert alone is not None
    assert (crowded.index, alone.index) == (40, 40)
    assert crowded.next_ratio == pytest.approx(8 / 7.9, rel=0.01)
    assert alone.next_ratio > 5
    assert outlier(np.full(9, np.nan), np.arange(9), 0.01) is None

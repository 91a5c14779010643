"""What simulated nodes send: totals over rows equal the scenario's closed form."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from flopwatch.simulate import scenario, scheduler
from flopwatch.simulate.player import NodePlayer, slot_name
from flopwatch_agent.interval import Fold
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

ACCEPTANCE = Path(__file__).parent.parent / "scenarios" / "acceptance.toml"
START = 1_790_000_000_000  # a multiple of 10 s
H100_BF16 = 989e12


def play(
    parsed: scenario.Scenario, node: int, *, start_unix_ms: int = START
) -> tuple[list[IntervalRow], list[pb.Event]]:
    cluster = parsed.clusters[0]
    player = NodePlayer(
        parsed,
        cluster,
        node,
        start_unix_ms=start_unix_ms,
        make_fold=lambda: Fold(interval_ms=parsed.interval_ms, dtype=cluster.dtype),
    )
    rows: list[IntervalRow] = []
    events: list[pb.Event] = []
    while player.next_ms is not None:
        played = player.step()
        rows += played.rows
        events += played.events
    return rows, events


def one_node(phase: str, *, duration: str = "10m", extra: str = "") -> scenario.Scenario:
    return scenario.parse(
        f'[scenario]\nduration = "{duration}"\n[[cluster]]\nname = "a"\n'
        f'sku = "NVIDIA H100 80GB HBM3"\nnodes = 1\n[[cluster.phase]]\n{phase}\n{extra}'
    )


def total(rows: list[IntervalRow], name: str) -> float:
    values = (row.values.get(name, Absence.MISSING) for row in rows)
    return sum(value for value in values if not isinstance(value, Absence))


def test_the_acceptance_scenario_sends_the_card_seconds_that_its_file_works_out() -> None:
    parsed = scenario.load(ACCEPTANCE)
    card_ms: Counter[str] = Counter()
    for node in (0, 1, 2, 3, 4, 5, 6, 25, 50, 53, 54, 55, 56, 57, 58):
        for row in play(parsed, node)[0]:
            card_ms[f"{node} {row.bucket.name}"] += row.card_times["card_ms"]
    whole = 8 * 1_800_000
    assert card_ms == {
        "0 ACTIVE": whole,
        "1 ACTIVE": whole - 8 * 300_000,
        "2 ACTIVE": whole - 8 * 1_200_000,
        "3 ACTIVE": whole - 1_080_000,
        "3 FAILED": 1_080_000,
        "4 ACTIVE": whole - 8 * 1_200_000,
        "5 ACTIVE": whole - 8 * 300_000,
        "6 ACTIVE": whole - 8 * 1_200_000,
        "25 ACTIVE": whole,
        "50 IDLE_ALLOC": whole,
        "53 ACTIVE": 7 * 1_800_000 + 1_350_000,
        "53 FREE": 450_000,
        "54 FAILED": 2 * 1_800_000,
        "54 FREE": 6 * 1_800_000,
        "55 MAINT": whole,
        "56 HELD": whole,
        "57 FREE": whole,
        "58 FREE": whole,
    }


def test_sums_over_rows_equal_the_closed_form() -> None:
    parsed = one_node(
        "sm_active = 0.9\ntensor_active = 0.45\nsm_clock_mhz = 1647\npower_watts = 620\n"
        "throttle = { power = 0.1 }\ndeclared_mfu = 0.38"
    )
    rows, _ = play(parsed, 0)
    seconds = 8 * 600.0
    assert total(rows, "sm_active_ms") == pytest.approx(0.9 * seconds * 1e3, rel=1e-9)
    assert total(rows, "u_flops") == pytest.approx(
        0.45 * 1647 / 1830 * H100_BF16 * seconds, rel=2e-3
    )
    assert total(rows, "energy_joules") == pytest.approx(620 * seconds, rel=1e-9)
    assert total(rows, "throttled_power_ms") == pytest.approx(0.1 * seconds * 1e3, rel=1e-9)
    capacity = total(rows, "capacity_flops")
    assert total(rows, "model_flops") == pytest.approx(0.38 * capacity, rel=1e-9)
    assert sum(row.card_times["counted_ms"] for row in rows) == seconds * 1e3


def test_a_phase_edge_inside_an_interval_cuts_the_row_and_loses_nothing() -> None:
    second = '[[cluster.phase]]\nfrom = "124500ms"\nto = "127s"\nstate = "free"\n'
    parsed = one_node(
        'job = "j"\ntensor_active = 0.5\nsm_active = 0.5\ndeclared_mfu = 0.4', extra=second
    )
    rows = [row for row in play(parsed, 0)[0] if row.slot == slot_name(0)]
    around = [
        (row.start_unix_ms - START, row.duration_ms, row.bucket)
        for row in rows
        if 120_000 <= row.start_unix_ms - START < 130_000
    ]
    assert around == [
        (120_000, 4_500, Bucket.ACTIVE),
        (124_500, 2_500, Bucket.FREE),
        (127_000, 3_000, Bucket.ACTIVE),
    ]
    active_seconds = 600.0 - 2.5
    assert total(rows, "model_flops") == pytest.approx(0.4 * H100_BF16 * active_seconds, rel=2e-3)


def test_a_start_off_the_grid_opens_with_a_short_row() -> None:
    rows, _ = play(one_node("sm_active = 0.5"), 0, start_unix_ms=START + 1_234)
    first = min(row.start_unix_ms for row in rows)
    assert first == START + 1_234
    assert {row.duration_ms for row in rows if row.start_unix_ms == first} == {8_766}
    assert sum(row.card_times["card_ms"] for row in rows) == 8 * 600_000


def test_a_failed_card_answers_nothing() -> None:
    rows, _ = play(one_node('state = "failed"\ncards = "0"\njob = "j"'), 0)
    failed = [row for row in rows if row.slot == slot_name(0)]
    assert {row.bucket for row in failed} == {Bucket.FAILED}
    assert sum(row.card_times["covered_ms"] for row in failed) == 0
    assert sum(row.card_times["card_ms"] for row in failed) == 600_000


def test_an_idle_allocation_has_no_process_and_a_rogue_one_has() -> None:
    idle, _ = play(one_node('state = "idle_alloc"\njob = "j"'), 0)
    assert sum(row.card_times["resident_ms"] for row in idle) == 0
    assert {(row.bucket, row.texts["job"]) for row in idle} == {(Bucket.IDLE_ALLOC, "j")}
    rogue, _ = play(one_node('state = "rogue"\nsm_active = 0.3'), 0)
    assert {(row.bucket, row.rogue) for row in rogue} == {(Bucket.FREE, True)}
    assert sum(row.card_times["resident_ms"] for row in rogue) == 8 * 600_000


def test_the_same_seed_gives_the_same_readings_and_noise_has_its_size() -> None:
    parsed = one_node("sm_active = 0.5\ntensor_active = 0.4\nnoise = 0.05")
    first, _ = play(parsed, 0)
    again, _ = play(parsed, 0)
    assert first == again
    ratios = [float(row.values["tensor_active_ms"]) / row.duration_ms for row in first]
    mean = sum(ratios) / len(ratios)
    deviation = (sum((r - mean) ** 2 for r in ratios) / len(ratios)) ** 0.5
    assert mean == pytest.approx(0.4, rel=0.02)
    assert deviation == pytest.approx(0.02, rel=0.15)


def test_an_xid_is_an_event_of_its_node_at_its_moment() -> None:
    parsed = one_node(
        "sm_active = 0.5",
        extra='[[cluster.xid]]\nat = "61s"\nnode = 0\ncard = 2\ncode = 79\n',
    )
    rows, events = play(parsed, 0)
    assert [(e.slot, e.time_unix_ms - START, e.kind, e.code, e.severity) for e in events] == [
        (slot_name(2), 61_000, "xid", 79, "fatal")
    ]
    failed_ms = sum(r.card_times["card_ms"] for r in rows if r.bucket is Bucket.FAILED)
    assert failed_ms == 600_000 - 61_000


def test_a_node_that_is_stopped_closes_its_rows_there() -> None:
    parsed = one_node("sm_active = 0.5")
    cluster = parsed.clusters[0]
    player = NodePlayer(parsed, cluster, 0, start_unix_ms=START, make_fold=Fold)
    rows = player.step().rows + player.stop(23_456).rows
    assert sum(row.card_times["card_ms"] for row in rows) == 8 * 23_456
    assert player.next_ms is None


def test_the_roster_says_each_phase_and_is_silent_about_the_silent() -> None:
    parsed = scenario.load(ACCEPTANCE)
    cluster = parsed.clusters[0]
    said = scheduler.roster(parsed, cluster, at_ms=360_000, start_unix_ms=START)
    by_node: dict[str, Counter[int]] = {}
    for node, bucket in zip(said.node, said.bucket, strict=True):
        by_node.setdefault(said.strings[node], Counter())[bucket] += 1
    assert "atlas-0001" not in by_node
    assert "atlas-0002" not in by_node
    assert by_node["atlas-0004"] == {Bucket.MISSING: 8}
    assert by_node["atlas-0005"] == {Bucket.ALLOCATED: 8}
    assert by_node["atlas-0057"] == {Bucket.FREE: 8}
    assert by_node["atlas-0053"] == {Bucket.ACTIVE: 9, Bucket.FREE: 1}
    assert sum(said.weight) == pytest.approx(512 - 16)


def test_a_scheduler_tells_its_queue_only_where_the_scenario_names_one() -> None:
    text = ACCEPTANCE.read_text(encoding="utf-8")
    silent, telling = (
        scheduler.roster(parsed, parsed.clusters[0], at_ms=360_000, start_unix_ms=START)
        for parsed in map(
            scenario.parse, (text, text.replace("nodes = 64", "nodes = 64\npending_cards = 7"))
        )
    )
    assert not silent.HasField("free_cards")
    assert telling.pending_cards == 7
    assert telling.free_cards == pytest.approx(6 + 7 * 8 + 0.25)


def test_rosters_hold_no_longer_than_the_scenario_and_come_at_every_edge() -> None:
    parsed = scenario.load(ACCEPTANCE)
    cluster = parsed.clusters[0]
    times = list(scheduler.roster_times_ms(parsed, cluster))
    assert times[0] == 0
    assert set(cluster.edges_ms) <= set(times)
    gaps = [b - a for a, b in zip(times, [*times[1:], parsed.duration_ms], strict=True)]
    assert max(gaps) <= 240_000
    last = scheduler.roster(parsed, cluster, at_ms=times[-1], start_unix_ms=START)
    assert last.valid_until_unix_ms == START + parsed.duration_ms


def test_slots_are_declared_in_service_for_exactly_the_scenario() -> None:
    parsed = scenario.load(ACCEPTANCE)
    portions = list(
        scheduler.declarations(parsed.clusters[0], from_unix_ms=START, to_unix_ms=START + 5)
    )
    declared = [each for portion in portions for each in portion]
    assert len({(each.node, each.slot) for each in declared}) == 512
    assert len({each.device_uuid for each in declared}) == 512
    assert {(each.from_unix_ms, each.to_unix_ms) for each in declared} == {(START, START + 5)}
    assert {each.state for each in declared} == {pb.SLOT_STATE_IN_SERVICE}

"""What rules do not expect: spares, reservations, nodes in maintenance; and that it hides no loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from evidence_tables import MINUTE, roster, row, slot
from flopwatch_collector import excused_settings
from flopwatch_collector.excused import Excuses, excuses_of
from flopwatch_collector.excused_settings import ExcusedConfig, ReservationConfig, SparesConfig
from flopwatch_collector.live import Live
from flopwatch_collector.roster.said import reservations_of
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Bucket

T0 = 30_000_000 * MINUTE
MFU = rule_named("mfu").defaults
SPARES = SparesConfig(cluster="atlas", rack=r"(n[0-4])", cards_needed=3)


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [record.get(name) for record in records] for name in records[0]}


def speak(to: Live, card: int, bucket: Bucket) -> None:
    node = f"n{card // 4}"
    said = row(T0, bucket, node=node, name=f"s{card % 4}", sm=0.9, tensor=0.5)
    to.add("atlas", node, False, columns([said]), T0 + 12_000)


def live(excuses: Excuses) -> Live:
    made = Live(T0, lambda cluster: MFU, lambda cluster, tick_unix_ms: excuses)
    made.slots("atlas", False, columns([slot(f"n{i // 4}", f"s{i % 4}", T0) for i in range(20)]))
    return made


def allocation(of: Live) -> Observation:
    return next(o for o in of.observe("atlas", T0 + 10_000) if o.rule == "allocation")


def seen(excuses: Excuses, lost: dict[int, Bucket], **more: Any) -> Observation:
    """What is observed of 20 cards on five nodes, of which some are lost."""
    now = live(excuses)
    for card in range(20):
        bucket = lost.get(card, Bucket.ACTIVE)
        if bucket is not Bucket.UNSEEN:
            speak(now, card, bucket)
    for name, said in more.items():
        getattr(now, name)("atlas", False, said)
    return allocation(now)


def test_a_rack_may_do_without_its_spares_and_without_no_more() -> None:
    full = seen(Excuses(), {3: Bucket.FREE, 7: Bucket.FAILED})
    assert (full.lo, full.excused_cards) == (0.9, 0.0)
    spared = seen(Excuses(spares=(SPARES,)), {3: Bucket.FREE, 7: Bucket.FAILED})
    assert (spared.lo, spared.in_service_cards, spared.excused_cards) == (1.0, 18.0, 2.0)
    assert spared.lost_points == {}
    two_of_one = seen(Excuses(spares=(SPARES,)), {2: Bucket.FAILED, 3: Bucket.HELD})
    assert two_of_one.excused_cards == 1.0
    assert set(two_of_one.lost_points) == {"FAILED"}
    assert two_of_one.hi == pytest.approx(18 / 19)


def test_a_rack_that_is_dark_lost_what_it_needs() -> None:
    dark = seen(Excuses(spares=(SPARES,)), dict.fromkeys(range(4), Bucket.FAILED))
    assert (dark.excused_cards, dark.in_service_cards) == (1.0, 19.0)
    assert dark.lost_points["FAILED"] == pytest.approx(100 * 3 / 19)


def test_nodes_in_maintenance_are_not_expected_but_count_while_they_are_used() -> None:
    lost = {0: Bucket.MAINT, 1: Bucket.MAINT, 2: Bucket.UNSEEN}
    resting = seen(Excuses(nodes=("n0", "x*")), lost)
    assert (resting.lo, resting.hi, resting.excused_cards) == (1.0, 1.0, 3.0)
    assert resting.in_service_cards == 17.0
    assert resting.silent_nodes == {}


def test_a_named_reservation_excuses_what_it_holds() -> None:
    excuses = excuses_of(
        ExcusedConfig(reservation=(ReservationConfig(cluster="atlas", name="spare*"),)), "atlas"
    )
    said = roster(
        T0,
        [
            {"bucket": Bucket.HELD, "workload_class": "reservation:spares"},
            {"node": "n1", "bucket": Bucket.HELD, "workload_class": "reservation:exam, physics"},
        ],
    )
    observed = seen(excuses, {0: Bucket.UNSEEN, 4: Bucket.UNSEEN}, roster=columns(said))
    assert observed.excused_cards == 1.0
    assert observed.lost_points == {"HELD": pytest.approx(100 / 19)}
    assert reservations_of("training") == ()


def test_excuses_are_of_one_cluster() -> None:
    config = ExcusedConfig(spares=(SPARES,))
    assert excuses_of(config, "atlas", ["n1"]) == Excuses(nodes=("n1",), spares=(SPARES,))
    assert not excuses_of(config, "borealis")


@pytest.mark.parametrize(
    ("rack", "needed", "words"),
    [("(r", 64, "no regular expression"), ("r.*", 64, "names no rack"), ("(r).*", -1, "0 or more")],
)
def test_a_policy_that_says_nothing_is_refused(rack: str, needed: int, words: str) -> None:
    wrong = SparesConfig(cluster="atlas", rack=rack, cards_needed=needed)
    with pytest.raises(UsageError, match=rf"excused.spares\[0\].*{words}"):
        excused_settings.validate(ExcusedConfig(spares=(wrong,)))

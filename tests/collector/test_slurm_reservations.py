"""Reservations of a part of a node hold no more than that; what ran lately is the mix where nothing waits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from flopwatch_collector.roster.said import Said
from flopwatch_collector.roster.slurm import Reading, judge
from flopwatch_collector.roster.slurm_demand import RECENT_JOBS_MAX, RECENT_MS, RecentJobs
from flopwatch_collector.roster.slurm_layout import Cards, Job, Node
from flopwatch_collector.roster.slurm_reservations import Reservation, reservations_in
from flopwatch_collector.roster.stranded import JobShape
from flopwatch_proto.rows import Bucket

RECORDED = (  # Slurm 22.05.8: scontrol -a -o show reservation
    "ReservationName=c1 StartTime=2026-11-22T23:40:58 EndTime=2026-11-23T00:40:58 Duration=01:00:00 "
    "Nodes=n1 NodeCnt=1 CoreCnt=4 Features=(null) PartitionName=base Flags=SPEC_NODES   NodeName=n1 "
    "CoreIDs=0-3 TRES=cpu=4 Users=root Groups=(null) Accounts=(null) Licenses=(null) State=ACTIVE "
    "BurstBuffer=(null) Watts=n/a MaxStartDelay=(null)\n"
    "ReservationName=full StartTime=2026-11-22T23:39:24 EndTime=2026-11-23T00:39:24 Duration=01:00:00 "
    "Nodes=n[2-3] NodeCnt=2 CoreCnt=32 Features=(null) PartitionName=(null) Flags=SPEC_NODES "
    "TRES=cpu=32 Users=root Groups=(null) Accounts=(null) Licenses=(null) State=ACTIVE "
    "BurstBuffer=(null) Watts=n/a MaxStartDelay=(null)\n"
)
SLOTS = {"n1": [f"0000:{i:02x}:00.0" for i in range(4)]}
CORES = Reservation(name="c1", nodes=frozenset({"n1"}), cores={"n1": 4})
CARDS = replace(CORES, cards=2)


def node(*states: str, **changed: Any) -> Node:
    facts: dict[str, Any] = {"name": "n1", "cards": 4, "partitions": frozenset({"a"}), "cores": 16}
    return Node(states=frozenset(states), used=Cards(), **{**facts, **changed})


def job(number: int, *cards: int, **changed: Any) -> Job:
    held = (Cards(count=len(cards), indexes=frozenset(cards)),)
    facts: dict[str, Any] = {"nodes": ("n1",), "cards": held, "states": frozenset({"RUNNING"})}
    return Job(id=str(number), shown=str(number), attempt=0, **{**facts, **changed})


def said(of: Node, *jobs: Job, by: Reservation, recent: tuple[JobShape, ...] = ()) -> Said:
    return judge([of], jobs, SLOTS, reading=Reading(), reservations=[by], recent=recent)


def buckets(of: Said) -> dict[Bucket, float]:
    found: Counter[Bucket] = Counter()
    for word in of.words:
        found[word.bucket] += word.weight  # type: ignore[assignment]
    return dict(found)


def test_what_scontrol_says_is_read_and_only_what_is_in_force() -> None:
    assert reservations_in(RECORDED) == (
        CORES,
        Reservation(name="full", nodes=frozenset({"n2", "n3"})),
    )
    assert reservations_in(RECORDED.replace("State=ACTIVE", "State=INACTIVE")) == ()
    assert reservations_in("No reservations in the system\n") == ()
    gpus = RECORDED.replace("TRES=cpu=4", "TRES=cpu=4,gres/gpu=2,gres/gpu:h100=2")
    assert reservations_in(gpus)[0] == CARDS


def test_reserved_cores_hold_no_card_and_a_whole_node_all() -> None:
    reserved = node("IDLE", "RESERVED")
    assert buckets(said(reserved, by=CORES)) == {Bucket.FREE: 4}
    for whole in (replace(CORES, cores={}), replace(CORES, cores={"n1": 16})):
        assert buckets(said(reserved, by=whole)) == {Bucket.HELD: 4}
    elsewhere = replace(CORES, nodes=frozenset({"n2"}))
    assert buckets(said(reserved, by=elsewhere)) == {Bucket.HELD: 4}
    assert buckets(said(node("IDLE", "DRAIN"), by=CARDS)) == {Bucket.MAINT: 4}


def test_reserved_cards_hold_as_many_less_those_that_their_own_jobs_have() -> None:
    of = said(node("IDLE", "RESERVED"), by=CARDS)
    held = {w.slot for w in of.words if w.bucket == Bucket.HELD}
    assert (buckets(of), held) == (
        {Bucket.FREE: 2, Bucket.HELD: 2},
        {"0000:02:00.0", "0000:03:00.0"},
    )
    # Once something runs on the node Slurm no longer calls it reserved.
    own, other = job(1, 0, reservation="c1"), job(2, 1)
    assert buckets(said(node("MIXED"), own, by=CARDS)) == {
        Bucket.ALLOCATED: 1, Bucket.HELD: 1, Bucket.FREE: 2,
    }  # fmt: skip
    assert buckets(said(node("MIXED"), own, other, by=CARDS)) == {
        Bucket.ALLOCATED: 2, Bucket.HELD: 1, Bucket.FREE: 1,
    }  # fmt: skip
    assert buckets(said(node("MIXED"), job(3, 0, 1, 2), by=CARDS)) == {
        Bucket.ALLOCATED: 3, Bucket.HELD: 1,
    }  # fmt: skip


def test_reserved_cores_are_no_cores_of_jobs_that_wait() -> None:
    waits = {"states": frozenset({"PENDING"}), "nodes": (), "cards": (), "reason": "Resources"}
    wide = job(9, **waits, pending_cards=1, pieces=1, cards_per_piece=1, cpus_per_piece=14)
    of = node("IDLE", "RESERVED", free_cpus=16.0)
    assert buckets(said(of, wide, by=CORES)) == {Bucket.STRANDED: 4}
    inside = job(1, 0, reservation="c1", cpus_per_piece=4)
    left = node("MIXED", free_cpus=14.0)
    assert buckets(said(left, wide, inside, by=CORES)) == {Bucket.ALLOCATED: 1, Bucket.FREE: 3}


def test_without_a_queue_the_jobs_of_seven_days_are_the_mix() -> None:
    recent = RecentJobs()
    eight, one = job(1, *range(8), cpus_per_piece=8), job(2, 0, cpus_per_piece=8)
    for _ in range(3):  # however often they are seen
        recent.see([eight, one, replace(one, id="3"), replace(one, id="4")], 1000)
    of = said(node("IDLE"), by=replace(CORES, nodes=frozenset()), recent=recent.shapes())
    assert buckets(of) == {Bucket.STRANDED: 1.0, Bucket.FREE: 3.0}
    assert "25% of the jobs of the last seven days" in of.words[0].why
    recent.see([replace(one, attempt=1)], 1000 + RECENT_MS)
    assert sum(shape.pieces for shape in recent.shapes()) == 5  # another attempt is another job
    recent.see([], 1001 + RECENT_MS)
    assert [shape.pieces for shape in recent.shapes()] == [1]


def test_what_ran_lately_counts_for_nothing_while_a_job_waits() -> None:
    waits = {"states": frozenset({"PENDING"}), "nodes": (), "cards": (), "reason": "Resources"}
    small = job(9, **waits, pending_cards=1, pieces=1, cards_per_piece=1)
    of = said(
        node("IDLE"), small, by=replace(CORES, nodes=frozenset()), recent=(JobShape(cards=8),)
    )
    assert buckets(of) == {Bucket.FREE: 4}


def test_jobs_that_only_wait_or_ended_are_not_remembered_and_their_number_is_bounded() -> None:
    recent = RecentJobs()
    recent.see([job(1, 0, states=frozenset({w})) for w in ("PENDING", "COMPLETED")], 0)
    recent.see([job(2, cards=())], 0)
    assert recent.shapes() == ()
    recent.see((job(i, 0) for i in range(RECENT_JOBS_MAX + 5)), 0)
    assert sum(shape.pieces for shape in recent.shapes()) == RECENT_JOBS_MAX

"""What Slurm's words mean for cards: every bucket, every doubt, every slot once."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwatch_collector.roster.said import Said
from flopwatch_collector.roster.slurm import Reading, judge, natural
from flopwatch_collector.roster.slurm_layout import Cards, Job, Node
from flopwatch_proto.rows import Bucket

SLOTS = {"n1": [f"0000:{i:02x}:00.0" for i in range(4)]}


def node(*states: str, used: Cards | None = None, **changed: Any) -> Node:
    facts: dict[str, Any] = {"name": "n1", "cards": 4, "partitions": frozenset({"a"})}
    return Node(states=frozenset(states), used=used or Cards(), **{**facts, **changed})


def job(number: int = 7, *states: str, cards: set[int] | None = None, **changed: Any) -> Job:
    held = (Cards(count=len(cards or ()), indexes=frozenset(cards or ())),)
    facts: dict[str, Any] = {"nodes": ("n1",), "cards": held, "account": "red", "user": "ada"}
    name = str(number)
    states = states or ("RUNNING",)
    return Job(id=name, shown=name, attempt=0, states=frozenset(states), **{**facts, **changed})


def used(*indexes: int) -> Cards:
    return Cards(count=len(indexes), indexes=frozenset(indexes))


def buckets(said: Said) -> list[Bucket]:
    return [word.bucket for word in sorted(said.words, key=lambda w: w.slot)]


@pytest.mark.parametrize(
    ("states", "without_job", "with_job"),
    [
        (("IDLE",), Bucket.FREE, Bucket.ALLOCATED),
        (
            ("ALLOCATED",),
            Bucket.FREE,
            Bucket.ALLOCATED,
        ),  # all CPUs are used, which says nothing of cards
        (("IDLE", "PLANNED"), Bucket.FREE, Bucket.ALLOCATED),
        (("MIXED", "DRAIN"), Bucket.MAINT, Bucket.ALLOCATED),
        (("IDLE", "MAINTENANCE", "RESERVED"), Bucket.MAINT, Bucket.ALLOCATED),
        (("IDLE", "RESERVED"), Bucket.HELD, Bucket.ALLOCATED),
        (("IDLE", "REBOOT_REQUESTED"), Bucket.MAINT, Bucket.ALLOCATED),
        (("DOWN", "REBOOT_ISSUED", "NOT_RESPONDING"), Bucket.MAINT, Bucket.ALLOCATED),
        (("IDLE", "CLOUD", "POWERED_DOWN"), Bucket.MAINT, Bucket.ALLOCATED),
        (("IDLE", "FAIL"), Bucket.FAILED, Bucket.ALLOCATED),
        (("DOWN",), Bucket.FAILED, Bucket.FAILED),
        (("DOWN", "DRAIN"), Bucket.FAILED, Bucket.FAILED),
        (("DOWN", "NOT_RESPONDING"), Bucket.MISSING, Bucket.MISSING),
        (("UNKNOWN", "DRAIN", "INVALID_REG"), Bucket.FAILED, Bucket.FAILED),
        (("UNKNOWN",), Bucket.FAILED, Bucket.FAILED),
        (("IDLE", "NOT_RESPONDING"), Bucket.FREE, Bucket.ALLOCATED),
    ],
)
def test_the_bucket_of_a_card_by_the_state_of_its_node(
    states: tuple[str, ...], without_job: Bucket, with_job: Bucket
) -> None:
    of = node(*states, used=used(1))
    said = judge([of], [job(cards={1})], SLOTS, reading=Reading())
    assert buckets(said) == [without_job, with_job, without_job, without_job]
    assert said.words[1].job == "7"  # also where the card is lost: the page says whose job it was


def test_a_node_that_is_not_to_be_yet_has_no_word() -> None:
    assert judge([node("FUTURE")], [], SLOTS, reading=Reading()).words == []


def test_not_responding_is_failed_from_the_third_roster_running() -> None:
    silent: dict[str, int] = {}
    for wanted in (Bucket.FREE, Bucket.FREE, Bucket.FAILED):
        said = judge(
            [node("IDLE", "NOT_RESPONDING")], [], SLOTS, reading=Reading(), silent_before=silent
        )
        assert buckets(said) == [wanted] * 4
        silent = said.silent
    assert judge([node("IDLE")], [], SLOTS, reading=Reading(), silent_before=silent).silent == {}


def test_what_a_job_does_with_its_cards() -> None:
    jobs = [
        job(1, "SUSPENDED", cards={0}),
        job(2, "RUNNING", "CONFIGURING", cards={1}),
        job(3, "CANCELLED", "COMPLETING", cards={2, 3}),  # and its third card is free again
        job(4, "COMPLETED", cards={3}),
        job(5, "PENDING", cards={3}),
    ]
    said = judge([node("MIXED", used=used(0, 1, 2))], jobs, SLOTS, reading=Reading())
    assert buckets(said) == [Bucket.SUSPENDED, Bucket.GANG_WAIT, Bucket.ALLOCATED, Bucket.FREE]
    assert [word.job for word in said.words] == ["1", "2", "3", ""]


def test_of_jobs_that_share_a_card_those_that_run_have_it() -> None:
    jobs = [job(1, "SUSPENDED", cards={0}), job(2, cards={0}), job(3, cards={0})]
    said = judge([node("MIXED", used=used(0))], jobs, SLOTS, reading=Reading())
    assert [(w.job, w.weight) for w in said.words if w.job] == [("2", 0.5), ("3", 0.5)]


def test_spare_closed_and_no_partitions_hold() -> None:
    reading = Reading(spare_partitions=frozenset({"spare"}))
    for partitions, closed, wanted in (
        ({"a"}, {"b"}, Bucket.FREE),
        ({"a", "spare"}, set[str](), Bucket.FREE),
        ({"spare"}, set[str](), Bucket.HELD),
        (set[str](), set[str](), Bucket.HELD),
        ({"a", "spare"}, {"a"}, Bucket.HELD),
    ):
        of = node("IDLE", partitions=frozenset(partitions))
        said = judge([of], [], SLOTS, reading=reading, closed_partitions=frozenset(closed))
        assert buckets(said) == [wanted] * 4, (partitions, closed)


def test_classes_come_from_the_qos_before_the_partition() -> None:
    reading = Reading(partition_classes={"a": "training"}, qos_classes={"debug": "interactive"})
    jobs = [job(1, cards={0}, partition="a"), job(2, cards={1}, partition="a", qos="debug")]
    said = judge([node("MIXED", used=used(0, 1))], jobs, SLOTS, reading=reading)
    assert [word.workload_class for word in said.words[:2]] == ["training", "interactive"]


def test_the_cards_of_a_gang_follow_the_node_table_not_the_sorted_host_list() -> None:
    nodes = [node("MIXED", used=used(3), name="z"), node("MIXED", used=used(0, 1), name="b")]
    gang = Job(
        id="7", shown="7", attempt=0, states=frozenset({"RUNNING"}), nodes=("b", "z"),
        cards=(used(3), used(0, 1)),
    )  # fmt: skip
    slots = {"z": SLOTS["n1"], "b": SLOTS["n1"]}
    said = judge(nodes, [gang], slots, reading=Reading())
    held = [(w.node, w.slot) for w in said.words if w.job]
    assert held == [("z", SLOTS["n1"][3]), ("b", SLOTS["n1"][0]), ("b", SLOTS["n1"][1])]
    assert said.hidden_cards == 0


def test_cards_in_use_that_no_visible_job_explains_are_hidden_jobs() -> None:
    said = judge([node("MIXED", used=used(0, 2))], [job(cards={0})], SLOTS, reading=Reading())
    assert buckets(said)[2] == Bucket.ALLOCATED
    assert said.words[2].job == ""
    assert (said.hidden_cards, said.hidden_nodes) == (1, 1)


def test_numbers_of_cards_without_indexes_are_kept_and_said_to_be_guessed() -> None:
    of = node("MIXED", used=Cards(count=3))
    claim = Job(
        id="7", shown="7", attempt=0, states=frozenset({"RUNNING"}), nodes=("n1",),
        cards=(Cards(count=2),),
    )  # fmt: skip
    said = judge([of], [claim], SLOTS, reading=Reading())
    assert [word.job for word in said.words] == ["7", "7", "", ""]
    assert buckets(said) == [Bucket.ALLOCATED] * 3 + [Bucket.FREE]
    assert [doubt.kind for doubt in said.doubts] == ["indexes_unknown"]


def test_where_the_numbers_of_cards_differ_only_what_holds_for_all_is_said() -> None:
    fewer = {"n1": SLOTS["n1"][:3]}
    said = judge([node("MIXED", used=used(1))], [job(cards={1})], fewer, reading=Reading())
    assert said.words == []
    assert "4 cards on n1, flopwatch has 3 slots" in said.doubts[0].text
    assert said.unlisted_free_cards == 3
    idle = judge([node("IDLE")], [], fewer, reading=Reading())
    assert buckets(idle) == [Bucket.FREE] * 3
    assert [doubt.kind for doubt in idle.doubts] == ["cards_differ"]


def test_the_operators_order_of_cards_stands_before_that_of_addresses() -> None:
    order = list(reversed(SLOTS["n1"]))
    reading = Reading(cards={"n1": order})
    said = judge([node("MIXED", used=used(0))], [job(cards={0})], SLOTS, reading=reading)
    assert [word.slot for word in said.words if word.job] == [order[0]]


def test_nodes_go_by_their_short_name_and_their_host_name() -> None:
    slots = {"n1.example.org": SLOTS["n1"], "host9": SLOTS["n1"]}
    nodes = [node("IDLE"), node("IDLE", name="gpu9", hostname="host9"), node("IDLE", name="other")]
    said = judge(nodes, [], slots, reading=Reading())
    assert {word.node for word in said.words} == set(slots)
    assert said.unknown_nodes == ["other"]


def test_slots_sort_by_address_or_as_people_count() -> None:
    assert sorted(["gpu10", "gpu2", "gpu1"], key=natural) == ["gpu1", "gpu2", "gpu10"]
    addresses = ["00000000:E1:00.0", "00000000:0B:00.0", "00000001:01:00.0", "00000000:9a:00.0"]
    assert sorted(addresses, key=natural) == [
        addresses[1],
        addresses[3],
        addresses[0],
        addresses[2],
    ]


def test_a_card_that_no_waiting_job_can_use_where_it_lies_is_stranded() -> None:
    wants = Job(
        id="9", shown="9", attempt=0, states=frozenset({"PENDING"}), reason="Resources",
        pending_cards=8, pieces=1, cards_per_piece=8,
    )  # fmt: skip
    small = Job(
        id="8", shown="8", attempt=0, states=frozenset({"PENDING"}), reason="Priority",
        pending_cards=3, pieces=3, cards_per_piece=1,
    )  # fmt: skip
    said = judge([node("IDLE")], [wants, small], SLOTS, reading=Reading())
    weights: Counter[Bucket] = Counter()
    for word in said.words:
        weights[word.bucket] += word.weight  # type: ignore[assignment]
    assert weights == {Bucket.STRANDED: 1, Bucket.FREE: 3}
    message = said.message(1_000)
    assert (message.pending_jobs, message.pending_cards, message.free_cards) == (2, 11, 3)
    assert message.valid_until_unix_ms - message.taken_unix_ms == 300_000


STATES = st.sets(
    st.sampled_from(
        [
            *(
                "IDLE",
                "MIXED",
                "ALLOCATED",
                "DOWN",
                "DRAIN",
                "FAIL",
                "NOT_RESPONDING",
                "MAINTENANCE",
            ),
            *("RESERVED", "POWERED_DOWN", "UNKNOWN", "INVALID_REG", "REBOOT_ISSUED", "PLANNED"),
            *("COMPLETING", "CLOUD"),
        ]
    ),
    max_size=4,
).map(frozenset)
INDEXES = st.sets(st.integers(0, 9)).map(frozenset)
CARDS = st.builds(lambda i, more: Cards(count=len(i) + more, indexes=i), INDEXES, st.integers(0, 2))
NAMES = st.sampled_from(["n1", "n2", "n3"])
JOBS = st.builds(
    Job,
    id=st.integers(1, 9).map(str),
    shown=st.just("x"),
    attempt=st.just(0),
    states=st.sets(
        st.sampled_from(["RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "PENDING", "FAILED"])
    ).map(frozenset),
    reason=st.sampled_from(["None", "Resources", "Dependency", "QOSGrpGRES"]),
    nodes=st.lists(NAMES, unique=True, max_size=3).map(tuple),
    cards=st.lists(CARDS, max_size=3).map(tuple),
    pending_cards=st.integers(0, 20),
    pieces=st.integers(0, 4),
    cards_per_piece=st.integers(0, 9),
)
NODES = st.lists(
    st.builds(
        Node,
        name=NAMES,
        states=STATES,
        cards=st.integers(0, 9),
        used=CARDS,
        partitions=st.sets(st.sampled_from("ab")).map(frozenset),
        shards_used=st.booleans(),
    ),
    unique_by=lambda n: n.name,
    max_size=3,
)


@given(
    nodes=NODES,
    jobs=st.lists(JOBS, max_size=6, unique_by=lambda j: j.id),
    slots=st.dictionaries(NAMES, st.integers(1, 9).map(lambda n: [f"gpu{i}" for i in range(n)])),
)
def test_every_slot_it_speaks_of_stands_there_once_whatever_slurm_says(
    nodes: list[Node], jobs: list[Job], slots: dict[str, list[str]]
) -> None:
    said = judge(nodes, jobs, slots, reading=Reading(), closed_partitions=frozenset("b"))
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for word in said.words:
        assert word.slot in slots[word.node]
        assert 0 < word.weight <= 1
        assert word.why
        weights[word.node, word.slot] += word.weight
    assert all(abs(weight - 1) < 1e-9 for weight in weights.values())
    known = {n.name: n for n in nodes if n.cards and n.name in slots and "FUTURE" not in n.states}
    for name, of in known.items():
        if of.cards == len(slots[name]) and not of.shards_used:
            assert {slot for n, slot in weights if n == name} == set(slots[name])
    message = said.message(1)
    columns = (
        message.node,
        message.slot,
        message.bucket,
        message.job,
        message.team,
        message.weight,
    )
    assert {len(column) for column in columns} == {len(said.words)}

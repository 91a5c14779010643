"""STRANDED: which free cards the waiting jobs cannot use where they lie."""

from __future__ import annotations

import pytest

from flopwatch_collector.roster.stranded import JobShape, NodeFree, reference_mix, stranded_ratios

EIGHT = JobShape(cards=8, cpus=64, memory_bytes=512 << 30)
ONE = JobShape(cards=1, cpus=8, memory_bytes=16 << 30)


def test_cards_on_a_node_that_no_waiting_job_fits_are_stranded_whole() -> None:
    nodes = [
        NodeFree(node="full", cards=8, cpus=64, memory_bytes=1 << 40),
        NodeFree(node="half", cards=4, cpus=64, memory_bytes=1 << 40),
        NodeFree(node="no-cpus", cards=7, cpus=0, memory_bytes=1 << 40),
        NodeFree(node="no-memory", cards=8, cpus=64, memory_bytes=1 << 30),
        NodeFree(node="busy", cards=0, cpus=64, memory_bytes=1 << 40),
    ]
    assert stranded_ratios(nodes, [EIGHT]) == {
        "full": 0.0,
        "half": 1.0,
        "no-cpus": 1.0,
        "no-memory": 1.0,
    }


def test_a_mix_strands_the_share_of_its_pieces_that_do_not_fit() -> None:
    node = NodeFree(node="n", cards=4, cpus=64, memory_bytes=1 << 40)
    gang = JobShape(cards=8, cpus=64, pieces=3)
    assert stranded_ratios([node], [gang, ONE])["n"] == pytest.approx(0.75)


def test_the_type_of_card_strands_only_where_both_name_one() -> None:
    wants = JobShape(cards=1, card_type="h100")
    nodes = [
        NodeFree(node="same", cards=1, card_type="h100"),
        NodeFree(node="other", cards=1, card_type="a100"),
        NodeFree(node="unknown", cards=1),
    ]
    assert stranded_ratios(nodes, [wants]) == {"same": 0.0, "other": 1.0, "unknown": 0.0}
    assert stranded_ratios(nodes, [JobShape(cards=1)])["other"] == 0.0


def test_what_the_scheduler_does_not_count_never_lacks() -> None:
    assert stranded_ratios([NodeFree(node="n", cards=8)], [EIGHT]) == {"n": 0.0}


def test_the_pending_queue_is_the_mix_and_what_ran_stands_in_for_an_empty_one() -> None:
    no_cards = JobShape(cards=0, cpus=64)
    assert reference_mix([no_cards, ONE], [EIGHT]) == (ONE,)
    assert reference_mix([no_cards], [EIGHT]) == (EIGHT,)
    assert reference_mix([], []) == ()
    assert stranded_ratios([NodeFree(node="n", cards=2)], ()) == {"n": 0.0}

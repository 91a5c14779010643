"""The inventory file written, imported into, moved on, and compared with what reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_kubernetes import node as kubernetes_node
from flopwatch_collector import inventory, inventory_file, inventory_import
from flopwatch_collector.inventory import Slot
from flopwatch_collector.inventory_diff import NodeCount, at, diff
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import SlotState

NOW = 1_800_000_000_000
H100 = "NVIDIA H100 80GB HBM3"


def card(node: str, slot: str = "0", **more: Any) -> Slot:
    return Slot(cluster="atlas", node=node, slot=slot, **more)


def two_places(node: str, count: int) -> Sequence[str]:
    return [str(i) for i in range(count)]


# ---- writing


def test_names_that_count_up_are_written_as_ranges() -> None:
    names = ["n08", "n09", "n10", "n12", "spare", "r1c1-x", "r1c2-x", "n9", "n10b"]
    assert inventory_file.compressed(names) == [
        "n[08-10]", "n12", "spare", "r1c[1-2]-x", "n9", "n10b",
    ]  # fmt: skip


NAME = st.from_regex(r"[a-z][a-z0-9.-]{0,5}", fullmatch=True)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.tuples(NAME, st.one_of(NAME, st.integers(0, 12).map(str), st.just("0000:1b:00.0"))),
        st.tuples(
            st.sampled_from(["", H100, 'a "quoted" one\\']),
            st.sampled_from(list(SlotState)),
            st.sampled_from([(0, None), (NOW, None), (0, NOW), (NOW - 1, NOW + 500)]),
        ),
        max_size=12,
    )
)
def test_what_is_written_reads_as_it_was(chosen: dict[tuple[str, str], Any]) -> None:
    slots = [
        card(node, slot, sku=sku, state=state, from_unix_ms=times[0], to_unix_ms=times[1])
        for (node, slot), (sku, state, times) in chosen.items()
    ]
    assert set(inventory.parse(inventory_file.render(slots))) == set(slots)


def test_an_import_adds_what_is_new_and_leaves_what_an_operator_wrote(tmp_path: Path) -> None:
    file = tmp_path / "inventory.toml"
    written = '# ours\n[[slot]]\ncluster = "atlas"\nnodes = "n0"\nslots = "0"\nsku = "A100"\n'
    file.write_text(written)
    found = [card("n0", sku=H100), card("n1", sku=H100), card("n2", sku=H100)]
    count, differ = inventory_file.added(file, found)
    assert count == 2
    assert differ == [f"atlas n0 0: the file says sku 'A100', the import {H100!r}"]
    text = file.read_text()
    assert text.startswith(written)
    assert 'nodes = "n[1-2]"' in text
    assert inventory_file.added(file, found)[0] == 0
    assert file.read_text() == text


def test_a_file_that_is_wrong_or_cannot_be_written_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "inventory.toml"
    file.write_text("nonsense")
    with pytest.raises(UsageError, match="not TOML"):
        inventory_file.added(file, [card("n0")])
    assert file.read_text() == "nonsense"
    with pytest.raises(UsageError, match="cannot be written"):
        inventory_file.added(tmp_path / "no-such" / "inventory.toml", [card("n0")])


# ---- states


def test_a_slot_enters_a_state_from_now_on() -> None:
    slots = [card("n0", state=SlotState.EXPECTED), card("n1", state=SlotState.EXPECTED)]
    wanted = [("atlas", "n0", "0")]
    made, changed = inventory_file.with_state(slots, wanted, SlotState.IN_SERVICE, NOW)
    assert changed == 1
    assert made == (
        replace(slots[0], to_unix_ms=NOW),
        replace(slots[0], state=SlotState.IN_SERVICE, from_unix_ms=NOW),
        slots[1],
    )
    again, changed = inventory_file.with_state(made, wanted, SlotState.IN_SERVICE, NOW + 1)
    assert (again, changed) == (made, 0)
    retired, _ = inventory_file.with_state(made, wanted, SlotState.RETIRED, NOW + 5)
    assert [s.state for s in retired[:3]] == [
        SlotState.EXPECTED,
        SlotState.IN_SERVICE,
        SlotState.RETIRED,
    ]
    with pytest.raises(UsageError, match="is not in the inventory"):
        inventory_file.with_state(slots, [("atlas", "n9", "0")], SlotState.RETIRED, NOW)


def test_what_ended_before_a_reading_is_not_declared_again_by_it() -> None:
    slots = [
        card("n0", state=SlotState.EXPECTED, to_unix_ms=NOW),
        card("n0", from_unix_ms=NOW),
    ]
    (declared,) = inventory.declarations(slots, NOW + 1)["atlas"]
    assert (int(declared.state), declared.from_unix_ms) == (int(SlotState.IN_SERVICE), NOW)


# ---- imports


def test_a_table_is_read_by_its_header() -> None:
    text = (
        "\ufeffNode,Slot,SKU,serial,state,from\n"
        f"n[0-1],0-1,{H100},,,\n"
        "\n"
        f"n2,0000:1b:00.0,{H100},S7,onboarding,2026-11-01T00:00:00Z\n"
    )
    slots = inventory_import.from_csv(text, "cards.csv", "atlas")
    assert [(s.node, s.slot) for s in slots] == [
        ("n0", "0"), ("n0", "1"), ("n1", "0"), ("n1", "1"), ("n2", "0000:1b:00.0"),
    ]  # fmt: skip
    assert slots[-1] == card(
        "n2", "0000:1b:00.0", sku=H100, serial="S7", state=SlotState.ONBOARDING,
        from_unix_ms=1_793_491_200_000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nod,slot\nn0,0\n", "line 1: unknown column 'nod'; the nearest known one is 'node'"),
        ("node,slot\nn0\n", "line 2: 1 cells under 2 columns"),
        ("node,slot\nn0,\n", "line 2: slots must be a range"),
        ("node,slot,state\nn0,0,lost\n", "line 2: state 'lost' is unknown"),
        ("node,slot\nn0,0\nn0,0\n", "slot '0' of node 'n0' has two states at one time"),
        ('node,slot\nn0,"0\n', "line 2: unexpected end of data"),
        ("", "cards.csv has no cards"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_line(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        inventory_import.from_csv(text, "cards.csv", "atlas")


def test_a_table_that_names_no_cluster_needs_one() -> None:
    with pytest.raises(UsageError, match="line 2: cluster is missing"):
        inventory_import.from_csv("node,slot\nn0,0\n", "cards.csv", None)


def scheduler(kind: str, content: Any) -> list[Slot]:
    read = {
        "slurm": inventory_import.from_slurm,
        "kubernetes": inventory_import.from_kubernetes,
    }[kind]
    return read(
        json.dumps(content).encode(), "answer.json", cluster="atlas", places=two_places, sku="",
        state=SlotState.EXPECTED,
    )  # fmt: skip


def test_slurms_nodes_have_the_cards_of_their_gres() -> None:
    nodes = [
        {"name": "n0", "state": "idle", "gres": "gpu:h100:2(S:0-1)"},
        {"name": "login", "state": "idle", "gres": ""},
    ]
    slots = scheduler("slurm", {"nodes": nodes})
    assert slots == [card("n0", str(i), state=SlotState.EXPECTED) for i in range(2)]


def test_kubernetes_nodes_have_the_cards_of_their_capacity() -> None:
    label = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    nodes = [
        kubernetes_node("n0", cards=2, allocatable=1, labels=label),
        kubernetes_node("n1", cards=0),
    ]
    slots = scheduler("kubernetes", {"items": nodes})
    assert slots == [card("n0", str(i), sku=H100, state=SlotState.EXPECTED) for i in range(2)]


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
@pytest.mark.parametrize("content", [[], {}, {"nodes": [], "items": []}, {"nodes": 7, "items": 7}])
def test_an_answer_about_something_else_is_refused(kind: str, content: Any) -> None:
    with pytest.raises(UsageError, match=r"answer\.json"):
        scheduler(kind, content)


# ---- diff


def reports(node: str, slot: str = "0", **more: Any) -> dict[str, Any]:
    return {"cluster": "atlas", "node": node, "slot": slot, "sku": H100, "serial": None} | more


def test_every_kind_of_difference_has_its_word() -> None:
    slots = [
        card("same", sku=H100, serial="A"),
        card("gone"),
        card("new", state=SlotState.EXPECTED),
        card("late", state=SlotState.EXPECTED),
        card("other", sku="A100"),
        card("swapped", serial="B"),
        card("was", serial="C"),
        card("old", state=SlotState.RETIRED),
        card("past", to_unix_ms=NOW - 1),
    ]
    found, counts = diff(
        at(slots, NOW),
        [
            reports("same", serial="A"), reports("new"), reports("other"),
            reports("swapped", serial="X"), reports("stray"), reports("is", serial="C"),
            reports("old"), reports("past"),
        ],
    )  # fmt: skip
    assert {(d.node, d.kind) for d in found} == {
        ("gone", "missing"), ("was", "missing"), ("new", "arrived"), ("other", "sku"),
        ("swapped", "serial"), ("stray", "unknown"), ("is", "moved"), ("old", "unknown"),
        ("past", "unknown"),
    }  # fmt: skip
    moved = next(d for d in found if d.kind == "moved")
    assert moved.text == "serial C belongs to was 0"
    assert NodeCount(cluster="atlas", node="gone", owned=1, reporting=0) in counts
    assert {c.node for c in counts}.isdisjoint({"same", "other", "swapped"})


def test_what_is_as_it_should_be_is_no_difference() -> None:
    assert diff(at([card("n0", sku=H100)], NOW), [reports("n0")]) == ([], [])

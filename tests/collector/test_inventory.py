"""The inventory file."""

from __future__ import annotations

from pathlib import Path

import pytest

from flopwatch_collector import inventory
from flopwatch_collector.inventory import Slot
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import SlotState
from flopwatch_proto.v1 import telemetry_pb2 as pb

ATLAS = """
[[slot]]
cluster = "atlas"
nodes = "atlas-[0008-0010,0020], spare"
slots = "0-1"
sku = "NVIDIA H100 80GB HBM3"
from = 2026-11-01T00:00:00Z
"""


def test_ranges_of_nodes_and_slots_are_spelled_out_with_their_width() -> None:
    slots = inventory.parse(ATLAS)
    assert [slot.node for slot in slots[::2]] == [
        "atlas-0008",
        "atlas-0009",
        "atlas-0010",
        "atlas-0020",
        "spare",
    ]
    assert [slot.slot for slot in slots[:2]] == ["0", "1"]
    assert slots[0] == Slot(
        cluster="atlas",
        node="atlas-0008",
        slot="0",
        sku="NVIDIA H100 80GB HBM3",
        from_unix_ms=1_793_491_200_000,
    )


def test_a_slot_may_be_a_pci_address_and_a_name_may_hold_two_ranges() -> None:
    text = """
    [[slot]]
    cluster = "c"
    nodes = ["r[1-2]n[01-02]"]
    slots = ["0000:1b:00.0"]
    """
    slots = inventory.parse(text)
    assert [slot.node for slot in slots] == ["r1n01", "r1n02", "r2n01", "r2n02"]
    assert {slot.slot for slot in slots} == {"0000:1b:00.0"}


def test_a_slot_may_change_its_state_over_time() -> None:
    text = """
    [[slot]]
    cluster = "c"
    nodes = "n1"
    slots = "0"
    state = "onboarding"
    to = 2026-11-02T00:00:00Z
    [[slot]]
    cluster = "c"
    nodes = "n1"
    slots = "0"
    from = 2026-11-02T00:00:00Z
    """
    states = [slot.state for slot in inventory.parse(text)]
    assert states == [SlotState.ONBOARDING, SlotState.IN_SERVICE]


def test_declarations_are_those_of_agents_by_cluster() -> None:
    by_cluster = inventory.declarations(inventory.parse(ATLAS), 5)
    assert list(by_cluster) == ["atlas"]
    first = by_cluster["atlas"][0]
    assert first.state == pb.SLOT_STATE_IN_SERVICE
    assert (first.node, first.to_unix_ms, first.device_kind) == ("atlas-0008", 0, "gpu")


def test_a_slot_without_a_beginning_begins_when_it_is_read() -> None:
    text = '[[slot]]\ncluster = "c"\nnodes = "n"\nslots = "s"'
    (declared,) = inventory.declarations(inventory.parse(text), 77)["c"]
    assert declared.from_unix_ms == 77
    assert declared.dtype == "bf16"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('node = "n1"', "nearest known one is 'nodes'"),
        ('state = "broken"', "known are expected"),
        ('to = "yesterday"', "to must be a time"),
        ("to = 2020-01-01", "to must be a time with its zone"),
        ("to = 2020-01-01T00:00:00Z", "to must come after from"),
        ("serial = 7", "serial must be a text"),
    ],
)
def test_a_wrong_key_is_refused_by_name_and_table(change: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"\[\[slot\]\] 1") as caught:
        inventory.parse(ATLAS + change)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slot = 3", "list of tables"),
        ("[[slots]]", "unknown key 'slots'"),
        ("[[slot]", "not TOML"),
        ("[[slot]]", "cluster is missing"),
        ('[[slot]]\ncluster = "c"\nslots = "0"', "nodes must be"),
        ('[[slot]]\ncluster = "c"\nnodes = "n[3-1]"\nslots = "0"', "backwards"),
        ('[[slot]]\ncluster = "c"\nnodes = "n[0-99999999]"\nslots = "0"', "too long"),
        ('[[slot]]\ncluster = "c"\nnodes = "n[x]"\nslots = "0"', "no range"),
        ('[[slot]]\ncluster = "c"\nnodes = "n[1"\nslots = "0"', "no name"),
        ('[[slot]]\ncluster = "c"\nnodes = "n1,n1"\nslots = "0"', "twice"),
    ],
)
def test_a_wrong_file_is_refused_with_the_fix(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inventory.parse(text)


def test_a_slot_in_two_states_at_one_time_is_refused() -> None:
    with pytest.raises(UsageError, match="two states at one time"):
        inventory.parse(ATLAS + ATLAS)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        inventory.load(tmp_path / "none.toml")
    path = tmp_path / "inventory.toml"
    path.write_text(ATLAS)
    assert len(inventory.load(path)) == 10

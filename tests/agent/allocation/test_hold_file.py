"""Leases by hand: the file that says who holds which card."""

from __future__ import annotations

from pathlib import Path

import pytest

from flopwatch_agent.allocation.file import HoldFile, parse
from flopwatch_agent.allocation.holders import SLOT, UUID, Place, on_card, speaks_for
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.reading import Device
from flopwatch_proto.errors import UsageError

GOOD = b"""
[[hold]]
slot = "0000:18:00.0"
job = "lease-17"
team = "pre"
workload_class = "training"

[[hold]]
uuid = "GPU-Bb"
"""
CARD = Device(slot="0000:18:00.0", kind="gpu", sku="H100", uuid="GPU-Aa")
FREE = Device(slot="0000:2a:00.0", kind="gpu", sku="H100", uuid="GPU-bB")
OTHER = Device(slot="0000:3b:00.0", kind="gpu", sku="H100", uuid="GPU-Cc")


def test_it_speaks_for_the_cards_that_it_names() -> None:
    word = parse(GOOD, json=False)
    ((holder, instance),) = on_card(word, CARD, 0)
    assert (holder.job, holder.team, holder.workload_class) == ("lease-17", "pre", "training")
    assert instance is None
    assert on_card(word, FREE, 1) == ()
    assert [speaks_for(word, card, 0) for card in (CARD, FREE, OTHER)] == [True, True, False]


def test_json_says_the_same() -> None:
    word = parse(b'{"hold": [{"slot": "0000:18:00.0", "job": "j"}, {"uuid": "MIG-1"}]}', json=True)
    assert word.only == frozenset({Place(SLOT, "0000:18:00.0"), Place(UUID, "mig-1")})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[[hold]]\njob = 'a'\n", "either slot or uuid"),
        (b"[[hold]]\nslot = 's'\nuuid = 'u'\njob = 'a'\n", "either slot or uuid"),
        (b"[[hold]]\nslot = 's'\nteem = 'a'\n", "unknown field `teem`"),
        (b"[[hold]]\nslot = 's'\nteam = 'a'\n", "without a job"),
        (b"[[hold]]\nslot = 's'\njob = 7\n", "Expected `str"),
        (b"[[hold]]\nslot = 's'\njob = 'a'\nworkload_class = 'fun'\n", "Invalid enum value 'fun'"),
        (b"[[hold]]\nslot = 'S'\n[[hold]]\nslot = 's'\n", "s is named twice"),
        (b"[hold\n", "Expected"),
        (b"\xff", "decode"),
    ],
)
def test_what_is_wrong_is_said(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text, json=False)


def test_a_file_that_is_wrong_at_the_start_is_bad_configuration(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path / "wrong.toml"):
        (tmp_path / "wrong.toml").write_text("[[hold]]\nslot = 1\n")
        with pytest.raises(UsageError, match=rf"\[allocation\] file = .*{path.name}"):
            HoldFile(path, SystemClock())


async def test_a_new_version_counts_and_a_broken_one_is_told_once_and_does_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "holds.toml"
    path.write_bytes(GOOD)
    source = HoldFile(path, SystemClock())
    before = await source.ask()
    path.write_text("[[hold]]\nslot =")
    for _ in range(3):
        assert await source.ask() == before
    (event,) = source.events()
    assert (event.kind, "stays in force" in event.text) == ("allocation_file", True)
    path.unlink()
    assert await source.ask() == before
    assert len(source.events()) == 1
    path.write_text("[[hold]]\nslot = 'x'\njob = 'new'\n")
    assert set((await source.ask()).held) == {Place(SLOT, "x")}
    assert source.events() == ()

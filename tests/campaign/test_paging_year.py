"""A short piece of the year in which nobody is paged, and that it would page if something were wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from campaign import paging_year as year
from campaign.paging_year import Fleet
from flopwatch_collector.excused import NONE, Excuses

NODES = 500
MASS = NODES // year.NODES_A_WAVE


def lived(speaks: bool, *what: Callable[[Fleet, random.Random], None], **more: Excuses) -> Fleet:
    fleet = Fleet(NODES, **more)
    fleet.speaks = speaks
    fleet.go(320)
    for happens in what:
        happens(fleet, random.Random(1))
    assert fleet.watch.counters.failed == 0
    return fleet


def upgrade(fleet: Fleet, chance: random.Random) -> None:
    year.upgraded(fleet, chance, waves=2)


@pytest.mark.parametrize("speaks", [True, False], ids=["a scheduler", "no scheduler"])
def test_upgrades_and_a_tray_that_goes_to_its_maker_page_nobody(speaks: bool) -> None:
    fleet = lived(speaks, year.away, upgrade)
    assert fleet.pages() == {}
    assert fleet.silent == fleet.away


def test_a_scheduler_that_fails_over_pages_nobody() -> None:
    assert lived(True, year.failed_over).pages() == {}


def test_a_dead_switch_is_told_as_such_or_not_at_all() -> None:
    assert year.wrongly(lived(True, year.switch_dead).pages(), 1) == []


def test_nodes_that_fall_silent_without_a_leave_are_told() -> None:
    def forsaken(fleet: Fleet, chance: random.Random) -> None:
        fleet.silent = set(range(MASS))
        fleet.go(120)

    assert lived(False, forsaken).pages() == {"blind trigger": 1}


def test_spares_that_nobody_excused_are_told() -> None:
    fleet = lived(True, excuses=NONE)
    assert fleet.pages()["allocation trigger"] == 1

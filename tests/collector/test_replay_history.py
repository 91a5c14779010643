"""What a replay reads, what full minutes say of an outage, and what two sets of rules come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flopwatch_collector.control.observations import Judged
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.replay import Moment, Outage
from flopwatch_collector.replay.history import clusters, moments, stepped
from flopwatch_collector.replay.outcome import Lowest, Window, outcomes, paged, pairs, played
from flopwatch_collector.replay.player import Player
from flopwatch_collector.rules import Cause, Observation
from flopwatch_collector.rules.settings import RuleOverride, RulesConfig

START_MS = 1_800_000_000_000
MINUTE_MS = 60_000
STEP_MS = 10_000
RULES = RulesConfig(settle_s=0)
TRIED = RulesConfig(settle_s=0, allocation=RuleOverride(line=0.90))


def seen(tick_unix_ms: int, ratio: float) -> Observation:
    return Observation(
        cluster="atlas",
        rule="allocation",
        simulated=False,
        device_kind="gpu",
        tick_unix_ms=tick_unix_ms,
        lo=ratio,
        hi=ratio,
        value=ratio,
        coverage=1.0,
        in_service_cards=1000,
        unseen_cards=0.0,
    )


def day(step_ms: int) -> Iterator[tuple[int, dict[str, Observation]]]:
    """Well, then 30 minutes at 94 %, 30 at 88 %, then well: 2 hours."""
    for minute_ms in range(0, 120 * MINUTE_MS, step_ms):
        minute = minute_ms // MINUTE_MS
        ratio = 0.94 if 30 <= minute < 60 else 0.88 if 60 <= minute < 90 else 0.98
        tick = START_MS + minute_ms
        yield tick, {"allocation": seen(tick, ratio)}


def outages(of: Iterator[Moment], rules: RulesConfig = RULES) -> list[Outage]:
    player = Player("atlas", rules)
    for moment in of:
        player.play(moment)
    return player.outages


def test_what_was_kept_is_read_as_it_was_observed(tmp_path: Path) -> None:
    told = replace(
        seen(START_MS, 0.9),
        value=None,
        simulated=True,
        lost_points={"MISSING": 10.0},
        causes=(Cause(kind="node", name="n1", cards=8, points=0.8),),
        silent_nodes={"n1": START_MS - 90_000},
        newest_row_unix_ms=START_MS,
        in_service_nodes=125,
        witnessed_missing_points=10.0,
    )
    counted = replace(told, rule="node_silent", lo=None, hi=None, subjects=1, subjects_in_all=125)
    later = replace(told, tick_unix_ms=START_MS + STEP_MS)
    other = replace(told, cluster="other")
    store = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    kept = (later, told, counted, other)
    store.save(observations=[Judged(observation=of, condition="breach") for of in kept])
    found = list(moments(store, "atlas", START_MS, START_MS + MINUTE_MS))
    assert clusters(store, START_MS, START_MS + MINUTE_MS) == ["atlas", "other"]
    store.close()
    assert [dict(moment.observed) for moment in found] == [
        {"allocation": told, "node_silent": counted},
        {"allocation": later},
    ]
    assert [moment.restarted for moment in found] == [True, False]


@pytest.mark.parametrize("step_ms", [STEP_MS, MINUTE_MS])
def test_minutes_tell_the_same_outage_up_to_a_minute_late(step_ms: int) -> None:
    fine_from = START_MS if step_ms == STEP_MS else START_MS + 3 * 60 * MINUTE_MS
    (outage,) = outages(stepped(day(step_ms), fine_from))
    assert outage.began_unix_ms == START_MS + 30 * MINUTE_MS
    assert outage.fired_unix_ms == outage.began_unix_ms + 5 * MINUTE_MS
    assert [told.act for told in outage.told] == ["trigger", "escalate"]
    assert outage.ended_unix_ms == START_MS + 100 * MINUTE_MS
    assert outage.worst == 0.88


def test_after_silence_nothing_fires_before_the_collector_settled() -> None:
    ticks = [
        of
        for of in day(STEP_MS)
        if not START_MS + 25 * MINUTE_MS < of[0] < START_MS + 40 * MINUTE_MS
    ]
    settled = RulesConfig(settle_s=600)
    (outage,) = outages(stepped(ticks, START_MS), settled)
    assert outage.fired_unix_ms == START_MS + 50 * MINUTE_MS


def test_two_sets_of_rules_are_counted_and_paired() -> None:
    window = Window(since_unix_ms=START_MS, until_unix_ms=START_MS + 120 * MINUTE_MS)
    players = [Player("atlas", RULES), Player("atlas", TRIED)]
    lowest = Lowest(window, 4)
    assert list(played(stepped(day(STEP_MS), START_MS), players, lowest))
    assert lowest.figures["allocation"] == [0.98, 0.94, 0.88, 0.98]
    of_each = [next(o for o in outcomes(p, window) if o.rule == "allocation") for p in players]
    assert [(of.pages, of.outages, of.line) for of in of_each] == [(2, 1, 0.96), (1, 1, 0.9)]
    assert [of.out_ms for of in of_each] == [70 * MINUTE_MS, 40 * MINUTE_MS]
    (pair,) = pairs(*(paged(player.outages, window) for player in players))
    assert pair.today
    assert pair.tried
    assert pair.today.began_unix_ms < pair.tried.began_unix_ms
    only_today = pairs(paged(players[0].outages, window), [])
    assert [(of.today, of.tried) for of in only_today] == [(pair.today, None)]

"""A replay against the watch itself: the same history, the same pages at the same ticks."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from flopwatch_collector.control.observations import Judged, columns_of, observation_of
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.incident_state import Act, Action, IncidentState
from flopwatch_collector.replay.history import stepped
from flopwatch_collector.replay.player import Player, observed_names
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.rules.settings import RuleOverride, RulesConfig
from flopwatch_collector.watch import ARRIVAL_MS, TICK_MS, Watch, WatchSettings

START_MS = 1_800_000_000_000
DAY_MS = 86_400_000
Told = tuple[int, str, str, str]


class MemoryControl:
    """What the watch needs of a control store, with every observation as a stored row."""

    def __init__(self) -> None:
        self.states: dict[str, IncidentState] = {}
        self.rows: list[dict[str, Any]] = []

    def incidents(self) -> list[IncidentState]:
        return list(self.states.values())

    def save(
        self,
        *,
        states: Sequence[IncidentState],
        pages: Sequence[OutboxRow],
        observations: Sequence[Judged],
        fence: int | None,
    ) -> None:
        for state in states:
            self.states[state.rule] = replace(state, version=state.version + 1)
        self.rows.extend(columns_of(judged) for judged in observations)

    def baseline(self, rule: str, cluster: str, now_unix_ms: int) -> float | None:
        figures = [
            row["hi"]
            for row in self.rows
            if row["rule"] == rule
            and row["tick_unix_ms"] >= now_unix_ms - 7 * DAY_MS
            and row["tick_unix_ms"] % 60_000 == 0
            and row["condition"] != "unknown"
            and row["hi"] is not None
        ]
        return statistics.median(figures) if figures else None

    def prune(self, now_unix_ms: int) -> None:
        """Nothing is old."""


class HeardWatch(Watch):
    """A watch that notes what its machines want sent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.told: list[Told] = []

    def _pages(self, state: IncidentState, actions: Sequence[Action], *more: Any) -> list[Any]:
        self.told.extend(
            (self._tick_unix_ms, state.rule, action.act.value, action.reason)
            for action in actions
            if action.reason != "repeat"
        )
        return []


class Story:
    """A cluster that keeps for a while what a random choice gave it, for every observation alike."""

    def __init__(self, seed: int, hours: int) -> None:
        self._random = random.Random(seed)
        self._until = START_MS + hours * 3_600_000
        self._left: dict[str, int] = {}
        self._now: dict[str, dict[str, Any]] = {}

    def clusters(self) -> list[str]:
        return ["atlas"]

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        return [self._observation(name, tick_unix_ms) for name in observed_names()]

    def _observation(self, name: str, tick_unix_ms: int) -> Observation:
        if not self._left.get(name):
            self._left[name] = self._random.choice((1, 3, 6, 31, 61, 91, 200))
            self._now[name] = self._choose(name)
        self._left[name] -= 1
        return Observation(
            cluster="atlas",
            rule=name,
            simulated=False,
            device_kind="gpu",
            tick_unix_ms=tick_unix_ms,
            in_service_cards=1000,
            in_service_nodes=125,
            newest_row_unix_ms=tick_unix_ms,
            **self._now[name],
        )

    def _choose(self, name: str) -> dict[str, Any]:
        if name not in ("allocation", "mfu"):
            count = self._random.choice((0, 0, 0, 0, 2, 5, None))
            return {"lo": None, "hi": None, "value": None, "coverage": 1.0, "unseen_cards": 0,
                    "subjects": count, "subjects_in_all": 125}  # fmt: skip
        bad = (0.955, 0.94, 0.88, 0.70) if name == "allocation" else (0.58, 0.5, 0.41, 0.03)
        well = (0.98, 0.975, 0.965) if name == "allocation" else (0.65, 0.61)
        hi = self._random.choice((*bad, *well, *well, None))
        unseen = self._random.choice((0.0, 0.0, 0.03))
        lo = None if hi is None else hi - unseen
        cause = self._random.choice(("MISSING", "FREE", "FAILED"))
        return {
            "lo": lo, "hi": hi, "value": hi if not unseen else None, "unseen_cards": 1000 * unseen,
            "coverage": self._random.choice((1.0, 1.0, 0.85)),
            "lost_points": {} if hi is None else {cause: round(100 * (1 - hi), 6)},
            "witnessed_missing_points": 100.0,
            "free_without_demand_points": self._random.choice((0.0, 0.0, 30.0)),
        }  # fmt: skip


class Standing(Story):
    """MFU at 41 % for more than a day, then at 3 %."""

    def _choose(self, name: str) -> dict[str, Any]:
        well = Story._choose(self, name) | {"free_without_demand_points": 0.0}
        if name == "allocation":
            return well | {"hi": 0.98, "lo": 0.98, "lost_points": {}}
        if name == "mfu":
            hi = 0.41 if self._random.random() < 0.99 else 0.39
            return well | {"hi": hi, "lo": hi, "coverage": 1.0, "lost_points": {"sm_idle": 59.0}}
        return well | {"subjects": 0}

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        if tick_unix_ms >= self._until - 3_600_000:
            self._left, self._choose = {}, self._fallen  # type: ignore[method-assign]
        return super().observe(cluster, tick_unix_ms)

    def _fallen(self, name: str) -> dict[str, Any]:
        return Standing._choose(self, name) | ({"hi": 0.03, "lo": 0.03} if name == "mfu" else {})


def watched(
    story: Story, rules: RulesConfig, hours: int, down: range = range(0)
) -> tuple[list[Told], list[dict[str, Any]]]:
    """What the watch wanted sent, and the rows it kept; it is down for a range of ticks."""
    control = MemoryControl()
    told: list[Told] = []

    def started(now_ms: int) -> HeardWatch:
        return HeardWatch(story, control, WatchSettings(rules=rules), lambda: now_ms, now_ms)

    watch = started(START_MS + ARRIVAL_MS)
    for number in range(hours * 360):
        now_ms = START_MS + ARRIVAL_MS + number * TICK_MS
        if number in down:
            told += watch.told
            watch = started(now_ms + TICK_MS)
            continue
        watch.tick(now_ms)
    return told + watch.told, control.rows


def replayed(rows: list[dict[str, Any]], rules: RulesConfig) -> list[Told]:
    """What a player makes of the rows."""
    player = Player("atlas", rules)
    by_tick: dict[int, dict[str, Observation]] = {}
    for row in rows:
        by_tick.setdefault(row["tick_unix_ms"], {})[row["rule"]] = observation_of(row)
    for moment in stepped(sorted(by_tick.items()), START_MS):
        player.play(moment)
    return list(_told(player))


def _told(player: Player) -> Iterator[Told]:
    for outage in player.outages:
        for page in outage.told:
            yield page.unix_ms, outage.rule, page.act, page.reason
        paged = any(page.act != Act.NOTICE.value for page in outage.told)
        if outage.ended_unix_ms is not None and paged:
            yield outage.ended_unix_ms, outage.rule, Act.RESOLVE.value, ""


SHORT = RulesConfig(
    allocation=RuleOverride(for_s=120, clear_s=180),
    mfu=RuleOverride(for_s=200, clear_s=120, deep_points=30),
    node_silent=RuleOverride(count_min=3),
)


@pytest.mark.parametrize(("seed", "rules"), [(0, RulesConfig()), (1, SHORT)])
def test_a_replay_tells_what_the_watch_told_to_the_tick(seed: int, rules: RulesConfig) -> None:
    told, rows = watched(Story(seed, 4), rules, 4, down=range(800, 860))
    assert {"trigger", "resolve", "escalate"} <= {act for _, _, act, _ in told}
    assert sorted(replayed(rows, rules)) == sorted(told)


def test_an_outage_that_stands_and_falls_is_told_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("watch", "replay.player"):
        monkeypatch.setattr(f"flopwatch_collector.{module}.RULES", (rule_named("mfu"),))
    told, rows = watched(Standing(1, 27), RulesConfig(), 27)
    assert [(act, reason) for _, _, act, reason in told] == [
        ("trigger", ""),
        ("notice", "standing"),
        ("escalate", "baseline"),
    ]
    assert replayed(rows, RulesConfig()) == told

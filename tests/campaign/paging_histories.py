"""``python -m campaign.paging_histories [HISTORIES [SEED]]``: random histories, against a model.

A watch looks at a cluster whose figures change at random: cards that are lost, cards
that nobody hears of, a few or so many that the collector is blind, nothing at all; ticks that cannot be
evaluated, and collectors that are away for minutes or hours and then hear nobody at first. Every page has to
come at the tick at which `paging_model` says it, and no other one. Beside the model:

- nothing is resolved, nor changes its state, at a tick at which nobody can say what is;
- nothing fires while a collector settles, nor by cards that nobody has seen.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast
from unittest import mock

import structlog

from campaign.paging_model import STEP_S, Model, Word
from flopwatch_collector import watch
from flopwatch_collector.incident_state import State
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.rules import Observation, registry
from flopwatch_collector.rules.settings import RuleOverride, RulesConfig
from flopwatch_collector.watch import ARRIVAL_MS, Watch, WatchSettings
from paging.shelf import Shelf

START_S: Final = 1_800_000_000
CARDS: Final = 1_000
NODES: Final = 125
SETTLE_S: Final = 60
LEVELS: Final = (0.98, 0.98, 0.98, 0.965, 0.95, 0.95, 0.89, 0.70)
UNSEEN: Final = (0.0, 0.0, 0.0, 0.0, 0.0, 0.02, 0.2, 1.0)
MFU: Final = ((0.65, 0.65), (0.65, 0.65), (0.61, 0.61), (0.55, 0.55), (0.55, 0.61), (None, None))
SECONDS: Final = (10, 20, 50, 60, 70, 110, 120, 130, 300)
AWAY_S: Final = (10, 60, 600, 3600, 3610, 3620, 9000)
# Short holds, so that a history of half an hour reaches every state.
SETTINGS: Final = WatchSettings(
    rules=RulesConfig(
        settle_s=SETTLE_S,
        allocation=RuleOverride(for_s=60, clear_s=120),
        data_missing=RuleOverride(for_s=60, clear_s=60),
        mfu=RuleOverride(for_s=90, clear_s=60),
    ),
    paging=PagingConfig(
        deployment="lab", route=(RouteConfig(name="ops", url="https://x", secret_env="S"),)
    ),
)
MODELLED: Final = ("blind", "allocation", "data_missing", "mfu")
RULES: Final = tuple(rule for rule in registry.RULES if rule.name in MODELLED)
Said = tuple[int, str, str, int]
"""Tick, rule, action and its number."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What holds for a while. Attributes: kind: `seen`, `stalled` (no tick can be evaluated) or `away`
    (there is no collector); lo, hi: of allocation; mfu: bounds; since_s: when nodes fell silent."""

    kind: str
    seconds: int
    lo: float = 1.0
    hi: float = 1.0
    mfu: tuple[float | None, float | None] = (None, None)
    since_s: int = 0


class Live:
    """What a watch asks. Attributes: scene: what holds now; ready_s: when the collector began."""

    def __init__(self) -> None:
        self.scene = Scene(kind="seen", seconds=0)
        self.ready_s = START_S

    def clusters(self) -> Sequence[str]:
        return ["atlas"]

    def silent(self) -> dict[str, int]:
        """Return the nodes that are silent, with their last word."""
        count = round((self.scene.hi - self.scene.lo) * NODES)
        return {f"n{i}": max(self.scene.since_s, self.ready_s) * 1000 for i in range(count)}

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        if self.scene.kind == "stalled":
            raise ValueError("no figures now")
        scene, (lo, hi) = self.scene, self.scene.mfu
        lost = {"FAILED": 100 * (1 - scene.hi), "UNSEEN": 100 * (scene.hi - scene.lo)}
        return [
            self._seen("allocation", tick_unix_ms, scene.lo, scene.hi, lost),
            self._seen("mfu", tick_unix_ms, lo, hi, {"low_occupancy": 40.0}),
        ]

    def _seen(
        self,
        rule: str,
        tick_unix_ms: int,
        lo: float | None,
        hi: float | None,
        lost: dict[str, float],
    ) -> Observation:
        return Observation(
            cluster="atlas",
            rule=rule,
            simulated=False,
            device_kind="gpu",
            tick_unix_ms=tick_unix_ms,
            lo=lo,
            hi=hi,
            value=hi if lo == hi else None,
            coverage=1.0,
            in_service_cards=CARDS,
            in_service_nodes=NODES,
            unseen_cards=CARDS * (self.scene.hi - self.scene.lo),
            silent_nodes=self.silent(),
            lost_points=lost,
        )


class History:
    """A watch and the models beside it, through one history. Attributes: wrong: one line each."""

    def __init__(self) -> None:
        self.now_s, self.live, self.shelf = START_S, Live(), Shelf()
        self.wrong: list[str] = []
        self.said: list[Said] = []
        self.models = {
            "blind": Model(for_s=0, clear_s=120),
            "allocation": Model(for_s=60, clear_s=120, worse=0.05),
            "data_missing": Model(for_s=60, clear_s=60),
            "mfu": Model(for_s=90, clear_s=60),
        }
        self._start()

    def go(self, scene: Scene) -> None:
        """Live through a scene; the first one that differs from the model is the last."""
        self.live.scene = scene
        if scene.kind == "away":
            self.now_s += scene.seconds
            self._start()
            for model in self.models.values():
                model.restarted = True
            return
        for _ in range(scene.seconds // STEP_S):
            self.now_s += STEP_S
            before = {rule: state.state for (rule, _), state in self.shelf.states.items()}
            self.watch.tick(self._now_ms())
            if scene.kind == "seen":
                self._compare(before)
            if self.wrong:
                return

    def _now_ms(self) -> int:
        return self.now_s * 1000 + ARRIVAL_MS

    def _start(self) -> None:
        self.live.ready_s = self.now_s
        self.watch = Watch(
            self.live,
            cast(Any, self.shelf),
            SETTINGS,
            self._now_ms,
            self.now_s * 1000 + ARRIVAL_MS,
        )

    def _compare(self, before: dict[str, State]) -> None:
        settled = self.now_s - self.live.ready_s >= SETTLE_S
        new: list[Said] = []
        for rule in MODELLED:
            word, model = self._word(rule), self.models[rule]
            told = self.models["blind"].state in ("firing", "clearing")
            may_fire = settled and not (rule == "data_missing" and told)
            new += [(self.now_s, rule, *said) for said in model.tick(self.now_s, word, may_fire)]
            state = self.shelf.states.get((rule, "atlas"))
            real = state.state if state else State.INACTIVE
            if real.value != model.state:
                self.wrong.append(f"{self.now_s} {rule} is {real.value}, not {model.state}")
            if word.breach is None and real not in (before.get(rule, real), State.INACTIVE):
                self.wrong.append(f"{self.now_s} {rule} became {real.value} though nobody knows")
        pages = self.shelf.pages[len(self.said) :]
        real_new = [(self.now_s, page.rule, page.action, page.repeat_no) for page in pages]
        if sorted(real_new) != sorted(new):
            self.wrong.append(f"{self.now_s} said {real_new}, not {new}")
        self.said += real_new
        for _, rule, action, number in real_new:
            fires = action in ("trigger", "escalate")
            if fires and not settled:
                self.wrong.append(f"{self.now_s} {rule} fired while the collector settled")
            if fires and rule == "allocation" and self.live.scene.hi >= 0.96:
                self.wrong.append(f"{self.now_s} allocation fired by cards that nobody has seen")
            if action == "resolve" and number == 0 and self._word(rule).breach is None:
                self.wrong.append(f"{self.now_s} {rule} was resolved though nobody knows")

    def _word(self, rule: str) -> Word:
        """Return what is known, by a rule's lines: 96 and 97, 60 and 62 percent."""
        scene = self.live.scene
        if rule == "allocation":
            known = scene.hi < 0.96 or scene.lo >= 0.96
            clears = True if scene.lo >= 0.97 else False if scene.hi < 0.97 else None
            return Word(
                breach=scene.hi < 0.96 if known else None,
                clears=clears,
                figure=scene.hi,
                deep=scene.hi <= 0.76,
            )
        if rule == "data_missing":
            missing = scene.lo < 0.96 <= scene.hi
            return Word(breach=missing, clears=not missing)
        if rule == "blind":
            ages = [self.now_s - last // 1000 for last in self.live.silent().values()]
            together = sum(60 <= age < 900 for age in ages) >= 10
            return Word(breach=together, clears=not together)
        lo, hi = scene.mfu
        if lo is None or hi is None:
            return Word(breach=None)
        return Word(breach=hi < 0.60, clears=hi >= 0.62, figure=hi)


def drawn(chance: random.Random) -> list[Scene]:
    """Draw a history; of some the figures go to and fro around the line."""
    scenes: list[Scene] = []
    if chance.random() < 0.15:
        for level in (0.95, *chance.choices((0.95, 0.965, 0.98), k=40)):
            seconds = chance.choice((20, 70, 110, 130))
            scenes.append(Scene(kind="seen", seconds=seconds, lo=level, hi=level))
        return scenes
    for _ in range(chance.randrange(3, 18)):
        kind = chance.choices(("seen", "stalled", "away"), (16, 1, 1))[0]
        if kind != "seen":
            seconds = chance.choice(AWAY_S if kind == "away" else (10, 20, 30, 300))
            scenes.append(Scene(kind=kind, seconds=seconds))
            continue
        level, unseen = chance.choice(LEVELS), chance.choice(UNSEEN)
        back = bool(scenes) and scenes[-1].kind == "away" and chance.random() < 0.7
        lo, hi = (0.0, 1.0) if back else (max(0.0, level - unseen), level)
        if unseen == 1.0:
            lo, hi = 0.0, 1.0
        elif unseen and chance.random() < 0.5:
            lo, hi = level, min(1.0, level + unseen)
        scenes.append(
            Scene(
                kind="seen",
                seconds=chance.choice(SECONDS if unseen < 1 and not back else SECONDS[:6]),
                lo=lo,
                hi=hi,
                mfu=chance.choice(MFU),
            )
        )
    return scenes


def lived(seed: int) -> History:
    """Live through the history of a seed, to its end or to where it differs from the model."""
    history = History()
    with mock.patch.object(watch, "RULES", RULES):
        for scene in drawn(random.Random(seed)):
            # Who is silent has spoken at the edge of the scene.
            history.go(replace(scene, since_s=history.now_s))
            if history.wrong:
                break
    return history


def main(histories: int, seed: int) -> int:
    """Live through many and say how it went; 0 where nothing is wrong."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    said, ticks, wrong = Counter[str](), 0, []
    for number in range(seed, seed + histories):
        history = lived(number)
        said.update(f"{action} {rule}" for _, rule, action, _ in history.said)
        ticks += (history.now_s - START_S) // STEP_S
        wrong += [f"history {number}: {problem}" for problem in history.wrong]
    sys.stdout.write(
        f"seeds {seed} to {seed + histories - 1}: {ticks} ticks, {len(wrong)} differ\n"
    )
    sys.stdout.write("".join(f"  {count:6} {what}\n" for what, count in sorted(said.items())))
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in wrong[:40]))
    return 1 if wrong else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [5000, 1][len(chosen) :])))

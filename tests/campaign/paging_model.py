"""What a watch has to say, told once more and otherwise: from seconds that were held, not from moments.

Written from docs/rules.md and the semantics of incidents, not from their code. Standing, causes and closing
by hand are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

STEP_S = 10


@dataclass(frozen=True, kw_only=True)
class Word:
    """What is known at a tick. Attributes: breach: None where nobody can say; clears: the same for the
    line of hysteresis; figure: what is judged; deep: 20 points below the line."""

    breach: bool | None
    clears: bool | None = None
    figure: float = 1.0
    deep: bool = False


@dataclass(kw_only=True)
class Model:
    """One rule of one cluster. Attributes: worse: how far below the last page is news; None: nothing is."""

    for_s: int
    clear_s: int
    worse: float | None = None
    state: str = "inactive"
    held_s: int = 0
    deep_s: int | None = None
    paged: float = 1.0
    critical: bool = False
    numbers: dict[str, int] = field(default_factory=dict)
    flaps: Sequence[int] = ()
    resolved_at_s: int | None = None
    last_s: int | None = None
    restarted: bool = False

    def tick(self, now_s: int, word: Word, may_fire: bool) -> list[tuple[str, int]]:
        """Judge a tick; return the actions with their numbers."""
        gap_s = STEP_S if self.last_s is None else now_s - self.last_s
        if self.restarted:
            self._resume(gap_s - STEP_S)
        # One tick that is late is no gap; of a gap nobody knows what was.
        step_s = STEP_S if self.restarted or gap_s > 2 * STEP_S else gap_s
        self.last_s, self.restarted = now_s, False
        said: list[tuple[str, int]] = []
        if self.state == "resolved" and now_s - (self.resolved_at_s or 0) >= 900:
            self.state = "inactive"
        if word.breach is not None:
            more_s = step_s if self.deep_s is not None else 0
            self.deep_s = (self.deep_s or 0) + more_s if word.deep else None
            self._known(now_s, step_s, word, may_fire, said)
        if self.resolved_at_s is not None:
            due = min(now_s - self.resolved_at_s, 900) // 300
            if due > self.numbers["resolve"]:
                said.append(("resolve", due))
                self.numbers["resolve"] = due
            if now_s - self.resolved_at_s >= 900:
                self.resolved_at_s = None
        return said

    def _resume(self, away_s: int) -> None:
        if self.state == "pending" and away_s > 3600:
            self.state, self.deep_s = "inactive", None
        elif self.state == "clearing":
            self.held_s = -STEP_S  # it begins with the first tick
        elif self.state != "pending" and away_s > 0:
            self.deep_s = None

    def _known(
        self, now_s: int, step_s: int, word: Word, may_fire: bool, said: list[tuple[str, int]]
    ) -> None:
        deep = (self.deep_s or 0) >= 120 and word.deep
        if self.state in ("inactive", "resolved") and word.breach:
            self.state, self.held_s, self.flaps, self.critical = "pending", -step_s, (), False
            self.numbers |= {"escalate": 0, "notice": 0}
        if self.state == "pending":
            self.held_s += step_s
            if not word.breach:
                self.state = "inactive"
            elif may_fire and (deep or self.held_s >= self.for_s):
                self.state, self.paged, self.critical = "firing", word.figure, deep
                said.append(("trigger", 0))
        elif self.state == "clearing" and (word.breach or word.clears is False):
            self.state = "firing"
            flapping = len(self.flaps) >= 4
            self.flaps = [at for at in self.flaps if flapping or now_s - at < 3600] + [now_s]
            if len(self.flaps) == 4 and not flapping:
                self._say("notice", said)
        elif self.state == "clearing" and word.clears:
            self.held_s += step_s
            if self.held_s >= (3600 if len(self.flaps) >= 4 else self.clear_s):
                self.state, self.resolved_at_s, self.numbers["resolve"] = "resolved", now_s, 0
                said.append(("resolve", 0))
        if self.state == "firing" and word.clears and not word.breach:
            self.state, self.held_s = "clearing", 0
        elif self.state == "firing" and word.breach and may_fire:
            lower = self.worse is not None and self.paged - word.figure >= self.worse - 1e-9
            if lower or (deep and not self.critical):
                self._say("escalate", said)
                self.paged, self.critical = word.figure, self.critical or deep

    def _say(self, action: str, said: list[tuple[str, int]]) -> None:
        self.numbers[action] += 1
        said.append((action, self.numbers[action]))

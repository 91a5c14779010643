"""What happens to a fleet: when each cluster is below its line, and what a watch observes of it then.

Drawn from a seed, so that whoever is asked, and whenever it was started, gives the same answer.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flopwatch_collector.rules import Cause, Observation

TICK_MS: Final = 10_000
CARDS: Final = 1_000
WELL: Final = 0.98
BELOW: Final = 0.95
WORSE: Final = 0.88
KINDS: Final = ("plain", "plain", "worse", "unseen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """Once below the line. Attributes: kind: `plain`, `worse` after its first half, or `unseen` for a
    minute in its middle, when nobody can say what is."""

    start_unix_ms: int
    end_unix_ms: int
    kind: str


class Plan:
    """Attributes: breaches: by cluster, in order; end_unix_ms: of the last one."""

    def __init__(self, seed: int, episodes: int, clusters: int, start_unix_ms: int) -> None:
        self.breaches: dict[str, list[Breach]] = {}
        for number in range(clusters):
            chance = random.Random(f"{seed}/{number}")
            here = self.breaches[f"c{number:02}"] = []
            moment = start_unix_ms + chance.randrange(30, 180) * 1000
            for _ in range(episodes // clusters + (number < episodes % clusters)):
                end = moment + chance.randrange(180, 270) * 1000
                here.append(
                    Breach(start_unix_ms=moment, end_unix_ms=end, kind=chance.choice(KINDS))
                )
                moment = end + chance.randrange(200, 320) * 1000
        self.end_unix_ms = max(b.end_unix_ms for bs in self.breaches.values() for b in bs)

    def newest(self, cluster: str, at_unix_ms: int) -> Breach | None:
        """Return the last breach that had begun at a moment."""
        here = self.breaches[cluster]
        found = bisect.bisect_right(here, at_unix_ms, key=lambda breach: breach.start_unix_ms)
        return here[found - 1] if found else None

    def recovered(self, cluster: str, at_unix_ms: int) -> int:
        """Return when the last breach that is over at a moment was over; 0: none is."""
        ends = [b.end_unix_ms for b in self.breaches[cluster] if b.end_unix_ms <= at_unix_ms]
        return max(ends, default=0)

    # ---- what a watch asks

    def clusters(self) -> Sequence[str]:
        """Return every cluster."""
        return list(self.breaches)

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        """Return what was known of the interval that ends at a tick."""
        breach = self.newest(cluster, tick_unix_ms - TICK_MS)
        value, unseen = WELL, 0.0
        if breach is not None and tick_unix_ms <= breach.end_unix_ms:
            middle = (breach.start_unix_ms + breach.end_unix_ms) // 2
            value = WORSE if breach.kind == "worse" and tick_unix_ms > middle else BELOW
            unseen = 0.05 * (breach.kind == "unseen" and 0 <= tick_unix_ms - middle < 60_000)
        lost = 100 * (1 - value - unseen)
        return [
            Observation(
                cluster=cluster,
                rule="allocation",
                simulated=False,
                device_kind="gpu",
                tick_unix_ms=tick_unix_ms,
                lo=value,
                hi=value + unseen,
                value=None if unseen else value,
                coverage=1 - unseen,
                in_service_cards=CARDS,
                unseen_cards=CARDS * unseen,
                in_service_nodes=CARDS // 8,
                lost_points={"FAILED": lost, "UNSEEN": 100 * unseen},
                causes=(Cause(kind="node", name="n1", cards=lost * CARDS / 100, points=lost),),
            )
        ]

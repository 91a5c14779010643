"""``python -m campaign.paging_year [DAYS [SEED]]``: a year in which nothing is wrong with a fleet.

2,500 nodes on one live state, as ingest fills it: rows, leaves and rosters go in, and a watch judges what
`Live` observes of them. Racks are of 18 trays, of which two are spares. What happens is what happens to a
healthy fleet, and no card of it is lost:

- every month agents are upgraded, 50 nodes after another 50, each with its leave;
- every month slurmctld fails over: no roster for three minutes;
- every other month a management switch is dead for twelve minutes, and the scheduler speaks for its nodes;
- every week a tray is drained, says goodbye and is away until its replacement has come.

In every other month there is no scheduler at all: what it would know is then in rows, leaves and windows of
maintenance. Nothing may page but a dead switch, once, as what it is: nodes of which nothing is heard.
Ticks are of 10 s around all this; in between twice a day is looked at, for longer than MFU's window.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa

from evidence_tables import roster, row, slot
from flopwatch_collector.excused import Excuses
from flopwatch_collector.excused_settings import SparesConfig
from flopwatch_collector.live import Live
from flopwatch_collector.live_tables import COLUMNS, table_of
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.watch import Watch, WatchSettings
from flopwatch_proto.rows import Bucket
from paging.shelf import Shelf

NODES: Final = 2_500
TRAYS: Final = 18
NEEDED: Final = 16
NODES_A_WAVE: Final = 50
"""Of how many nodes one is upgraded at the same time."""
START_MS: Final = 1_800_000_000_000
TICK_MS: Final = 10_000
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
MONTH_DAYS: Final = 30
UNHEARD: Final = ("blind", "node_silent")
"""Rules that say of nodes that nothing is heard of them."""
IDLE_EVERY: Final = 100
"""Of the trays that are needed, one in so many waits for its next job."""
SPARES: Final = Excuses(
    spares=(SparesConfig(cluster="atlas", rack=r"(r\d+)-.*", cards_needed=NEEDED),)
)
PAGING: Final = PagingConfig(
    deployment="lab", route=(RouteConfig(name="ops", url="https://x", secret_env="S"),)
)


def name_of(node: int) -> str:
    return f"r{node // TRAYS:03}-t{node % TRAYS:02}"


def bucket_of(node: int) -> Bucket:
    """Return what a node does on an ordinary day."""
    idle = node % TRAYS >= NEEDED or node % IDLE_EVERY == 0
    return Bucket.FREE if idle else Bucket.ACTIVE


class Fleet:
    """A fleet, and the watch that looks at it.

    Attributes:
        nodes: how many.
        now_ms: its clock, on the edge of an interval; silent: nodes that say nothing.
        away: nodes that the scheduler has drained; speaks: whether there is a scheduler now.
        shelf: what was decided.
    """

    def __init__(self, nodes: int = NODES, excuses: Excuses = SPARES) -> None:
        self.nodes = nodes
        self.now_ms = START_MS
        self.silent: set[int] = set()
        self.away: set[int] = set()
        self.speaks = True
        self.shelf = Shelf()
        mfu = rule_named("mfu").defaults
        self._excuses = excuses
        self.live = Live(START_MS, lambda cluster: mfu, self._excused)
        self.declare(range(nodes))
        self.watch = Watch(
            self.live,
            cast(Any, self.shelf),
            WatchSettings(rules=RulesConfig(), paging=PAGING),
            lambda: self.now_ms,
            START_MS,
        )
        rows = [self._row(node) for node in range(nodes)]
        self._rows = table_of(rows, "interval", COLUMNS)

    def declare(self, nodes: Iterable[int]) -> None:
        """Declare what is in some slots, from now on."""
        records = [slot(name_of(node), start=self.now_ms) for node in nodes]
        self.live.slots("atlas", False, _columns(records))

    def leave(self, node: int, back_in_ms: int) -> None:
        """A node says that it will be away for a while, and falls silent."""
        self.live.goodbye("atlas", name_of(node), back_in_ms, self.now_ms)
        self.silent.add(node)

    def go(self, seconds: int) -> None:
        """Let time pass tick by tick."""
        for _ in range(seconds * 1000 // TICK_MS):
            if self.speaks and self.now_ms % MINUTE_MS == 0:
                self._roster()
            self._speak()
            self.now_ms += TICK_MS
            self.watch.tick(self.now_ms + 12_000)

    def skip(self, ms: int) -> None:
        """Let time pass in which nobody looks, to a whole minute."""
        self.now_ms = (self.now_ms + ms) // MINUTE_MS * MINUTE_MS

    def pages(self) -> Counter[str]:
        """Return how many pages there were, by rule and action."""
        return Counter(f"{rule} {action}" for rule, action in self.shelf.told())

    def _excused(self, cluster: str, tick_unix_ms: int) -> Excuses:
        """Where no scheduler drains a node, whoever takes it away says so here."""
        names = () if self.speaks else tuple(name_of(node) for node in self.away)
        return replace(self._excuses, nodes=names)

    def _row(self, node: int) -> dict[str, Any]:
        bucket = bucket_of(node)
        busy = bucket is Bucket.ACTIVE
        counted: dict[str, Any] = {"sm": 0.9, "tensor": 0.68, "job": "run"} if busy else {}
        return row(0, bucket, node=name_of(node), **counted)

    def _speak(self) -> None:
        said = np.ones(self.nodes, np.bool_)
        said[list(self.silent)] = False
        rows = self._rows.filter(pa.array(said))
        start = pa.array(np.full(rows.num_rows, self.now_ms))
        at = rows.column_names.index("start_unix_ms")
        rows = rows.set_column(at, "start_unix_ms", start.cast(rows.schema.field(at).type))
        self.live.add_many("atlas", False, rows, self.now_ms + 12_000)

    def _roster(self) -> None:
        entries = []
        for node in range(self.nodes):
            bucket = Bucket.MAINT if node in self.away else bucket_of(node)
            job = "run" if bucket is Bucket.ACTIVE else ""
            entries.append({"node": name_of(node), "bucket": bucket, "job": job})
        self.live.roster("atlas", False, _columns(roster(self.now_ms, entries, pending=100)))


def _columns(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [record.get(name) for record in records] for name in records[0]}


# ---- what happens


def upgraded(fleet: Fleet, chance: random.Random, waves: int = NODES_A_WAVE) -> None:
    """Upgrade agents, so many at once; each says that it is back in 60 s, and takes from 20 to 100 s."""
    size = fleet.nodes // NODES_A_WAVE
    for first in range(0, waves * size, size):
        wave = [node for node in range(first, first + size) if node not in fleet.silent]
        for node in wave:
            fleet.leave(node, MINUTE_MS)
        back = {node: chance.randrange(2, 11) for node in wave}
        for tick in range(1, 12):
            fleet.go(10)
            fleet.silent -= {node for node in wave if back[node] <= tick}


def failed_over(fleet: Fleet, chance: random.Random) -> None:
    """Let slurmctld fail over; it is away for less time than its last word holds."""
    before, fleet.speaks = fleet.speaks, False
    fleet.go(chance.randrange(150, 200) // 10 * 10)
    fleet.speaks = before
    fleet.go(240)


def switch_dead(fleet: Fleet, chance: random.Random) -> None:
    """Let a management switch be dead: the scheduler alone hears of the racks behind it."""
    racks = fleet.nodes // 500
    first = chance.randrange(0, fleet.nodes // TRAYS - racks) * TRAYS
    dark = set(range(first, first + racks * TRAYS)) - fleet.silent
    fleet.silent |= dark
    fleet.go(12 * 60)
    fleet.silent -= dark
    fleet.go(300)


def away(fleet: Fleet, chance: random.Random) -> None:
    """Bring back the tray that was away, and send another one to its maker."""
    if fleet.away:
        fleet.silent -= fleet.away
        fleet.declare(fleet.away)
    node = chance.randrange(fleet.nodes)
    fleet.away = {node}
    fleet.go(180)
    fleet.leave(node, 5 * MINUTE_MS)
    fleet.go(20 * 60)


@dataclass(frozen=True, slots=True)
class Event:
    """Attributes: every_days, first_day: when; with_scheduler: only where there is one."""

    what: Callable[[Fleet, random.Random], None]
    every_days: int
    first_day: int
    with_scheduler: bool = False


EVENTS: Final = (
    Event(upgraded, MONTH_DAYS, 12),
    Event(failed_over, MONTH_DAYS, 5, with_scheduler=True),
    Event(switch_dead, 2 * MONTH_DAYS, 20, with_scheduler=True),
    Event(away, 7, 3),
)


def lived(days: int, seed: int) -> tuple[Fleet, Counter[str]]:
    """Let a fleet live for some days; return it, and what happened how often."""
    fleet, chance, happened = Fleet(), random.Random(seed), Counter[str]()
    fleet.go(420)
    for day in range(days):
        fleet.speaks = day // MONTH_DAYS % 2 == 0
        for event in EVENTS:
            due = day % event.every_days == event.first_day
            if due and (fleet.speaks or not event.with_scheduler):
                event.what(fleet, chance)
                happened[event.what.__name__] += 1
        while fleet.now_ms < START_MS + (day + 1) * DAY_MS:
            fleet.skip(12 * HOUR_MS)
            fleet.go(150)
    return fleet, happened


def wrongly(pages: Counter[str], switches: int) -> list[str]:
    """Return what should not have been paged. Args: switches: how often one was dead."""
    triggers = {page.split()[0]: n for page, n in pages.items() if page.endswith(" trigger")}
    wrong = [f"{n} x {rule}" for rule, n in triggers.items() if rule not in UNHEARD]
    if (n := sum(triggers.get(rule, 0) for rule in UNHEARD)) > switches:
        wrong.append(f"{n} x nodes of which nothing was heard")
    return wrong + [page for page in pages if page.split()[1] in ("escalate", "notice")]


def main(days: int, seed: int) -> int:
    """Let a fleet live and say who was paged; 0 where nobody was."""
    began = time.process_time()
    fleet, happened = lived(days, seed)
    told = ", ".join(f"{count} {what}" for what, count in sorted(happened.items()))
    sys.stdout.write(
        f"seed {seed}: {days} days of {NODES} nodes, {fleet.watch.counters.ticks} ticks in "
        f"{time.process_time() - began:.0f} s; {told}; {fleet.watch.counters.failed} ticks failed\n"
    )
    sys.stdout.write("".join(f"  {n:5} {page}\n" for page, n in sorted(fleet.pages().items())))
    wrong = wrongly(fleet.pages(), happened["switch_dead"])
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in wrong))
    return 1 if wrong or fleet.watch.counters.failed else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [365, 1][len(chosen) :])))

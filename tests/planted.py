"""Outages with one planted cause on a simulated fleet, told through the real path: rows and rosters → live
state → observations → a rule's verdict → an incident → its page.

Around the planted cause lies what every fleet has: cards that have been broken for weeks, a drained node,
noise on every counter, and a few small things that happen at the same moment.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from evidence_tables import roster, row, slot
from flopwatch_collector import incident
from flopwatch_collector.incident_state import Act, Action, IncidentState
from flopwatch_collector.ledger.lines import CLOCK_REASONS
from flopwatch_collector.live import MFU_WINDOW_MS, Live
from flopwatch_collector.live_tables import COLUMNS, table_of
from flopwatch_collector.paging import page
from flopwatch_collector.paging.background import Background
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.rules.verdict import Condition
from flopwatch_proto.rows import INTERVAL_MS, Bucket

CAUSES: Final = (
    "dead_rack",
    "dead_nodes",
    "drained",
    "failed_cards",
    "scheduling",
    "demand",
    "blind",
    "bad_job",
    "data_stall",
    "power_cap",
)
OF_MFU: Final = ("bad_job", "data_stall", "power_cap")
RACKS, NODES, CARDS = 16, 6, 4
START_MS: Final = 1_800_000_000_000 // 60_000 * 60_000
QUIET_MS: Final = 20 * 60_000
"""How long after its beginning the outage is paged: what fell silent is missing by then."""
PAGING: Final = PagingConfig(deployment="lab")
ABORTED_SHARE: Final = 0.5
NAMED_SHARE: Final = 0.8
"""Of the racks, nodes or jobs that a page names first: some may have been lost at the same moment."""


@dataclass(slots=True)
class Card:
    """What one card does. Attributes: word: the roster's; speaks: whether rows come of it."""

    job: str = ""
    team: str = ""
    word: Bucket = Bucket.FREE
    sm: float = 0.0
    tensor: float = 0.0
    clock: float = 0.95
    power: float = 0.1
    speaks: bool = True

    def stall(self, left: float) -> None:
        """Work for a share of the time only."""
        self.sm, self.tensor = self.sm * left, self.tensor * left


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """An outage. Attributes: names: of racks, nodes or jobs that are behind it; page: its body."""

    cause: str
    names: frozenset[str]
    body: Mapping[str, Any]

    @property
    def right(self) -> bool:
        """Whether the page names the cause first: its kind, and mostly what is behind it."""
        found = self.body["cause"]
        named = [one["name"] for one in found["subjects"]]
        right = sum(name in self.names for name in named)
        return found["kind"] == self.cause and bool(named) and right >= NAMED_SHARE * len(named)


@dataclass(slots=True)
class Fleet:
    """A cluster of racks of nodes of cards, and the jobs on it."""

    rng: random.Random
    cards: dict[tuple[str, str], Card] = field(default_factory=dict)
    pending: int = 0

    def __post_init__(self) -> None:
        """Fill it: jobs of any size over racks, a few cards that have been lost for long."""
        names = [
            (f"r{rack:02d}-n{node}", f"s{card}")
            for rack in range(RACKS)
            for node in range(NODES)
            for card in range(CARDS)
        ]
        jobs = self.rng.randint(5, 9)
        edges = sorted(self.rng.sample(range(24, len(names) - 24), jobs - 1))
        for number, (first, last) in enumerate(zip([0, *edges], [*edges, len(names)], strict=True)):
            tensor = self.rng.uniform(0.62, 0.75)
            for name in names[first:last]:
                self.cards[name] = Card(
                    job=f"job-{number}",
                    team=f"team-{number % 3}",
                    word=Bucket.ACTIVE,
                    sm=0.93,
                    tensor=tensor,
                )
        for name in self.rng.sample(names, 3):
            self.lose([name], Bucket.FAILED)
        self.lose(self.of_nodes(self.nodes(1)), Bucket.MAINT)

    def nodes(self, count: int) -> list[str]:
        """Return nodes at random that are at work."""
        working = {node for (node, _), card in self.cards.items() if card.word == Bucket.ACTIVE}
        return self.rng.sample(sorted(working), count)

    def of_nodes(self, nodes: Sequence[str]) -> list[tuple[str, str]]:
        """Return the cards of nodes."""
        return [name for name in self.cards if name[0] in nodes]

    def of_job(self, job: str) -> list[tuple[str, str]]:
        """Return the cards of a job."""
        return [name for name, card in self.cards.items() if card.job == job]

    @property
    def jobs(self) -> list[str]:
        """Jobs, the largest first."""
        held = [card.job for card in self.cards.values() if card.job]
        return sorted(set(held), key=lambda job: (-held.count(job), job))

    def lose(self, names: Sequence[tuple[str, str]], word: Bucket) -> None:
        """Take cards from their jobs."""
        for name in names:
            self.cards[name] = Card(word=word, speaks=self.cards[name].speaks)

    def tell(self, live: Live, start_ms: int, *, by_roster: bool) -> None:
        """Tell live state an interval."""
        records = [
            self._row(node, slot_name, card, start_ms, by_roster=by_roster)
            for (node, slot_name), card in self.cards.items()
            if card.speaks
        ]
        if by_roster:
            entries = [
                {"node": node, "slot": slot_name, "bucket": int(card.word), "job": card.job,
                 "team": card.team}
                for (node, slot_name), card in self.cards.items()
            ]  # fmt: skip
            free = float(sum(card.word == Bucket.FREE for card in self.cards.values()))
            said = roster(start_ms, entries, pending=self.pending, free=free)
            live.roster("atlas", False, columns(said))
        live.add_many("atlas", False, table_of(records, "interval", COLUMNS), start_ms + 12_000)

    def _row(
        self, node: str, slot_name: str, card: Card, start_ms: int, *, by_roster: bool
    ) -> dict[str, Any]:
        bucket = card.word
        if by_roster and bucket not in (Bucket.ACTIVE, Bucket.FAILED):
            bucket = Bucket.FREE
        if bucket is not Bucket.ACTIVE:
            return row(start_ms, bucket, node=node, name=slot_name)
        noise = self.rng.gauss(1.0, 0.04)
        held: dict[str, Any] = dict.fromkeys(
            (f"throttled_{reason}_ms" for reason in CLOCK_REASONS), 0.0
        )
        held["throttled_power_ms"] = 10_000.0 * card.power
        return row(
            start_ms,
            node=node,
            name=slot_name,
            sm=min(1.0, card.sm * noise),
            tensor=min(1.0, card.sm * noise, card.tensor * noise),
            clock=min(1.0, card.clock * self.rng.gauss(1.0, 0.01)),
            job=card.job,
            team=card.team,
            workload_class="training",
            phase="steady",
            **held,
        )


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return records as columns."""
    names = {name for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}


def planted(cause: str, seed: int) -> Planted:
    """Return an outage with that cause, and its page."""
    fleet = Fleet(random.Random(seed))
    declared = [slot(node=node, name=name, start=START_MS) for node, name in fleet.cards]
    live = Live(START_MS, lambda cluster: rule_named("mfu").defaults)
    live.slots("atlas", False, columns(declared))
    by_roster = cause not in (*OF_MFU, "blind")
    before = observed(fleet, live, START_MS + MFU_WINDOW_MS, by_roster=by_roster)
    fell_ms = START_MS + MFU_WINDOW_MS + INTERVAL_MS
    names = plant(fleet, cause)
    distract(fleet, cause)
    paged_ms = fell_ms + (90_000 if cause == "blind" else QUIET_MS)
    now = observed(fleet, live, paged_ms, by_roster=by_roster)
    rule = "mfu" if cause in OF_MFU else "blind" if cause == "blind" else "allocation"
    state = judged(rule, now, fell_ms, paged_ms)
    tallies = live.tallies("atlas")
    assert tallies is not None
    reads = rule_named(rule).reads
    background = Background(
        settings=rule_named(rule).defaults,
        now=now[reads],
        before=before[reads],
        tally=tallies.newest(),
        earlier=tallies.before(before[reads].tick_unix_ms),
    )
    action = Action(act=Act.TRIGGER, episode=state.episode)
    built = page.build(state, action, paged_ms, PAGING, background=background)
    return Planted(cause=cause, names=frozenset(names), body=built.body)


def observed(fleet: Fleet, live: Live, tick_ms: int, *, by_roster: bool) -> dict[str, Observation]:
    """Tell the last intervals before a tick, all that MFU is of, and return what rules are told at it."""
    length_ms = 2 * INTERVAL_MS if by_roster else MFU_WINDOW_MS
    for start_ms in range(tick_ms - length_ms, tick_ms, INTERVAL_MS):
        fleet.tell(live, start_ms, by_roster=by_roster)
    return {observation.rule: observation for observation in live.observe("atlas", tick_ms)}


def judged(name: str, now: Mapping[str, Observation], fell_ms: int, paged_ms: int) -> IncidentState:
    """Return the incident: it must be one."""
    rule = rule_named(name)
    observation = now[rule.reads]
    verdict = rule.judge(observation, rule.defaults)
    assert verdict.condition is Condition.BREACH, (name, observation)
    state = IncidentState(rule=name, cluster="atlas")
    for tick_ms in (fell_ms, paged_ms):
        state, _ = incident.advance(state, verdict, observation, tick_ms, rule.defaults)
    return state


def plant(fleet: Fleet, cause: str) -> list[str]:
    """Make the cause happen; return the names that are behind it."""
    if cause in OF_MFU:
        return _slow(fleet, cause)
    rng = fleet.rng
    fleet.pending = 64
    down = rng.choice((Bucket.MISSING, Bucket.FAILED))
    match cause:
        case "dead_rack":
            rack = f"r{rng.randrange(RACKS):02d}"
            _silence(fleet, [f"{rack}-n{node}" for node in range(NODES)], down)
            return [rack]
        case "dead_nodes" | "blind":
            nodes = fleet.nodes(rng.randint(5, 8) if cause == "dead_nodes" else rng.randint(20, 60))
            _silence(fleet, nodes, down)
            return nodes
        case "drained":
            nodes = fleet.nodes(rng.randint(5, 8))
            fleet.lose(fleet.of_nodes(nodes), Bucket.MAINT)
            return nodes
        case "failed_cards":
            nodes = fleet.nodes(rng.randint(20, 28))
            fleet.lose([(node, f"s{rng.randrange(CARDS)}") for node in nodes], Bucket.FAILED)
            return nodes
    ended = fleet.of_job(rng.choice([job for job in fleet.jobs if len(fleet.of_job(job)) >= 20]))
    fleet.lose(ended, Bucket.FREE)
    fleet.pending = 0 if cause == "demand" else len(ended) + 64
    return [node for node, _ in ended]


def _silence(fleet: Fleet, nodes: Sequence[str], word: Bucket) -> None:
    """Nodes speak no more. Half of the time a job that ran there ends with them, and waits for cards."""
    jobs = {fleet.cards[name].job for name in fleet.of_nodes(nodes)} - {""}
    fleet.lose(fleet.of_nodes(nodes), word)
    for name in fleet.of_nodes(nodes):
        fleet.cards[name].speaks = False
    if fleet.rng.random() < ABORTED_SHARE:
        smallest = [job for job in reversed(fleet.jobs) if job in jobs]
        for job in smallest[:1]:
            fleet.lose(fleet.of_job(job), Bucket.FREE)


def _slow(fleet: Fleet, cause: str) -> list[str]:
    """Take FLOPs from one job, from all of them, or from the clocks of many racks."""
    rng = fleet.rng
    if cause == "bad_job":
        job = fleet.jobs[0]
        for name in fleet.of_job(job):
            fleet.cards[name].stall(0.2)
        return [job]
    factors = {job: rng.uniform(0.4, 0.75) for job in fleet.jobs}
    capped = {f"r{rack:02d}" for rack in rng.sample(range(RACKS), rng.randint(10, RACKS))}
    clock = rng.uniform(0.55, 0.75)
    for (node, _), card in fleet.cards.items():
        if cause == "data_stall" and card.job:
            card.stall(factors[card.job])
        elif cause == "power_cap" and node[:3] in capped:
            card.clock, card.power = clock, rng.uniform(0.8, 1.0)
    return fleet.jobs


def distract(fleet: Fleet, cause: str) -> None:
    """Let small things happen at the same moment."""
    rng = fleet.rng
    if rng.random() < 0.5:
        fleet.lose(rng.sample(sorted(fleet.cards), rng.randint(1, 2)), Bucket.FAILED)
    if rng.random() < 0.5 and cause != "blind":
        fleet.lose(fleet.of_nodes(fleet.nodes(1)), Bucket.MAINT)
    for name in fleet.of_job(fleet.jobs[-1]):
        if rng.random() < 0.5:
            fleet.cards[name].stall(0.9)
    for (node, _), card in fleet.cards.items():
        if node.startswith("r00"):
            card.clock *= 0.97

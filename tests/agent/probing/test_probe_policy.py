"""When a card may be probed: over random histories never while it is held, never beyond its budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_agent.config import AgentConfig
from flopwatch_agent.probing.budget import WINDOW_MS, Account, Accounts, Run, budget_ms
from flopwatch_agent.probing.policy import (
    CardState,
    Limits,
    Watch,
    due,
    in_turn,
    occupied,
    refusal,
    turn_of,
)
from flopwatch_agent.probing.settings import ProbingConfig
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_proto.rows import Bucket

NOON = 1_793_534_400_000
CARD = Device(slot="0000:18:00.0", kind="gpu", sku="NVIDIA H100 80GB HBM3", uuid="GPU-1")
FREE = (Share(bucket=Bucket.FREE, source="slurm"),)
LIMITS = Limits(turns=1)
PLAN = ("gemm bf16 burst", "sdc any burst")


def reading(at_ms: int, **more: object) -> Reading:
    fields = {"device": CARD, "processes": (), **more}
    return Reading(taken_unix_ms=NOON + at_ms, boottime_ns=at_ms * 1_000_000, **fields)  # type: ignore[arg-type]


HELD: dict[str, tuple[dict[str, object], tuple[Share, ...]]] = {
    "a process": ({"processes": (Process(pid=7),)}, FREE),
    "no list of processes": ({"processes": None}, FREE),
    "a silent driver": ({"alive": False, "failure": "unresponsive"}, FREE),
    "MIG devices": ({"device": replace(CARD, instances=("MIG-1",))}, FREE),
    "an allocation": ({}, (Share(bucket=Bucket.IDLE_ALLOC, job="81", source="slurm"),)),
    "a scheduler that is silent": ({}, (Share(bucket=Bucket.UNSEEN, source="slurm"),)),
    "maintenance": ({}, (Share(bucket=Bucket.MAINT, source="slurm"),)),
    "a hold": ({}, (Share(bucket=Bucket.HELD, source="file"),)),
    "a stranger": ({}, (Share(bucket=Bucket.FREE, rogue=True, source="slurm"),)),
    "half of it": ({}, (*FREE, Share(bucket=Bucket.ACTIVE, weight=0.5, job="81"))),
    "nobody's word": ({}, ()),
}


@pytest.mark.parametrize("name", HELD)
def test_what_may_be_somebodys_is_not_probed(name: str) -> None:
    more, shares = HELD[name]
    assert occupied(reading(0, **more), shares) is not None
    assert occupied(reading(0), FREE) is None


@dataclass
class World:
    """A card whose truth is known, seen once a second, and probed whenever the policy lets it."""

    now_ms: int = 0
    free_since_ms: int = 0
    read_ms: int = 0
    watch: Watch = field(default_factory=Watch)
    account: Account = field(default_factory=Account)
    spans: list[tuple[int, int]] = field(default_factory=list)

    def see(self, held: str | None) -> None:
        more, shares = HELD[held] if held else ({}, FREE)
        if held or self.now_ms - self.read_ms > 30_000:
            self.free_since_ms = self.now_ms
        self.read_ms = self.now_ms
        self.watch.see(reading(self.now_ms, **more), shares)
        if held:
            self.free_since_ms = self.now_ms + 1

    def probe(self, took_ms: int, aborted: bool) -> None:
        now_unix_ms = NOON + self.now_ms
        refused = refusal(
            self.watch.cards[CARD.slot],
            self.account,
            LIMITS,
            now_ns=self.now_ms * 1_000_000,
            now_unix_ms=now_unix_ms,
            node="n1",
        )
        what = due(self.account, PLAN, LIMITS, now_unix_ms)
        if refused or what is None:
            return
        assert self.now_ms - self.free_since_ms >= LIMITS.idle_ms
        assert self.now_ms - self.read_ms <= 3_000
        run = Run(what=what, start_unix_ms=now_unix_ms, charged_ms=LIMITS.wall_ms)
        self.account = self.account.charged(run).settled(run, took_ms, aborted=aborted)
        self.spans.append((self.now_ms, self.now_ms + min(took_ms, LIMITS.wall_ms)))
        self.now_ms += took_ms


steps = st.lists(
    st.tuples(
        st.one_of(st.none(), st.none(), st.none(), st.sampled_from(sorted(HELD))),
        st.sampled_from([1_000, 2_000, 29_000, 31_000, 290_000, 3_600_000]),
        st.integers(1, 600),
        st.integers(0, 30_000),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_a_held_card_is_never_probed_and_no_budget_is_exceeded(
    history: list[tuple[str | None, int, int, int, bool]],
) -> None:
    world = World()
    for held, step_ms, times, took_ms, aborted in history:
        for _ in range(times if step_ms == 1_000 else 1):
            world.see(held)
            world.probe(took_ms, aborted)
            world.now_ms += step_ms
        world.probe(took_ms, aborted)  # also between two readings
    budget = budget_ms(LIMITS.budget_ratio)
    for start, _ in world.spans:
        inside = [s for s in world.spans if s[1] > start and s[0] < start + WINDOW_MS]
        taken = sum(min(e, start + WINDOW_MS) - max(s, start) for s, e in inside)
        assert taken <= budget == 28_800


def test_a_card_that_stays_free_is_probed_once_a_day_for_each_kind() -> None:
    world = World()
    for _ in range(2 * 24 * 120):
        for _ in range(2):  # the readings just before
            world.now_ms += 1_000
            world.see(None)
        world.probe(9_000, aborted=False)
        world.now_ms += 28_000
    assert len(world.spans) == 4
    assert Counter(run.what for run in world.account.runs).keys() == set(PLAN)


def test_an_aborted_probe_is_tried_again_after_an_hour_and_not_before() -> None:
    run = Run(what=PLAN[0], start_unix_ms=NOON, charged_ms=100, aborted=True)
    account = Account(runs=(run,))
    assert due(account, PLAN[:1], LIMITS, NOON + 3_599_000) is None
    assert due(account, PLAN[:1], LIMITS, NOON + 3_600_000) == PLAN[0]
    assert due(account, PLAN, LIMITS, NOON) == PLAN[1]


def test_released_cards_and_a_host_that_probes_already_are_left_alone() -> None:
    card = CardState(device="GPU-1", occupied=None, free_since_ns=0, read_ns=10**12)
    at = {"now_ns": 10**12, "now_unix_ms": NOON, "node": "n1"}
    assert refusal(card, Account(), LIMITS, **at) is None  # type: ignore[arg-type]
    assert refusal(card, Account(), LIMITS, **at, released=True)  # type: ignore[arg-type]
    assert refusal(card, Account(), LIMITS, **at, busy="GPU-2")  # type: ignore[arg-type]
    stale = refusal(card, Account(), LIMITS, now_ns=10**12 + 4 * 10**9, now_unix_ms=NOON, node="")
    assert stale == "not read lately"


@given(st.text("abcr", min_size=1, max_size=8), st.integers(0, 9_000), st.integers(1, 64))
def test_neighbours_take_different_turns(stem: str, first: int, size: int) -> None:
    turns = [turn_of(f"{stem}{first + i}", 64) for i in range(size)]
    assert len(set(turns)) == size
    assert set(turns) <= set(range(64))


def test_in_a_rack_nobody_probes_beside_another_and_everybody_has_a_turn() -> None:
    limits = Limits()
    nodes = [f"r17-n{i:02}" for i in range(32)]
    starts: dict[str, list[int]] = {node: [] for node in nodes}
    for second in range(0, 64 * limits.turn_ms // 1_000):
        at = NOON + second * 1_000
        allowed = [node for node in nodes if in_turn(node, at, limits)]
        assert len(allowed) <= 1
        for node in allowed:
            starts[node].append(at)
    assert all(starts.values())
    begins = {node: times[0] // limits.turn_ms for node, times in starts.items()}
    ends = {n: (times[-1] + limits.wall_ms - 1) // limits.turn_ms for n, times in starts.items()}
    assert begins == ends  # a probe of full length ends before the next one's turn begins


def test_a_budget_outlives_the_process_and_a_probe_that_died_stays_charged(tmp_path: Path) -> None:
    run = Run(what=PLAN[0], start_unix_ms=NOON, charged_ms=25_000)
    Accounts(tmp_path).save("GPU-1", Account().charged(run))
    again = Accounts(tmp_path).load("GPU-1")
    assert not again.affords(25_000, NOON + 60_000, 28_800)
    assert again.affords(25_000, NOON + 25_000 + WINDOW_MS, 28_800)
    settled = again.settled(run, 2_000, aborted=True)
    assert settled.affords(25_000, NOON + 60_000, 28_800)
    assert Accounts(tmp_path).load("GPU-2") == Account()
    (tmp_path / "probing" / "GPU-1.json").write_text("{")
    assert Accounts(tmp_path).load("GPU-1") == Account()


def test_probing_is_off_and_its_bounds_are_checked() -> None:
    assert AgentConfig().probing.enabled is False
    for wrong in ({"wall": 30}, {"budget_ratio": 0.5}, {"idle": 5}, {"kinds": ["burn"]}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, ProbingConfig, strict=False)

"""Generated jobs: what counters at 1 Hz show of a synchronous training step, with one fault or none.

Each rank of a step computes, updates its parameters, waits for the last rank and exchanges gradients; part
of the exchange overlaps the computation. What a card's counters show follows from that alone:

    lag       no kernel on the card                     SM, tensor, link 0
    compute   SM busy, tensor active W / (c × f)        link low where the exchange overlaps
    update    SM busy, memory bound                     tensor and link 0
    wait      the collective's kernel spins             SM as much as it holds, tensor and link 0
    transfer  the same kernel moves bytes               link at its rate

Cards differ (clock of the silicon, NUMA node, jitter, pipeline stages of unequal work, tensor-parallel mates
that wait for each other inside the computation), clocks rise while cards wait, whole jobs pause for
checkpoints, some nodes of the job idle, readings are means over the time since the last one, taken at
each node's own moment, with noise and holes. Faults are made in time, never in counters.

Simulated: nothing here was ever measured. The detector of stragglers knows none of these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

KINDS: Final = ("slow_clock", "slow_card", "late_rank", "data_stall", "slow_link")
CARDS_PER_NODE: Final = 8
SECONDS: Final = 60
_F0_MHZ: Final = 1755.0
_F_MAX_MHZ: Final = 1980.0
_TDP_WATTS: Final = 700.0
_EPOCH_MS: Final = 1_800_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with a generated job.

    Attributes:
        kind: one of KINDS.
        severity: extra computing time of the culprit, as a share of it; of a slow link (always at half
            rate) the exposed exchange as a share of the step.
        node: index of the node.
        card: index in the node; None: the whole node.
    """

    kind: str
    severity: float
    node: int
    card: int | None

    def is_at(self, node: str, slot: str | None) -> bool:
        """Return whether it is here: the card, or for a whole node any word for it."""
        return node == node_name(self.node) and (self.card is None or slot == slot_name(self.card))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A generated job.

    Attributes:
        nodes, slots: of each card. taken_unix_ms: cards × readings.
        fields: by the names of readings' fields, cards × readings; NaN where a reading is lost.
    """

    step_s: float
    fault: Fault | None
    nodes: list[str]
    slots: list[str]
    taken_unix_ms: npt.NDArray[np.int64]
    fields: dict[str, Floats]

    def readings(self) -> list[dict[str, Any]]:
        """Return the readings as the API gives those of a capture; None where there is no value."""
        return [
            {
                "node": node,
                "slot": slot,
                "taken_unix_ms": self.taken_unix_ms[i].tolist(),
                "columns": {
                    name: [None if np.isnan(v) else float(v) for v in values[i]]
                    for name, values in self.fields.items()
                    if not np.isnan(values[i]).all()
                },
            }
            for i, (node, slot) in enumerate(zip(self.nodes, self.slots, strict=True))
        ]


def node_name(index: int) -> str:
    """Return the name of a generated node."""
    return f"sim-{index:04d}"


def slot_name(index: int) -> str:
    """Return the slot of a generated card."""
    return f"0000:{0x18 + 0x10 * index:02x}:00.0"


def generate(seed: int, kind: str | None, severity: float | None = None, nodes: int = 0) -> Job:
    """Return a job; None for kind: a clean one. 0 nodes: 8 to 64 by the seed."""
    rng = np.random.default_rng(seed)
    count = nodes or int(rng.choice((8, 12, 16, 24, 32, 48, 64)))
    made = _Maker(rng, count)
    fault = None
    if kind is not None:
        share = float(rng.uniform(0.05, 0.5)) if severity is None else severity
        working = np.flatnonzero(~made.idle_nodes)
        node = int(rng.choice(working))
        card = None if kind == "data_stall" else int(rng.integers(CARDS_PER_NODE))
        fault = Fault(kind=kind, severity=share, node=node, card=card)
    return made.play(fault)


class _Maker:
    """One job's constants, and its steps played in time."""

    def __init__(self, rng: np.random.Generator, nodes: int) -> None:
        self.rng, self.nodes, self.cards = rng, nodes, nodes * CARDS_PER_NODE
        self.step_s = float(np.exp(rng.uniform(np.log(0.7), np.log(12.0))))
        self.exposed = float(rng.uniform(0.05, 0.25))
        self.overlap = float(rng.uniform(0.0, 0.6))
        self.update = float(rng.uniform(0.02, 0.08))
        self.tensor_parallel = bool(rng.random() < 0.4)
        self.sm_compute = float(rng.uniform(0.75, 0.98))
        self.sm_spin = float(rng.uniform(0.12, 0.9))
        self.tensor = float(rng.uniform(0.35, 0.7))
        self.clock_share = float(rng.uniform(0.7, 1.0))
        self.jitter = float(rng.uniform(0.002, 0.012))
        self.capped = bool(rng.random() < 0.7)
        self.fabric = "pcie" if rng.random() < 0.5 else "nvlink"
        self.idle_nodes = np.zeros(nodes, bool)
        if rng.random() < 0.3:
            idle = rng.choice(nodes, int(rng.integers(1, 1 + max(1, nodes // 16))), replace=False)
            self.idle_nodes[idle] = True
        stages = int(rng.choice((1, 1, 2, 4)))
        work = 1 + rng.normal(0, 0.02, stages)
        self.stage = np.repeat(work[np.arange(nodes) * stages // nodes], CARDS_PER_NODE)
        silicon = 1 + rng.normal(0, 0.009 if self.capped else 0.001, self.cards)
        top = _F0_MHZ if self.capped else _F_MAX_MHZ
        self.clock = np.minimum(top * silicon, _F_MAX_MHZ)
        self.numa = np.tile(np.repeat((0.0, 1.0), CARDS_PER_NODE // 2), nodes)

    def play(self, fault: Fault | None) -> Job:
        """Return the readings of every card over SECONDS."""
        spans = self._steps(fault)
        return self._read(spans, self._sample_plan(), fault)

    # ---- time

    def _steps(self, fault: Fault | None) -> dict[str, Floats]:
        """Return per card and step the ends of: lag, compute, update, wait, transfer, step."""
        rng, cards = self.rng, self.cards
        steps = int(np.ceil((SECONDS + 10) / self.step_s)) + 3
        comm = (
            self.exposed
            if fault is None or fault.kind != "slow_link"
            else min(0.35, fault.severity)
        )
        base = self.step_s * (1 - comm - self.update)
        top = _F0_MHZ if self.capped else _F_MAX_MHZ
        clock = self.clock.copy()
        culprit = np.zeros(cards, bool)
        if fault is not None:
            first = fault.node * CARDS_PER_NODE
            last = first + CARDS_PER_NODE
            culprit[slice(first, last) if fault.card is None else first + fault.card] = True
            if fault.kind == "slow_clock":
                clock = np.where(culprit, clock / (1 + fault.severity), clock)
        slow = (top / clock) ** self.clock_share
        compute = base * self.stage * slow
        compute = compute[:, None] * (1 + rng.normal(0, self.jitter, (cards, steps)))
        if fault is not None and fault.kind == "slow_card":
            compute = np.where(culprit[:, None], compute * (1 + fault.severity), compute)
        lag = np.abs(rng.normal(0, 0.002, (cards, steps))) + 0.002 * self.numa[:, None]
        lag *= self.step_s
        if fault is not None and fault.kind == "late_rank":
            late = fault.severity * base * (1 + rng.normal(0, 0.2, steps)).clip(0)
            lag += culprit[:, None] * late
        if fault is not None and fault.kind == "data_stall":
            often = rng.uniform(0.15, 0.6)
            hit = rng.random(steps) < often
            seen = int(np.ceil(8 / self.step_s))  # steps before the window
            hit[rng.integers(seen, max(seen + 1, steps // 2))] = True  # one at least is in it
            length = fault.severity * base / often * rng.uniform(0.5, 1.5, steps)
            lag += culprit[:, None] * (hit * length)
        transfer = comm * self.step_s * (1 + np.abs(rng.normal(0, 0.02, (cards, steps))))
        transfer *= 1 + 0.01 * self.numa[:, None]
        if fault is not None and fault.kind == "slow_link":
            paced = rng.uniform(0.0, 0.5)
            transfer *= np.where(culprit[:, None], 2.0, 1 + paced)
        self.slow_clock, self.culprit, self.compute_base = clock, culprit, base
        return self._laid(lag, compute, transfer, steps)

    def _laid(
        self, lag: Floats, compute: Floats, transfer: Floats, steps: int
    ) -> dict[str, Floats]:
        """Lay the steps one after the other; nobody leaves one before the last has."""
        rng, shape = self.rng, (self.nodes, CARDS_PER_NODE, steps)
        done = lag + compute
        if self.tensor_parallel:
            done = np.broadcast_to(done.reshape(shape).max(1, keepdims=True), shape).reshape(
                done.shape
            )
        update = self.update * self.step_s * (1 + rng.normal(0, 0.01, done.shape))
        arrive = done + update
        working = np.repeat(~self.idle_nodes, CARDS_PER_NODE)
        barrier = arrive[working].max(0)
        ends = barrier + transfer[working].max(0)
        pause = np.zeros(steps)
        if rng.random() < 0.2:
            pause[rng.integers(2, max(3, steps - 2))] = rng.uniform(2.0, 8.0)
        start = np.concatenate([[0.0], np.cumsum(ends + pause)[:-1]]) - 4.0 - rng.uniform(0, 4)
        return {
            "start": np.broadcast_to(start, done.shape),
            "lag": start + lag,
            "own": start + lag + compute,
            "done": start + done,
            "arrive": start + arrive,
            "barrier": np.broadcast_to(start + barrier, done.shape),
            "moved": start + barrier + transfer,
            "end": np.broadcast_to(start + ends, done.shape),
            "next": np.broadcast_to(start + ends + pause, done.shape),
        }

    # ---- counters

    def _sample_plan(self) -> Floats:
        """Return the moments of reading per node, one before the first: seconds from the window's start."""
        rng = self.rng
        phase = rng.uniform(0, 1, (self.nodes, 1)) - 1
        ticks = np.arange(SECONDS + 1)[None, :] + phase
        return np.asarray(ticks + rng.normal(0, 0.01, ticks.shape))

    def _read(self, spans: dict[str, Floats], ticks: Floats, fault: Fault | None) -> Job:
        levels = self._levels(spans, fault)
        rng = self.rng
        skew_ms = rng.normal(0, 4.0, self.nodes)
        names = ("start", "lag", "own", "done", "arrive", "barrier", "moved", "end")
        marks = np.stack([spans[n] for n in names], axis=-1).reshape(self.cards, -1)
        rates = np.stack([np.stack(level, axis=-1) for level in levels.values()], axis=1)
        rates = rates.reshape(self.cards, len(levels), -1)[:, :, :-1]
        whole = np.zeros((self.cards, len(levels), marks.shape[1]))
        np.cumsum(rates * np.diff(marks)[:, None], axis=2, out=whole[:, :, 1:])
        means = np.empty((self.cards, len(levels), SECONDS))
        for card in range(self.cards):
            at = ticks[card // CARDS_PER_NODE]
            after = np.clip(np.searchsorted(marks[card], at), 1, marks.shape[1] - 1)
            since = at - marks[card][after - 1]
            counted = whole[card][:, after - 1] + rates[card][:, after - 1] * since
            means[card] = np.diff(counted) / np.diff(at)
        idle = np.repeat(self.idle_nodes, CARDS_PER_NODE)
        columns = {name: means[:, i] for i, name in enumerate(levels)}
        for name, values in columns.items():
            values[idle] = {"power_watts": 90.0, "sm_clock_mhz": 345.0}.get(name, 0.0)
        taken = np.rint(ticks[:, 1:] * 1000 + skew_ms[:, None]).astype(np.int64) + _EPOCH_MS
        return Job(
            step_s=self.step_s,
            fault=fault,
            nodes=[node_name(card // CARDS_PER_NODE) for card in range(self.cards)],
            slots=[slot_name(card % CARDS_PER_NODE) for card in range(self.cards)],
            taken_unix_ms=np.repeat(taken, CARDS_PER_NODE, axis=0),
            fields=self._noisy(columns, fault),
        )

    def _levels(
        self, spans: dict[str, Floats], fault: Fault | None
    ) -> dict[str, tuple[Floats, ...]]:
        """Return per counter its level in: lag, compute, (mates), update, wait, transfer, spin, pause."""
        rng, shape = self.rng, spans["lag"].shape
        zero, one = np.zeros(shape), np.ones(shape)
        own = spans["own"] - spans["lag"]
        work = self.compute_base * self.tensor * self.stage[:, None] * _F0_MHZ
        if fault is not None and fault.kind == "slow_card":
            stretched = 1 + fault.severity * rng.uniform(0, 1)
            work = np.where(self.culprit[:, None], work * stretched, work)
        clock = self.slow_clock[:, None]
        tensor = np.minimum(work / (own * clock), 1.0)
        gain = 1 + rng.normal(0, 0.004, (self.cards, 1))
        busy, spin = self.sm_compute * gain * one, self.sm_spin * gain * one
        moved = (spans["moved"] - spans["barrier"]).clip(1e-6)
        volume = 40e9 * self.step_s * self.exposed
        hidden = volume * self.overlap / (1 - self.overlap + 1e-9) / own.clip(1e-6)
        rate = volume / moved
        board = _TDP_WATTS * (1 + rng.normal(0, 0.03, (self.cards, 1)))
        hot, warm = 0.97 * board * one, board * rng.uniform(0.35, 0.6) * one
        idle = 0.2 * board * one
        free = np.minimum(clock * (1.05 if self.capped else 1.0), _F_MAX_MHZ) * one
        if fault is not None and fault.kind == "slow_clock":
            free = np.where(self.culprit[:, None], clock, free)
        at = clock * one
        mates = (free, spin, warm)
        return {
            "sm_active_ratio": (0.01 * one, busy, mates[1], busy, spin, spin, spin, 0.01 * one),
            "tensor_active_ratio": (zero, tensor, zero, zero, zero, zero, zero, zero),
            "sm_clock_mhz": (free, at, mates[0], at, free, free, free, free),
            "power_watts": (idle, hot, mates[2], 0.7 * board * one, warm, warm, warm, idle),
            "dram_active_ratio": (zero, 0.35 * one, zero, 0.85 * one, zero, 0.1 * one, zero, zero),
            "link": (zero, hidden, zero, zero, zero, rate, zero, zero),
        }

    def _noisy(self, columns: dict[str, Floats], fault: Fault | None) -> dict[str, Floats]:
        rng, shape = self.rng, (self.cards, SECONDS)
        noise = {"sm_clock_mhz": 0.003, "power_watts": 0.02}
        shown: dict[str, Floats] = {}
        for name, values in columns.items():
            seen = (values * (1 + rng.normal(0, noise.get(name, 0.01), shape))).clip(0)
            if name != "link":
                shown[name] = seen
                continue
            other = "nvlink" if self.fabric == "pcie" else "pcie"
            for word in ("tx", "rx"):
                shown[f"{self.fabric}_{word}_bytes_per_second"] = seen.copy()
                background = np.abs(rng.normal(2e8, 2e7, shape))
                shown[f"{other}_{word}_bytes_per_second"] = background
        if fault is not None and fault.kind == "slow_clock" and rng.random() < 0.6:
            rises = np.cumsum(rng.uniform(0.3, 1, shape), axis=1)
            shown["throttled_thermal_hw_seconds_total"] = rises * self.culprit[:, None]
        lost = rng.random(shape) < 0.01
        for values in shown.values():
            values[lost] = np.nan
        return shown

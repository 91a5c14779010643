"""What the driver of a simulated node would say, and the agent's own fold of it. Pure.

A simulated card is read at every interval boundary (UTC multiples) and wherever a card of its node
changes. A reading's ratios are means since the one before and its counters integrate them, so readings
at exactly these moments lose nothing: totals over rows equal the scenario's closed form.

At a change the rows are closed and a fresh fold is opened, as if the agent had seen the change at that
very millisecond; a card of which nothing is sent is simply not read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from flopwatch.simulate.card import CardState, Segment, Tenant
from flopwatch.simulate.scenario import FATAL_XIDS, Cluster, Scenario
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_proto.codec import IntervalRow, Value
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

_BUSES: Final = (0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB)
_MEMORY: Final = re.compile(r"(\d+)\s?GB")
_BOOTED_BEFORE_MS: Final = 3_600_000
_PROCESS_PID: Final = 100_000
_HALF_TENSOR: Final = ("bf16", "fp16", "fp16_acc16", "fp8", "fp8_acc16", "fp6", "fp4", "tf32")
_THROTTLE_FIELDS: Final = {
    "power": "throttled_power_seconds_total",
    "thermal_sw": "throttled_thermal_sw_seconds_total",
    "thermal_hw": "throttled_thermal_hw_seconds_total",
    "power_brake": "throttled_power_brake_seconds_total",
    "sync_boost": "throttled_sync_boost_seconds_total",
    "application_clock": "throttled_application_clock_seconds_total",
}
_XID_TEXTS: Final = {
    48: "double-bit ECC error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
}


class Fold(Protocol):
    """The agent's `flopwatch_agent.interval.Fold`."""

    def add(self, reading: Reading, shares: Sequence[Share]) -> list[IntervalRow]:
        """Take a reading; return the rows that it closed."""
        ...

    def close(self, until_unix_ms: int) -> list[IntervalRow]:
        """Return what is open, up to that moment."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a node produced at one moment. Attributes: at_ms: since the scenario's start."""

    at_ms: int
    rows: list[IntervalRow]
    events: list[pb.Event]


def slot_name(card: int) -> str:
    """The PCI address of a card by its number: ``0000:18:00.0``, …; eight to a PCI domain."""
    domain, place = divmod(card, len(_BUSES))
    return f"{domain:04x}:{_BUSES[place]:02x}:00.0"


def device(cluster: Cluster, node: int, card: int) -> Device:
    """The device that stands in a slot: the same in every run of the same scenario."""
    peak = cluster.sku.peaks[cluster.dtype]
    serial = random.Random(f"{cluster.name}/{node}/{card}").getrandbits(96)
    digits = f"{serial:024x}"
    return Device(
        slot=slot_name(card),
        kind="gpu",
        sku=cluster.sku.name,
        uuid=f"GPU-sim-{digits[:8]}-{digits[8:12]}-{digits[12:]}",
        serial=f"sim{serial % 10**10:010d}",
        minor=card,
        sm_count=peak.sm_count,
        clock_mhz_max=cluster.sku.max_clock_mhz,
    )


class CardPlayer:
    """One simulated card: its counters, and what is read of it."""

    def __init__(self, cluster: Cluster, node: int, card: int, seed: int) -> None:
        self.device = device(cluster, node, card)
        self.segments: tuple[Segment, ...] = cluster.timelines[node][card]
        self._dtype = cluster.dtype
        self._peak_flops = cluster.sku.peaks[cluster.dtype].dense_flops
        self._tdp_watts = cluster.sku.peaks[cluster.dtype].tdp_watts
        self._noise_key = f"{seed}/{cluster.name}/{node}/{card}"
        self._index = 0
        self._counters = dict.fromkeys(("energy_joules_total", *_THROTTLE_FIELDS.values()), 0.0)
        self._model_flops: dict[tuple[str | None, float], float] = {}
        self._process = (Process(pid=_PROCESS_PID + card, memory_bytes=None),)
        self._means: dict[str, float] = {}
        self._gauges: dict[str, Value] = {}
        self._enter(self.segments[0].state)

    @property
    def state(self) -> CardState:
        """What the card is doing."""
        return self.segments[self._index].state

    def turns(self, at_ms: int) -> bool:
        """Enter the segment that starts at this moment; False where none does."""
        following = self._index + 1
        if following == len(self.segments) or self.segments[following].start_ms != at_ms:
            return False
        self._index = following
        self._enter(self.segments[following].state)
        return True

    def advance(self, at_ms: int, passed_ms: int) -> dict[str, Value]:
        """Let time pass to `at_ms` in the state the card is in; return what is read there."""
        state, seconds = self.state, passed_ms / 1000
        means = self._means
        if state.noise > 0.0:
            means = _noisy(means, state.noise, random.Random(f"{self._noise_key}/{at_ms}"))
        counters = self._counters
        watts = means.get("power_watts")
        if watts is not None:
            counters["energy_joules_total"] += watts * seconds
        for reason, ratio in state.throttle.items():
            counters[_THROTTLE_FIELDS[reason]] += ratio * seconds
        if state.declared_mfu is not None and state.resident:
            for tenant in state.tenants:
                if tenant.bucket is Bucket.ACTIVE:
                    key = (tenant.job, tenant.weight)
                    declared = state.declared_mfu * self._peak_flops * tenant.weight * seconds
                    self._model_flops[key] = self._model_flops.get(key, 0.0) + declared
        return {**means, **counters, **self._gauges}

    def reading(self, values: dict[str, Value], *, unix_ms: int, boottime_ns: int) -> Reading:
        """The driver's answer at this moment; a failed card gives none."""
        if self.state.state == "failed":
            return Reading(
                device=self.device,
                taken_unix_ms=unix_ms,
                boottime_ns=boottime_ns,
                alive=False,
                failure="gpu_is_lost",
            )
        return Reading(
            device=self.device,
            taken_unix_ms=unix_ms,
            boottime_ns=boottime_ns,
            values=values,
            processes=self._process if self.state.resident else (),
        )

    def shares(self) -> tuple[Share, ...]:
        """Who holds the card, with the counters that its jobs declared so far."""
        if self.state.declared_mfu is None or not self.state.resident:
            return self._shares
        return tuple(
            replace(share, model_flops_total=self._model_flops.get((share.job, share.weight), 0.0))
            if share.bucket is Bucket.ACTIVE
            else share
            for share in self._shares
        )

    def _enter(self, state: CardState) -> None:
        self._shares = tuple(self._share(state, tenant) for tenant in state.tenants)
        self._means = _means(state, self._dtype)
        self._gauges = _gauges(state, self.device, self._tdp_watts)

    def _share(self, state: CardState, tenant: Tenant) -> Share:
        declares = state.declared_mfu is not None and state.resident
        held = tenant.bucket is not Bucket.FREE
        return Share(
            bucket=tenant.bucket,
            weight=tenant.weight,
            job=tenant.job,
            team=tenant.team,
            workload_class=tenant.workload_class,
            phase="steady" if tenant.workload_class and held else None,
            dtype=self._dtype if declares and held else None,
            convention="causal_half" if declares and held else None,
            source="scenario",
            rogue=state.state == "rogue",
            resident=state.resident and (held or state.state == "rogue"),
        )


class NodePlayer:
    """One simulated node: its cards, read together, and the agent's fold of the readings."""

    def __init__(
        self,
        scenario: Scenario,
        cluster: Cluster,
        node: int,
        *,
        start_unix_ms: int,
        make_fold: Callable[[], Fold],
    ) -> None:
        self.name = cluster.node_name(node)
        self._start_unix_ms = start_unix_ms
        self._interval_ms = scenario.interval_ms
        self._end_ms = scenario.duration_ms
        self._make_fold = make_fold
        self._cards = [
            CardPlayer(cluster, node, card, scenario.seed) for card in range(cluster.cards_per_node)
        ]
        self._edges_ms = sorted({s.start_ms for c in self._cards for s in c.segments}, reverse=True)
        self._xids = sorted(
            (xid for xid in cluster.xids if xid.node == node), key=lambda xid: -xid.at_ms
        )
        self._edges_ms.pop()  # the first is the start
        self._now_ms = 0
        self._fold = make_fold()
        self._open(0)

    @property
    def next_ms(self) -> int | None:
        """When the node is read next, since the scenario's start; None when all is played."""
        if self._now_ms >= self._end_ms:
            return None
        now_unix_ms = self._start_unix_ms + self._now_ms
        boundary = now_unix_ms - now_unix_ms % self._interval_ms + self._interval_ms
        following = min(boundary - self._start_unix_ms, self._end_ms)
        return min(following, self._edges_ms[-1]) if self._edges_ms else following

    def step(self) -> Played:
        """Read the node at `next_ms`.

        Raises:
            RuntimeError: all is played.
        """
        at_ms = self.next_ms
        if at_ms is None:
            raise RuntimeError("the scenario is over")
        passed_ms, self._now_ms = at_ms - self._now_ms, at_ms
        rows: list[IntervalRow] = []
        unix_ms, boottime_ns = self._moment(at_ms)
        for card in self._cards:
            values = card.advance(at_ms, passed_ms)
            if card.state.sent:
                reading = card.reading(values, unix_ms=unix_ms, boottime_ns=boottime_ns)
                rows += self._fold.add(reading, card.shares())
        events = self._events(at_ms)
        if self._edges_ms and self._edges_ms[-1] == at_ms:
            self._edges_ms.pop()
            rows += self._fold.close(unix_ms)
            self._fold = self._make_fold()
            for card in self._cards:
                card.turns(at_ms)
            self._open(at_ms)
        if at_ms == self._end_ms:
            rows += self._fold.close(unix_ms)
        return Played(at_ms=at_ms, rows=rows, events=events)

    def stop(self, at_ms: int) -> Played:
        """Read the node for the last time, before the scenario's end; close its rows."""
        self._end_ms = max(self._now_ms, at_ms)
        played = Played(at_ms=self._now_ms, rows=[], events=[])
        while self.next_ms is not None:
            step = self.step()
            played = Played(
                at_ms=step.at_ms,
                rows=played.rows + step.rows,
                events=played.events + step.events,
            )
        played.rows.extend(self._fold.close(self._start_unix_ms + self._now_ms))
        return played

    def _open(self, at_ms: int) -> None:
        """The reading that opens the rows of every card whose node speaks from now on."""
        unix_ms, boottime_ns = self._moment(at_ms)
        for card in self._cards:
            if not card.state.sent:
                continue
            values = card.advance(at_ms, 0)
            reading = card.reading(values, unix_ms=unix_ms, boottime_ns=boottime_ns)
            self._fold.add(reading, card.shares())

    def _events(self, at_ms: int) -> list[pb.Event]:
        """Xids since the last reading, of cards of which the node speaks."""
        events = []
        while self._xids and self._xids[-1].at_ms <= at_ms:
            xid = self._xids.pop()
            card = self._cards[xid.card]
            if card.state.sent:
                events.append(
                    pb.Event(
                        slot=card.device.slot,
                        time_unix_ms=self._start_unix_ms + xid.at_ms,
                        kind="xid",
                        code=xid.code,
                        severity="fatal" if xid.code in FATAL_XIDS else "warning",
                        text=_XID_TEXTS.get(xid.code, ""),
                    )
                )
        return events

    def _moment(self, at_ms: int) -> tuple[int, int]:
        return self._start_unix_ms + at_ms, (at_ms + _BOOTED_BEFORE_MS) * 1_000_000


def _means(state: CardState, dtype: str) -> dict[str, float]:
    """The noisy part of a reading without its noise."""
    tensor = state.tensor_active
    means = {
        "gpu_utilization_ratio": 1.0 if state.sm_active > 0.0 else 0.0,
        "memory_utilization_ratio": state.dram_active,
        "sm_active_ratio": state.sm_active,
        "tensor_active_ratio": tensor,
        "dfma_active_ratio": tensor if dtype == "fp64_tensor" else 0.0,
        "hmma_active_ratio": tensor if dtype in _HALF_TENSOR else 0.0,
        "imma_active_ratio": tensor if dtype in ("int8", "int4") else 0.0,
        "dram_active_ratio": state.dram_active,
        "fp64_active_ratio": 0.0,
        "fp32_active_ratio": 0.0,
        "fp16_active_ratio": 0.0,
        "pcie_tx_bytes_per_second": 1e9 * state.sm_active,
        "pcie_rx_bytes_per_second": 2e9 * state.sm_active,
        "nvlink_tx_bytes_per_second": 1e11 * tensor,
        "nvlink_rx_bytes_per_second": 1e11 * tensor,
    }
    if state.sm_clock_mhz is not None:
        means["sm_clock_mhz"] = state.sm_clock_mhz
    if state.power_watts is not None:
        means["power_watts"] = state.power_watts
    return means


def _noisy(means: dict[str, float], sd: float, source: random.Random) -> dict[str, float]:
    """The means, each off by its own draw; ratios stay within 0 … 1 and nothing falls below 0."""
    noisy = {}
    for name, value in means.items():
        drawn = max(0.0, value * (1.0 + sd * source.gauss(0.0, 1.0))) if value else 0.0
        noisy[name] = min(1.0, drawn) if name.endswith("_ratio") else drawn
    return noisy


def _gauges(state: CardState, of: Device, tdp_watts: float | None) -> dict[str, Value]:
    """The part of a reading that stands still while the state does."""
    load = 0.0
    if tdp_watts is not None and state.power_watts is not None:
        load = min(1.0, state.power_watts / tdp_watts)
    gauges: dict[str, Value] = {
        "temperature_celsius": 30.0 + 40.0 * load,
        "memory_temperature_celsius": 38.0 + 45.0 * load,
        "ecc_corrected_total": 0.0,
        "ecc_uncorrected_total": 0.0,
        "power_limit_watts": Absence.NOT_SUPPORTED if tdp_watts is None else tdp_watts,
        "pcie_link_generation": 5.0,
        "pcie_link_width": 16.0,
    }
    if state.power_watts is None:
        gauges["power_watts"] = gauges["energy_joules_total"] = Absence.NOT_SUPPORTED
    memory = _MEMORY.search(of.sku or "")
    if memory is not None:
        total = float(memory[1]) * 2**30
        gauges["memory_total_bytes"] = total
        gauges["memory_used_bytes"] = total * (0.85 if state.resident else 0.01)
    return gauges

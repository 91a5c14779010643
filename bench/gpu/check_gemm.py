"""The agent's own path, from driver to row, beside products of known FLOPs: one check per dtype."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from gpu.check_driver import Findings
from gpu.load import SHAPES, Load, Phase, PhaseLog, load
from gpu.result import Context, Finding, NotSupportedHere
from gpu.sampler import PERCENT_METRICS, Sample, Sampler, opened
from gpu.tolerances import TOLERANCES, judge

from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import Reading, Share
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_kernels import peaks
from flopwatch_proto.rows import Absence, Bucket

FULL_DTYPES: Final = ("bf16", "fp8", "fp16")
"""Measured with every shape; the others with one, for their counters."""

_PIPES: Final = {
    "bf16": (7,),
    "fp16": (7,),
    "tf32": (7,),
    "fp8": (5,),  # which sub-pipe is disputed: that any tensor pipe moves is all that is expected
    "int8": (9,),
    "fp64": (6, 8),
}
"""dtype → metrics of which one is expected to move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long and how often. Attributes: settle_seconds: of each phase that is not looked at."""

    phase_seconds: float
    settle_seconds: float
    period_seconds: float


_FULL: Final = Pace(phase_seconds=5.0, settle_seconds=1.0, period_seconds=0.5)
_SHORT: Final = Pace(phase_seconds=6.5, settle_seconds=1.5, period_seconds=0.5)
_QUICK: Final = Pace(phase_seconds=1.8, settle_seconds=0.3, period_seconds=0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """What this process's own samples said. Attributes: means: metric name → share active;
    span_ns: boottime of the pair."""

    means: Mapping[str, float | None]
    span_ns: tuple[int, int]


def gemm(context: Context, dtype: str) -> Findings:
    """Compare the row's FLOPs with the known ones.

    Raises:
        NotSupportedHere: the card's datasheet has no such dtype.
    """
    found = peaks.find(context.the_card.sku)
    key = "fp64_tensor" if dtype == "fp64" else dtype
    if found is not None and key not in found.peaks:
        raise NotSupportedHere(f"{found.name} has no {key}")
    pace = _QUICK if context.quick else _FULL if dtype in FULL_DTYPES else _SHORT
    shapes = SHAPES if dtype in FULL_DTYPES else SHAPES[:1]
    phases = [Phase(dtype=dtype, shape=shape, seconds=pace.phase_seconds) for shape in shapes]
    with (
        load(context, phases) as running,
        opened(context.index) as (library, listed),
    ):
        watcher = _Watcher(context, running, Sampler(library, listed.handle), pace)
        asyncio.run(watcher.watch())
        running.wait()
        parts = [
            _phase(
                context, key, log, watcher.readings, watcher.raw.get(number), pace.settle_seconds
            )
            for number, log in enumerate(running.logs)
        ]
    findings = tuple(finding for part, _ in parts for finding in part)
    values = {"phases": [value for _, value in parts]}
    return (*findings, *_pipes(dtype, [*watcher.raw.values()])), values


class _Watcher:
    """Reads the card as the agent does while a load runs, and takes one raw pair per phase.

    Attributes:
        readings: of the card, in order.
        raw: number of the phase → the pair's means.
    """

    def __init__(self, context: Context, running: Load, sampler: Sampler, pace: Pace) -> None:
        self.readings: list[Reading] = []
        self.raw: dict[int, Raw] = {}
        self._slot = context.the_card.slot
        self._running = running
        self._sampler = sampler
        self._pace = pace
        self._begun: dict[int, Sample] = {}

    async def watch(self) -> None:
        """Read until the load has ended."""
        source = NvmlSource()
        await source.start()
        try:
            while self._running.running:
                report = await source.read()
                self.readings += [r for r in report.readings if r.device.slot == self._slot]
                self._sample()
                await asyncio.sleep(self._pace.period_seconds)
        finally:
            await source.close()

    def _sample(self) -> None:
        """Begin the raw pair of a phase that has settled, end it near the phase's end."""
        for number, log in enumerate(self._running.logs):
            span = log.span_ns
            if span is None or log.ended or number in self.raw:
                continue
            busy = (span[1] - span[0]) / 1e9
            if number not in self._begun and busy >= self._pace.settle_seconds:
                self._begun[number] = self._sampler.take()
            elif number in self._begun and busy >= 0.75 * self._pace.phase_seconds:
                self._end(number)

    def _end(self, number: int) -> None:
        older, newer = self._begun[number], self._sampler.take()
        answers = self._sampler.metrics(older, newer, PERCENT_METRICS)
        self.raw[number] = Raw(
            means={
                f"{metric} {PERCENT_METRICS[metric]}": None if value is None else value / 100
                for metric, (_, value) in answers.items()
            },
            span_ns=(older.boot_ns, newer.boot_ns),
        )


def _phase(
    context: Context,
    key: str,
    log: PhaseLog,
    seen: Sequence[Reading],
    raw: Raw | None,
    settle_seconds: float,
) -> tuple[tuple[Finding, ...], dict[str, Any]]:
    """Return findings and values of one shape."""
    m, n, k = log.phase.shape
    name = f"{log.phase.dtype} {m}x{n}x{k}"
    values: dict[str, Any] = {"dtype": log.phase.dtype, "shape": log.phase.shape}
    span = log.span_ns
    if log.error is not None or span is None:
        text = log.error or "no load"
        failed = Finding(name=f"{name}: load", seen=text, expected="runs", agrees=False)
        return (failed,), {**values, "error": text}
    start_ns = span[0] + round(settle_seconds * 1e9)
    readings = [r for r in seen if start_ns <= r.boottime_ns <= span[1] and r.alive]
    if len(readings) < 3:
        few = Finding(name=f"{name}: readings", seen=str(len(readings)), expected="3", agrees=False)
        return (few,), values
    known = log.flops_between(readings[0].boottime_ns, readings[-1].boottime_ns)
    totals = _totals(readings, key)
    values |= _rates(log, readings, known, totals)
    values["raw_means"] = None if raw is None else dict(raw.means)
    clock, highest = values["sm_clock_mhz"], context.the_card.clock_mhz_max
    findings = [
        judge(f"{name}: kappa (known / counted FLOPs)", "kappa", values["kappa"]),
        judge(f"{name}: counted - known, of the datasheet", "points", _points(values)),
        judge(f"{name}: SM active", "sm_active", values["sm_active_ratio"]),
        judge(f"{name}: SM clock", "clock", clock / highest if clock and highest else None),
        judge(f"{name}: energy / ∫ power", "energy", values["energy_over_power"]),
        judge(f"{name}: two clients", "two_clients", _two_clients(readings, raw)),
    ]
    if values["achieved_by_events_flops"] is not None:
        ratio = values["achieved_by_events_flops"] / values["achieved_by_host_flops"]
        findings.append(judge(f"{name}: events / host clock", "events", ratio))
    return tuple(findings), values


def _totals(readings: Sequence[Reading], dtype: str) -> dict[str, float]:
    """Return the sums of the rows that the agent would make of these readings."""
    fold = Fold(dtype=dtype)
    share = Share(bucket=Bucket.ACTIVE, job="verify", dtype=dtype, source="processes")
    rows = [row for reading in readings for row in fold.add(reading, (share,))]
    rows += fold.close(readings[-1].taken_unix_ms)
    totals: dict[str, float] = {}
    for row in rows:
        numbers = {n: v for n, v in row.values.items() if not isinstance(v, Absence)}
        for column, amount in (*numbers.items(), *row.card_times.items()):
            totals[column] = totals.get(column, 0.0) + amount
    return totals


def _rates(
    log: PhaseLog, readings: Sequence[Reading], known: float | None, totals: Mapping[str, float]
) -> dict[str, Any]:
    seconds = (readings[-1].boottime_ns - readings[0].boottime_ns) / 1e9
    counted, capacity = totals.get("u_flops"), totals.get("capacity_flops")
    card_ms = totals.get("card_ms")
    power = _integral(readings, "power_watts")
    energy = totals.get("energy_joules")
    return {
        "readings": len(readings),
        "seconds": seconds,
        "achieved_flops": known / seconds if known else None,
        "achieved_by_host_flops": log.rate_by_host(),
        "achieved_by_events_flops": log.rate_by_events(),
        "counted_flops": counted / seconds if counted else None,
        "kappa": known / counted if known and counted else None,
        "hfu": counted / capacity if counted and capacity else None,
        "achieved_of_datasheet": known / capacity if known and capacity else None,
        **{
            f"{name}_ratio": totals[f"{name}_ms"] / card_ms
            for name in _ACTIVITIES
            if card_ms and f"{name}_ms" in totals
        },
        "sm_active_ratio": totals["sm_active_ms"] / card_ms
        if card_ms and "sm_active_ms" in totals
        else None,
        "counted_ratio": totals.get("counted_ms", 0.0) / card_ms if card_ms else None,
        "sm_clock_mhz": _mean(_numbers(readings[1:], "sm_clock_mhz")),
        "power_watts": power / seconds if power else None,
        "energy_joules": energy,
        "energy_over_power": energy / power if energy and power else None,
        "throttled_power_ms": totals.get("throttled_power_ms"),
        "temperature_celsius": max(_numbers(readings, "temperature_celsius"), default=None),
    }


def _points(values: Mapping[str, Any]) -> float | None:
    counted, known = values["hfu"], values["achieved_of_datasheet"]
    return None if counted is None or known is None else float(counted - known)


_ACTIVITIES: Final = (
    "tensor_active",
    "hmma_active",
    "imma_active",
    "dfma_active",
    "fp64_active",
    "fp32_active",
    "fp16_active",
    "dram_active",
    "gpu_utilization",
)


def _numbers(readings: Iterable[Reading], name: str) -> list[float]:
    values = [reading.values.get(name, Absence.MISSING) for reading in readings]
    return [value for value in values if not isinstance(value, Absence)]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _integral(readings: Sequence[Reading], name: str) -> float | None:
    """Return the integral of a gauge over the readings, by trapezoids; None where one is missing."""
    values = _numbers(readings, name)
    if len(values) != len(readings):
        return None
    return sum(
        (b.boottime_ns - a.boottime_ns) / 1e9 * (values[i] + values[i + 1]) / 2
        for i, (a, b) in enumerate(pairwise(readings))
    )


def _two_clients(readings: Sequence[Reading], raw: Raw | None) -> float | None:
    """Return the raw pair's tensor activity over the agent's, of the same seconds."""
    if raw is None or not raw.means["5 any_tensor"]:
        return None
    start_ns, end_ns = raw.span_ns
    inside = [r for r in readings if start_ns < r.boottime_ns <= end_ns]
    mean = _mean(_numbers(inside, "tensor_active_ratio"))
    return raw.means["5 any_tensor"] / mean if mean else None


def _pipes(dtype: str, raws: Sequence[Raw]) -> tuple[Finding, ...]:
    """Return which counters moved, and whether the expected ones did."""
    least = TOLERANCES["moves"].low
    highest: dict[str, float] = {}
    for raw in raws:
        for name, value in raw.means.items():
            if value is not None:
                highest[name] = max(value, highest.get(name, 0.0))
    moved = [f"{name} {value:.2f}" for name, value in highest.items() if value >= least]
    expected = [f"{metric} {PERCENT_METRICS[metric]}" for metric in _PIPES[dtype]]
    return (
        Finding(
            name=f"{dtype}: counters that move",
            seen=", ".join(moved) or "none",
            expected=" or ".join(expected),
            tolerance="moves",
            agrees=any(highest.get(name, 0.0) >= least for name in expected),
        ),
    )


def zeros(context: Context) -> Findings:
    """Multiply random numbers and zeros: the same work, another power."""
    seconds, settle = (1.2, 0.2) if context.quick else (4.5, 1.5)
    phases = [
        Phase(dtype="bf16", shape=SHAPES[0], seconds=seconds, data=data)
        for data in ("random", "zeros", "random")
    ]
    with load(context, phases) as running:
        running.wait()
        rates = [_settled(log, settle) for log in running.logs]
        errors = [log.error for log in running.logs if log.error is not None]
    if errors:
        raise RuntimeError(errors[0])
    before, middle, after = rates
    ratio = middle / ((before + after) / 2) if before and middle and after else None
    values = {"random_flops": [before, after], "zeros_flops": middle}
    return (judge("zeros / random, FLOP/s", "zeros", ratio),), values


def _settled(log: PhaseLog, settle_seconds: float) -> float | None:
    span = log.span_ns
    if span is None:
        return None
    start_ns = span[0] + round(settle_seconds * 1e9)
    flops = log.flops_between(start_ns, span[1])
    return None if flops is None else flops / ((span[1] - start_ns) / 1e9)

"""The counters themselves, under a steady load: cycle counters and their scale, and short intervals."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import pynvml
from gpu.check_driver import Findings
from gpu.load import SHAPES, Phase, PhaseLog, load
from gpu.result import Context, Finding
from gpu.sampler import Sample, Sampler, code_text, opened
from gpu.tolerances import judge

from flopwatch_agent.driver.card import Card
from flopwatch_agent.driver.cycles import CHECKS_FAILED_MAX
from flopwatch_agent.driver.inventory import Listed
from flopwatch_agent.driver.library import Library
from flopwatch_agent.driver.processes import ComputeProcesses
from flopwatch_kernels import peaks

CYCLE_METRICS: Final = {
    248: "sm_cycles_elapsed",
    249: "sm_cycles_active",
    250: "mma_cycles_active",
    251: "dmma_cycles_active",
    252: "hmma_cycles_active",
    253: "imma_cycles_active",
    254: "dfma_cycles_active",
    255: "pcie_tx_bytes",
    256: "pcie_rx_bytes",
    257: "integer_cycles_active",
    258: "fp64_cycles_active",
    259: "fp32_cycles_active",
    260: "fp16_cycles_active",
}
CYCLES_SINCE_DRIVER: Final = 595
"""The branch whose binding names them first."""

INTERVALS_MS: Final = (50, 100, 200, 1000)
_READ_SECONDS: Final = 0.25
_REFERENCE_MS: Final = 1000
_JUDGED_FROM_MS: Final = 200  # the shortest that the agent ever uses

Answers = Mapping[int, tuple[int, float | None]]


def cycles(context: Context) -> Findings:
    """Look which cycle counters there are, what they count, and whether they give the known FLOPs."""
    pause = 0.5 if context.quick else 2.5
    phase = Phase(dtype="bf16", shape=SHAPES[0], seconds=60.0)
    with (
        load(context, [phase]) as running,
        opened(context.index) as (library, listed),
    ):
        log = running.wait_for_marks(0, pause)
        sampler = Sampler(library, listed.handle)
        first = sampler.take()
        time.sleep(pause)
        middle = sampler.take()
        mhz = _mean_clock_mhz(library, listed.handle, pause)
        last = sampler.take()
        wanted = (*CYCLE_METRICS, 5)
        early, late = (sampler.metrics(*p, wanted) for p in ((first, middle), (middle, last)))
        whole = sampler.metrics(first, last, wanted)
        method = _agents_method(library, listed)
        running.wait_for_marks(0, (last.boot_ns - log.marks[0][0]) / 1e9 + 0.2)
        known = log.flops_between(middle.boot_ns, last.boot_ns)
    kinds = {m: counter_kind(early[m][1], late[m][1], whole[m][1]) for m in CYCLE_METRICS}
    values: dict[str, Any] = {
        "codes": {f"{m} {n}": code_text(late[m][0]) for m, n in CYCLE_METRICS.items()},
        "kinds": {f"{m} {n}": kinds[m] for m, n in CYCLE_METRICS.items()},
        "values": {str(m): [early[m][1], late[m][1], whole[m][1]] for m in CYCLE_METRICS},
        "sm_clock_mhz": mhz,
    }
    values["agents_method"] = method
    present = [m for m in CYCLE_METRICS if late[m][0] == 0]
    due = _branch(context.the_card.driver) >= CYCLES_SINCE_DRIVER
    presence = Finding(
        name="cycle counters 248-260",
        seen=f"{len(present)} of {len(CYCLE_METRICS)}: {', '.join(map(str, present)) or 'none'}",
        expected=f"248 and 250 from driver {CYCLES_SINCE_DRIVER} on",
        agrees={248, 250} <= set(present) if due else None,
    )
    if not {248, 250} <= set(present):
        return (presence,), values
    estimator = Finding(
        name="the agent's own estimator",
        seen=method,
        expected="cycle_counters",
        agrees=method == "cycle_counters",
    )
    seconds = (last.boot_ns - middle.boot_ns) / 1e9
    moved = {m: _moved(kinds[m], early[m][1], late[m][1]) for m in present}
    return (
        presence,
        estimator,
        *_scaled(context, values, moved, late[5][1], known, seconds, mhz),
    ), values


def _agents_method(library: Library, listed: Listed) -> str:
    """Return where the agent takes activity from after a few readings, and why not from cycles."""
    card = Card(library, listed, ComputeProcesses(library), first_read=0)
    try:
        for _ in range(CHECKS_FAILED_MAX + 3):
            reading = card.read()
            time.sleep(_READ_SECONDS)
    finally:
        card.close()
    return reading.method if reading.disagreement is None else reading.disagreement


def _scaled(
    context: Context,
    values: dict[str, Any],
    moved: Mapping[int, float | None],
    tensor_percent: float | None,
    known: float | None,
    seconds: float,
    mhz: float | None,
) -> tuple[Finding, ...]:
    """Judge the scale of the counters, their ratio, and the FLOPs they give; note them in `values`."""
    card = context.the_card
    elapsed, active = moved[248], moved[250]
    scale = elapsed / (seconds * mhz * 1e6) if elapsed and mhz else None
    of_all = scale is not None and card.sm_count is not None and scale > card.sm_count / 2
    per = float(card.sm_count or 1) if of_all else 1.0
    ratio = (
        active / elapsed / (tensor_percent / 100) if active and elapsed and tensor_percent else None
    )
    found = peaks.find(card.sku)
    peak = None if found is None else found.peaks.get("bf16")
    flops = None
    if active and card.sm_count and peak is not None and peak.flop_per_clock_per_sm:
        flops = active / per * card.sm_count * peak.flop_per_clock_per_sm
    values |= {
        "moved": {str(m): amount for m, amount in moved.items()},
        "scale_k": scale,
        "summed_over_sms": of_all,
        "counted_flops": flops,
        "known_flops": known,
    }
    return (
        judge(
            "elapsed cycles / (time × clock × SMs counted)", "cycle_scale", scale and scale / per
        ),
        judge("250/248 against metric 5", "cycle_ratio", ratio),
        judge("kappa from cycles, bf16", "kappa", known / flops if known and flops else None),
    )


def counter_kind(early: float | None, late: float | None, whole: float | None) -> str:
    """Return whether a metric of three pairs (a,b), (b,c), (a,c) is ``cumulative`` or ``delta``.

    A cumulative one answers where it stood at the newer sample: the same for (b,c) and (a,c).
    """
    if early is None or late is None or whole is None:
        return "absent"
    if early == late == whole == 0:
        return "zero"
    if abs(whole - late) <= 1e-9 * abs(late) and late >= early:
        return "cumulative"
    if abs(whole - early - late) <= 0.02 * abs(whole):
        return "delta"
    return "unknown"


def _moved(kind: str, early: float | None, late: float | None) -> float | None:
    if early is None or late is None:
        return None
    return late - early if kind == "cumulative" else late if kind in ("delta", "zero") else None


def _mean_clock_mhz(library: Library, handle: Any, seconds: float) -> float | None:
    seen = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        seen.append(library.number("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM))
        time.sleep(0.05)
    known = [mhz for mhz in seen if mhz is not None]
    return statistics.fmean(known) if known else None


def _branch(driver: str) -> int:
    major = driver.partition(".")[0]
    return int(major) if major.isdigit() else 0


def intervals(context: Context) -> Findings:
    """Sample at several intervals and compare what metric 5 says."""
    counts = dict(
        zip(INTERVALS_MS, (6, 6, 6, 2) if context.quick else (40, 40, 30, 6), strict=True)
    )
    phase = Phase(dtype="bf16", shape=SHAPES[0], seconds=60.0)
    with (
        load(context, [phase]) as running,
        opened(context.index) as (library, listed),
    ):
        running.wait_for_marks(0, 0.5 if context.quick else 3.0)
        sampler = Sampler(library, listed.handle)
        found = {ms: _at_interval(sampler, ms, counts[ms]) for ms in INTERVALS_MS}
        _still_busy(running.logs[0])
    reference = found[_REFERENCE_MS]["mean"]
    findings = tuple(
        judge(
            f"metric 5 at {ms} ms against {_REFERENCE_MS} ms",
            "interval",
            found[ms]["mean"] / reference if reference and found[ms]["mean"] is not None else None,
            judged=ms >= _JUDGED_FROM_MS,
        )
        for ms in INTERVALS_MS
        if ms != _REFERENCE_MS
    )
    return findings, {f"{ms} ms": what for ms, what in found.items()}


def _at_interval(sampler: Sampler, interval_ms: int, count: int) -> dict[str, Any]:
    """Return how many samples and metrics failed, and mean and spread of metric 5."""
    samples: list[Sample] = [sampler.take()]
    for _ in range(count):
        time.sleep(interval_ms / 1e3)
        samples.append(sampler.take())
    answers = [sampler.metric(*pair, 5) for pair in pairwise(samples)]
    values = [value for _, value in answers if value is not None]
    return {
        "pairs": count,
        "answered": len(values),
        "zero": sum(value == 0 for value in values),
        "codes": sorted({code_text(code) for code, _ in answers}),
        "mean": statistics.fmean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def _still_busy(log: PhaseLog) -> None:
    if log.ended or log.error is not None:
        raise RuntimeError(f"the load ended before the samples: {log.error or 'too short'}")

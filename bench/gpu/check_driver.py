"""What the driver says, how fast, and to whom: the card, a recording, latencies, an unprivileged user."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gpu.load import SHAPES, Phase, load
from gpu.result import Card, CheckResult, Context, Finding, file_part, status_of
from gpu.sampler import PERCENT_METRICS, Sampler, code_text, opened
from gpu.tolerances import judge

from flopwatch_agent.driver.calls import PROVIDERS, SM_CLOCK_NOW, Call, Field, FieldBatch
from flopwatch_agent.driver.inventory import Listed
from flopwatch_agent.driver.library import Library
from flopwatch_agent.driver.processes import ComputeProcesses
from flopwatch_agent.driver.record import record
from flopwatch_agent.sources.nvml import NvmlSource

Findings = tuple[tuple[Finding, ...], dict[str, Any]]
"""What a check returns: its findings and its values."""

NOBODY: Final = 65534
_CALL_SECONDS_MAX: Final = 0.5
_GPM_PAUSE_SECONDS: Final = 0.21
_SCRUBBED: Final = {"nvmlDeviceGetUUID": "GPU-{:08d}-0000-0000-0000-000000000000"}


def find_card(context: Context) -> Findings:
    """Name the card; its values are a `Card`."""
    with opened(context.index) as (library, listed):
        found = ComputeProcesses(library).read(listed.handle) or []
        card = Card(
            index=context.index,
            slot=listed.info.slot,
            sku=listed.info.sku or "unknown",
            uuid=listed.info.uuid or str(context.index),
            driver=library.text("nvmlSystemGetDriverVersion") or "unknown",
            sm_count=listed.info.sm_count,
            clock_mhz_max=listed.info.clock_mhz_max,
            in_use_by=tuple(process.pid for process in found),
        )
    idle = Finding(
        name="compute processes on the card",
        seen=", ".join(map(str, card.in_use_by)) or "none",
        expected="none",
        agrees=not card.in_use_by,
    )
    return (idle,), asdict(card)


def record_driver(context: Context) -> Findings:
    """Write every call's answer to a file that the fake driver can replay."""
    card = context.the_card
    with opened(context.index) as (library, _):
        recording = record(library)
    for index, device in enumerate(recording["devices"]):
        _scrub(device["calls"], index)
    prefix = "" if context.fake is None else "fake-"
    name = f"{prefix}nvml-{file_part(card.sku)}-{file_part(card.driver)}.json"
    text = json.dumps(recording, indent=1, default=str) + "\n"
    Path(context.out, name).write_text(text, encoding="utf-8")
    calls = recording["devices"][context.index]["calls"]
    codes = {
        f"{symbol}{tuple(a['args']) or ''}": code_text(a["return"])
        for symbol, answers in calls.items()
        for a in answers
        if a["return"]
    }
    fields = calls["nvmlDeviceGetFieldValues"][0]["value"] or []
    refused = {str(f["fieldId"]): code_text(f["nvmlReturn"]) for f in fields if f["nvmlReturn"]}
    answered = [s for s, answers in calls.items() if any(a["return"] == 0 for a in answers)]
    must = {"nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetTemperature"}
    findings = (
        Finding(
            name="calls that answered",
            seen=f"{len(answered)} of {len(calls)}",
            expected="name, UUID and temperature at least",
            agrees=must <= set(answered),
        ),
        _replayed(recording),
    )
    return findings, {"file": name, "refused_calls": codes, "refused_fields": refused}


def _scrub(calls: dict[str, list[dict[str, Any]]], index: int) -> None:
    """Take the names of one piece of hardware out of a file that is to be published."""
    for symbol, value in {**_SCRUBBED, "nvmlDeviceGetSerial": "{:013d}"}.items():
        for answer in calls.get(symbol, []):
            if answer["value"] is not None:
                answer["value"] = value.format(index)


def _replayed(recording: dict[str, Any]) -> Finding:
    tests = str(Path(__file__).resolve().parents[2] / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    from fakenvml.recording import replay

    try:
        lines = replay(recording)
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        said, agrees = f"{type(exc).__name__}: {exc}", False
    else:
        unknown = sum(line.startswith("#") for line in lines)
        said, agrees = f"{len(lines)} lines, {unknown} answers without a line", True
    return Finding(
        name="the fake driver can replay it", seen=said, expected="a script", agrees=agrees
    )


def latency(context: Context) -> Findings:
    """Time a whole reading of the agent's driver child, and each call, under load."""
    cycles, seconds = (8, 6.0) if context.quick else (40, 60.0)
    phase = Phase(dtype="bf16", shape=SHAPES[0], seconds=seconds + 30)
    with load(context, [phase]) as running:
        running.wait_for_marks(0, 0.5)
        cycle_ms = asyncio.run(_cycles_ms(cycles))
        with opened(context.index) as (library, listed):
            calls = _calls_us(library, listed, 10 if context.quick else 50)
            calls |= _gpm_us(library, listed, 4 if context.quick else 20)
    cycle = _spread(cycle_ms)
    values = {
        "cycle_ms": cycle,
        "calls_us": {name: _spread(found) for name, found in calls.items()},
    }
    judged, p99 = context.fake is None, cycle["p99"]
    return (judge("read cycle of one card, p99", "cycle_latency", p99, judged=judged),), values


async def _cycles_ms(count: int) -> list[float]:
    source, found = NvmlSource(), []
    await source.start()
    try:
        for _ in range(count):
            began = time.perf_counter()
            await source.read()
            found.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(0.25)
    finally:
        await source.close()
    return found


def _calls_us(library: Library, listed: Listed, count: int) -> dict[str, list[float]]:
    handle = listed.handle
    fields = FieldBatch(tuple(p for p in PROVIDERS if isinstance(p, Field)))
    processes = ComputeProcesses(library)
    asked: dict[str, Callable[[], object]] = {
        "nvmlDeviceGetFieldValues (all)": lambda: fields.read(library, handle),
        "compute processes": lambda: processes.read(handle),
    }
    for call in (SM_CLOCK_NOW, *(p for p in PROVIDERS if isinstance(p, Call))):
        name = f"{call.symbol}{tuple(call.args) or ''}"
        asked[name] = lambda call=call: call.run(library, handle)  # type: ignore[misc]
    found: dict[str, list[float]] = {}
    for name, ask in asked.items():
        until = time.perf_counter() + _CALL_SECONDS_MAX
        times = found.setdefault(name, [])
        while len(times) < count and (len(times) < 2 or time.perf_counter() < until):
            began = time.perf_counter_ns()
            ask()
            times.append((time.perf_counter_ns() - began) / 1e3)
    return found


def _gpm_us(library: Library, listed: Listed, count: int) -> dict[str, list[float]]:
    sampler = Sampler(library, listed.handle)
    older = sampler.take()
    taken, asked = [], []
    for _ in range(count):
        time.sleep(_GPM_PAUSE_SECONDS)
        newer = sampler.take()
        taken.append(newer.latency_us)
        began = time.perf_counter_ns()
        sampler.metric(older, newer, 5)
        asked.append((time.perf_counter_ns() - began) / 1e3)
        older = newer
    return {"nvmlGpmSampleGet": taken, "nvmlGpmMetricsGet (one metric)": asked}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return count, p50, p99 and maximum; p99 of fewer than a hundred is near their maximum."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"count": len(values), "p50": cuts[49], "p99": cuts[98], "max": max(values)}


def as_nobody(context: Context) -> Findings:
    """Give up every privilege, for good, and then open the driver and sample."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with opened(context.index) as (library, listed):
        sampler = Sampler(library, listed.handle)
        older = sampler.take()
        time.sleep(1.0)
        newer = sampler.take()
        answers = sampler.metrics(older, newer, PERCENT_METRICS)
    sample, tensor = code_text(newer.code), code_text(answers[5][0])
    findings = (
        Finding(
            name="GPM sample",
            seen=f"{sample} as uid {os.geteuid()}",
            expected="ok",
            agrees=not newer.code,
        ),
        Finding(name="GPM metric 5", seen=tensor, expected="ok", agrees=not answers[5][0]),
    )
    codes = {str(metric): code_text(code) for metric, (code, _) in answers.items()}
    return findings, {"uid": os.geteuid(), "codes": codes}


def result_of(name: str, seconds: float, found: Findings) -> CheckResult:
    """Return the result of a check that ran to its end."""
    findings, values = found
    return CheckResult(
        name=name, status=status_of(findings), seconds=seconds, findings=findings, values=values
    )

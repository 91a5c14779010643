"""What reaching a ceiling and watching it costs: the probe against the loop, and the agent's own cost."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

from gpu.check_driver import Findings
from gpu.check_tensor import told
from gpu.load_child import die_with_parent
from gpu.result import Context
from gpu.tolerances import judge
from measure import Cost, costs

from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import Share
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_kernels.messages import ProbeResult
from flopwatch_kernels.probe import ProbeLimits, run_probe
from flopwatch_proto.rows import Bucket

_AGENT_MODULES: Final = ("grpc", "prometheus_client", "sdnotify")
_NOBODY_LISTENS: Final = "127.0.0.1:9"


def probe(context: Context) -> Findings:
    """Run the probe as a burst and sustained, and compare with the loop and the datasheet."""
    real = context.fake is None
    device, dtype = (f"cuda:{context.the_card.uuid}", "bf16") if real else ("cpu", "fp32")
    limits = ProbeLimits(wall_seconds=60.0)
    burst = run_probe(device=device, dtype=dtype, limits=limits, threads=None if real else 1)
    results = {"burst": burst}
    if real and not context.quick:
        results["sustained"] = run_probe(device=device, dtype=dtype, sustained=True, limits=limits)
    steady = results.get("sustained", burst)
    loop = _loop_flops(context, steady) if real else None
    findings = (
        judge(
            "probe's median / the loop's FLOP/s",
            "probe_loop",
            steady.median_flops / loop if loop and steady.median_flops else None,
            judged=loop is not None and not context.quick,
        ),
        judge("probe's median / datasheet", "probe_datasheet", steady.of_datasheet, judged=real),
    )
    return findings, {name: told(result) for name, result in results.items()} | {"loop": loop}


def _loop_flops(context: Context, result: ProbeResult) -> float | None:
    """Return the loop's rate with the probe's shape, or else its best with any."""
    phases = context.earlier.get("gemm-bf16", {}).get("phases", [])
    rates = {tuple(p["shape"]): p.get("achieved_by_host_flops") for p in phases}
    known = [rate for rate in rates.values() if rate]
    return rates.get(tuple(result.shape or ())) or max(known, default=None)


def agent_cost(context: Context) -> Findings:
    """Watch an agent at 1 Hz for a while: CPU time and memory of it and its driver child."""
    settle, seconds = (1.5, 1.5) if context.quick else (6.0, 20.0)
    if lacking := missing_modules():
        what = f"source and fold alone: no {', '.join(lacking)}"
        found = asyncio.run(_source_alone(settle, seconds))
    else:
        what = "the whole agent"
        with running_agent(settle) as pid:
            found = costs(pid, seconds)
    cpu = sum(cost.cpu_percent for cost in found.values())
    rss = sum(cost.rss_mib for cost in found.values())
    judged = context.fake is None
    findings = (
        judge(f"CPU, {what}", "agent_cpu", cpu, judged=judged),
        # The process of this check has more loaded than an agent has.
        judge(f"memory, {what}", "agent_rss", rss, judged=judged and not lacking),
    )
    return findings, {"what": what, "processes": [asdict(cost) for cost in found.values()]}


def missing_modules() -> list[str]:
    """Return the modules that the whole agent needs and this interpreter lacks."""
    return [name for name in _AGENT_MODULES if importlib.util.find_spec(name) is None]


@contextmanager
def running_agent(settle: float) -> Iterator[int]:
    """Run an agent that talks to nobody; its pid, once it had `settle` seconds to begin."""
    with tempfile.TemporaryDirectory() as scratch:
        command = (
            *(sys.executable, "-m", "flopwatch_agent", "--collector", _NOBODY_LISTENS),
            *("--node", "verify", "--data", scratch, "--http", "127.0.0.1:0"),
        )
        environment = {**os.environ, "FLOPWATCH_SOCKET": f"{scratch}/jobs.sock"}
        process = subprocess.Popen(
            command, env=environment, stdout=sys.stderr.fileno(), preexec_fn=die_with_parent
        )
        try:
            time.sleep(settle)
            if process.poll() is not None:
                raise RuntimeError(f"the agent ended with code {process.returncode}")
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)


async def _source_alone(settle: float, seconds: float) -> dict[int, Cost]:
    source, fold = NvmlSource(), Fold()
    await source.start()
    watching = asyncio.create_task(_fold_readings(source, fold))
    try:
        await asyncio.sleep(settle)
        return await asyncio.to_thread(costs, os.getpid(), seconds)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await source.close()


async def _fold_readings(source: NvmlSource, fold: Fold) -> None:
    share = Share(bucket=Bucket.FREE)
    while True:
        for reading in (await source.read()).readings:
            fold.add(reading, (share,))
        await asyncio.sleep(1.0)

"""What counting a step costs the training loop, beside its peers.

.venv/bin/python bench/step.py [--calls 200000]

One process, in which the sender's thread runs, and an agent that takes its datagrams. Every call
is timed alone, so its p99 holds what the loop would feel; an empty call is timed the same way beside it.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from measure import machine, write
from prometheus_client import CollectorRegistry, Counter, Gauge
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import flopwatch

BUDGET_MICROSECONDS: Final = 20.0
_STEPS: Final = 60
_REMARKS: Final = (
    "Nanoseconds for one call; the clock's own cost is in each of them, and is all that an empty call costs.",
    "`prometheus_client`: one counter and two gauges set per step, as a loop that exports its progress does; "
    "nothing is sent by it either.",
    "`FlopCounterMode` and `torch.profiler` are switched on around one training step of a small MLP: what "
    "they add to it (median with, minus median without). They count what runs and meter.step() does not, so "
    "this is the price of counting every step live instead of once on shapes alone.",
    "Ratios are of p50, without the empty call.",
)


def timed(call: Callable[[], Any], calls: int) -> dict[str, int]:
    """Return p50, p99 and the slowest of single calls, ns."""
    clock = time.perf_counter_ns
    for _ in range(1000):
        call()
    found = []
    for _ in range(calls):
        began = clock()
        call()
        found.append(clock() - began)
    found.sort()
    return {
        "p50_ns": found[calls // 2],
        "p99_ns": found[calls * 99 // 100],
        "p99.99_ns": found[calls * 9999 // 10_000],
    }


def empty() -> None:
    """Do nothing."""


def prometheus() -> Callable[[], None]:
    """Return what counts a step in prometheus_client."""
    registry = CollectorRegistry()
    tokens = Counter("tokens", "tokens", registry=registry)
    step, mfu = (Gauge(name, name, registry=registry) for name in ("step", "mfu"))

    def count() -> None:
        tokens.inc(4096)
        step.inc()
        mfu.set(0.4)

    return count


def live() -> dict[str, float]:
    """Return what counting every step live adds to one, µs."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    inputs = torch.randn(32, 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()

    def counted() -> None:
        with FlopCounterMode(display=False):
            step()

    def profiled() -> None:
        with profile(activities=[ProfilerActivity.CPU], with_flops=True):
            step()

    found: dict[str, list[float]] = {"plain": [], "flop_counter_mode": [], "torch_profiler": []}
    for _ in range(_STEPS):
        for name, call in zip(found, (step, counted, profiled), strict=True):
            began = time.perf_counter()
            call()
            found[name].append((time.perf_counter() - began) * 1e6)
    plain = median(found["plain"][10:])
    return {name: median(times[10:]) - plain for name, times in found.items() if name != "plain"}


def measure(calls: int) -> dict[str, Any]:
    """Return all figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "jobs.sock")
        os.environ["FLOPWATCH_SOCKET"] = path
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        agent.bind(path)
        threading.Thread(target=_drain, args=(agent,), daemon=True).start()
        meter = flopwatch.meter(flops_per_token=6e9, device="cpu", start_step=0)
        baseline = timed(empty, calls)
        ours = timed(lambda: meter.step(tokens=4096.0), calls)
        with_mfu = timed(lambda: meter.step(tokens=4096.0, mfu=0.4), calls)
        theirs = timed(prometheus(), calls)
        meter.close()
    added = live()
    cost_ns = ours["p50_ns"] - baseline["p50_ns"]
    return {
        "calls": calls,
        "empty_call": baseline,
        "meter_step": ours,
        "meter_step_with_mfu": with_mfu,
        "prometheus_client": theirs,
        "p99_within_budget_of_20_us": ours["p99_ns"] <= BUDGET_MICROSECONDS * 1e3,
        "added_to_a_step_us": {name: round(value, 1) for name, value in added.items()},
        "ratio_to_meter_step": {
            "prometheus_client": round((theirs["p50_ns"] - baseline["p50_ns"]) / cost_ns, 2),
            **{name: round(value * 1e3 / cost_ns) for name, value in added.items()},
        },
    }


def _drain(agent: socket.socket) -> None:
    while True:
        agent.recv(4096)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    calls = parser.parse_args().calls
    on = machine()
    write(
        "step",
        "What counting a step costs",
        f"python bench/step.py --calls {calls}",
        on,
        measure(calls),
        _REMARKS,
    )


if __name__ == "__main__":
    main()

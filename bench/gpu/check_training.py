"""What the agent costs those it watches: a training step with it and without, turn by turn."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

from gpu.check_cost import missing_modules, running_agent
from gpu.check_driver import Findings
from gpu.result import Context, Finding, NotSupportedHere
from gpu.tolerances import judge

T95: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""Degrees of freedom → Student's t for 95 % on both sides."""

_PAIRS, _PAIRS_QUICK = 6, 2
_WINDOW_SECONDS, _WINDOW_SECONDS_QUICK = 5.0, 0.8
_SETTLE_SECONDS, _SETTLE_SECONDS_QUICK = 3.0, 0.4


class _Steps:
    """The steps of a training loop, as it tells them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._ended: list[tuple[int, float]] = []
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            boot_ns, seconds = json.loads(line)["step"]
            self._ended.append((boot_ns, seconds))

    def wait(self) -> None:
        """Wait for the first step."""
        while not self._ended:
            if self._process.poll() is not None:
                raise RuntimeError(f"the training ended with code {self._process.returncode}")
            time.sleep(0.05)

    def window(self, seconds: float) -> list[float]:
        """Return the durations of the steps that begin and end in the next seconds."""
        start_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        time.sleep(seconds)
        found = [took for at, took in tuple(self._ended) if at - took * 1e9 >= start_ns]
        if len(found) < 2:
            raise RuntimeError(f"{len(found)} steps in {seconds:g} s")
        return found


@contextmanager
def _training(context: Context) -> Iterator[_Steps]:
    real = context.fake is None
    visible = context.the_card.uuid if real else ""
    environment = {
        **os.environ,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": visible,
    }
    command = (sys.executable, "-m", "gpu.train_child", "cuda" if real else "cpu")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        steps = _Steps(process)
        steps.wait()
        yield steps
    finally:
        process.kill()
        process.wait(timeout=10)


def training(context: Context) -> Findings:
    """Train with and without the agent, in the order with, without, without, with, …"""
    if lacking := missing_modules():
        raise NotSupportedHere(f"the agent cannot run: no {', '.join(lacking)}")
    quick = context.quick
    pairs = _PAIRS_QUICK if quick else _PAIRS
    seconds = _WINDOW_SECONDS_QUICK if quick else _WINDOW_SECONDS
    settle = _SETTLE_SECONDS_QUICK if quick else _SETTLE_SECONDS
    found: list[dict[str, float]] = []
    with _training(context) as steps:
        for number in range(pairs):
            order = ("with", "without") if number % 2 == 0 else ("without", "with")
            found.append({how: _mean_step(steps, how, settle, seconds) for how in order})
    estimate, low, high = slow_down([(pair["with"], pair["without"]) for pair in found])
    judged = context.fake is None and not quick
    findings = (
        judge("slow-down of a training step, upper end of 95 %", "slow_down", high, judged=judged),
        Finding(
            name="slow-down of a training step",
            seen=f"{estimate:+.3f} % ({low:+.3f} to {high:+.3f})",
            expected="0 within the interval",
        ),
    )
    return findings, {"step_seconds": found, "slow_down_percent": [estimate, low, high]}


def _mean_step(steps: _Steps, how: str, settle: float, seconds: float) -> float:
    if how == "with":
        with running_agent(settle):
            return statistics.fmean(steps.window(seconds))
    time.sleep(settle)
    return statistics.fmean(steps.window(seconds))


def slow_down(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the slow-down in percent and its 95 % interval.

    Args:
        pairs: mean step with and without, of neighbouring windows: what drifts is in both. At least 2,
            at most 8.
    """
    logs = [math.log(with_s / without_s) for with_s, without_s in pairs]
    mean = statistics.fmean(logs)
    half = T95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    low, middle, high = (100 * math.expm1(x) for x in (mean - half, mean, mean + half))
    return middle, low, high

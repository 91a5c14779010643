"""How well a probe repeats itself, and whether it knows: sustained GEMM probes on one quiet core.

.venv/bin/python bench/repeat.py [--rounds 10]

Each round is a sustained probe and torch.utils.benchmark on the same product for as long, in processes
of their own on the same core, so that what disturbs the machine disturbs both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median
from typing import Any, Final

from measure import machine, write

from flopwatch_kernels.flops import gemm_flops
from flopwatch_kernels.messages import ProbeResult
from flopwatch_kernels.probe import run_probe

_SECONDS: Final = 10.0
_QUIET: Final = 0.01
_PEER: Final = """
import sys, torch
from torch.utils.benchmark import Timer
torch.set_num_threads(1)
m, n, k = map(int, sys.argv[1:4])
a, b = torch.randn(m, k), torch.randn(k, n)
taken = Timer("torch.mm(a, b)", globals={"torch": torch, "a": a, "b": b}, num_threads=1)
print(taken.blocked_autorange(min_run_time=float(sys.argv[4])).median)
"""
_REMARKS: Final = (
    "fp32 on one core of a virtual machine, the process bound to it; FLOP/s of the winning shape.",
    "`off`: a round's median against the median of all rounds, relative. `claimed`: the half-width of the "
    "95 % interval that the probe states with its result.",
    "`quiet`: rounds whose own claim is 1 % or better, against the median of those. The claim is about the "
    "spread within one round: that a neighbour slows the core for the whole of it is no part of it.",
    "`torch benchmark`: `Timer.blocked_autorange` of `torch.utils.benchmark`, in turn with ours.",
)


def ours() -> ProbeResult:
    """Return one sustained probe."""
    return run_probe(kind="gemm", device="cpu", dtype="fp32", sustained=True, threads=1)


def theirs(shape: tuple[int, int, int]) -> float:
    """Return FLOP/s of the same product by torch's own timer."""
    sizes = [str(size) for size in shape]
    command = (sys.executable, "-c", _PEER, *sizes, str(_SECONDS))
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return gemm_flops(*shape) / float(said)


def off(rates: list[float]) -> list[float]:
    """Return how far each rate lies from the median of all, relative."""
    middle = median(rates or [0.0])
    return [abs(rate / middle - 1) for rate in rates]


def measure(rounds: int) -> dict[str, Any]:
    """Return all figures of one run."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    probes: list[ProbeResult] = []
    peers: list[float] = []
    for number in range(1, rounds + 1):
        probes.append(ours())
        peers.append(theirs(probes[0].shape or (1, 1, 1)))
        rate, claim = probes[-1].median_flops or 0.0, probes[-1].precision or 0.0
        sys.stderr.write(f"{number} of {rounds}: {rate / 1e9:.2f} GFLOP/s +-{claim:.2%}\n")
    rates = [probe.median_flops or 0.0 for probe in probes]
    claims = [probe.precision or 0.0 for probe in probes]
    quiet = [rate for rate, claim in zip(rates, claims, strict=True) if claim <= _QUIET]
    return {
        "rounds": rounds,
        "probe": {
            "median_gflops": round(median(rates) / 1e9, 2),
            "shapes": sorted({"x".join(map(str, probe.shape or ())) for probe in probes}),
            "off_median_percent": round(100 * median(off(rates)), 2),
            "off_max_percent": round(100 * max(off(rates)), 2),
            "claimed_median_percent": round(100 * median(claims), 2),
            "claimed_max_percent": round(100 * max(claims), 2),
            "within_1_percent": sum(far <= _QUIET for far in off(rates)),
        },
        "quiet": {
            "rounds": len(quiet),
            "off_max_percent": round(100 * max(off(quiet)), 2) if quiet else None,
            "within_1_percent": sum(far <= _QUIET for far in off(quiet)),
        },
        "torch_benchmark": {
            "median_gflops": round(median(peers) / 1e9, 2),
            "off_median_percent": round(100 * median(off(peers)), 2),
            "off_max_percent": round(100 * max(off(peers)), 2),
            "within_1_percent": sum(far <= _QUIET for far in off(peers)),
        },
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    on = machine()
    write(
        "repeat",
        "How well a probe repeats itself",
        f"python bench/repeat.py --rounds {rounds}",
        on,
        measure(rounds),
        _REMARKS,
    )


if __name__ == "__main__":
    main()

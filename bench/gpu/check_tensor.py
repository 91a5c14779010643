"""Our own kernels on registers: tensor pipes and multiply-adds against the peak at the measured clock."""

from __future__ import annotations

from typing import Any

import msgspec
import pynvml
from gpu.check_driver import Findings
from gpu.result import Context, Finding, NotSupportedHere
from gpu.tolerances import judge

from flopwatch_kernels.cuda.table import FMA_DTYPES, TENSOR_DTYPES, tensor_kernel
from flopwatch_kernels.messages import ProbeResult
from flopwatch_kernels.probe import ProbeLimits, run_probe

_WALL_SECONDS = 45.0


def tensor(context: Context) -> Findings:
    """Run the tensor probe for each dtype that the card has an instruction for.

    Raises:
        NotSupportedHere: it has none that is covered.
    """
    pynvml.nvmlInit()
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(
        pynvml.nvmlDeviceGetHandleByIndex(context.index)
    )
    kernels = {dtype: tensor_kernel(dtype, (major, minor)) for dtype in TENSOR_DTYPES}
    covered = {dtype: kernel for dtype, kernel in kernels.items() if kernel is not None}
    if not covered:
        raise NotSupportedHere(f"no tensor kernel for compute capability {major}.{minor}")
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for dtype in list(covered)[: 2 if context.quick else None]:
        result = probed(context, "tensor", dtype)
        values[dtype] = told(result)
        findings += [
            judge(
                f"{dtype}: of the peak at the measured clock",
                "tensor_peak",
                result.of_peak_at_clock,
                judged=covered[dtype].is_peak and result.datasheet_flops is not None,
            ),
            exact(dtype, result),
        ]
    return tuple(findings), values


def fma(context: Context) -> Findings:
    """Run the FMA probe for both dtypes."""
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for dtype in FMA_DTYPES:
        result = probed(context, "fma", dtype)
        values[dtype] = told(result)
        findings += [
            judge(
                f"{dtype}: of the peak at the measured clock",
                "fma_peak",
                result.of_peak_at_clock,
                judged=result.datasheet_flops is not None,
            ),
            exact(dtype, result),
        ]
    return tuple(findings), values


def probed(
    context: Context, kind: str, dtype: str | None = None, memory_bytes_max: int = 4 << 30
) -> ProbeResult:
    """Return the result of a burst on the context's card."""
    limits = ProbeLimits(wall_seconds=_WALL_SECONDS, memory_bytes_max=memory_bytes_max)
    return run_probe(kind=kind, device=f"cuda:{context.the_card.uuid}", dtype=dtype, limits=limits)


def told(result: ProbeResult) -> dict[str, Any]:
    """Return what is known, without the names of one piece of hardware."""
    found: dict[str, Any] = msgspec.to_builtins(result)
    left_out = ("device", "serial", "kind", "dtype")
    return {k: v for k, v in found.items() if k not in left_out and v not in (None, [], (), {})}


def exact(what: str, result: ProbeResult) -> Finding:
    """Return whether everything that has an exact answer had it."""
    return Finding(
        name=f"{what}: bit for bit what the host computes",
        seen=result.reason or "yes",
        expected="yes",
        agrees=result.outcome == "ok",
    )

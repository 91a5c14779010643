"""The library's ceiling beside the best that others published, and the screens for corruption."""

from __future__ import annotations

from typing import Any, Final

import torch
from gpu.check_driver import Findings
from gpu.check_tensor import told
from gpu.result import Context, Finding
from gpu.tolerances import judge

from flopwatch_kernels import checksum, peaks, sdc
from flopwatch_kernels.messages import ProbeResult, ProbeSpec
from flopwatch_kernels.probe import ProbeLimits, run_probe

PUBLISHED: Final = {
    ("A100-SXM4-80GB", "bf16"): 0.869,
    ("A100-PCIe-80GB", "bf16"): 0.811,
    ("H100-SXM5", "bf16"): 0.803,
    ("GH200-96GB", "bf16"): 0.838,
    ("B200-SXM", "bf16"): 0.776,
    ("B300-SXM", "bf16"): 0.786,
    ("GB200", "bf16"): 0.729,
    ("H100-SXM5", "fp8"): 0.709,
    ("H200-SXM", "fp8"): 0.734,
    ("GH200-96GB", "fp8"): 0.776,
    ("B200-SXM", "fp8"): 0.763,
    ("GB200", "fp8"): 0.723,
}
"""(SKU of the peak table, dtype) → best product found by a search, of the dense datasheet peak.
Source: ml-engineering (stas00), table of maximum achievable matmul FLOPS, 2026-08."""

_DTYPES: Final = ("bf16", "fp8")
_SCREENS: Final = ("fp16", "fp8")
_SCREENS_OF_A_CPU: Final = ("bf16",)  # fp16 takes it seconds
_WALL_SECONDS: Final = 60.0
_WRONG_AT: Final = (200, 77)


def ceiling(context: Context) -> Findings:
    """Run the GEMM probe as a burst and compare its best shape with the best published."""
    found = peaks.find(context.the_card.sku)
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for dtype in _DTYPES[: 1 if context.fake is not None else None]:
        if found is None or dtype not in found.peaks:
            continue
        result = _probed(context, "gemm", dtype)
        values[dtype] = told(result)
        published = PUBLISHED.get((found.key, dtype))
        ratio = None
        if published is not None and result.of_datasheet is not None:
            ratio = result.of_datasheet / published
        judged = context.fake is None and published is not None
        findings.append(
            judge(f"{dtype}: median / best published", "published", ratio, judged=judged)
        )
    return tuple(findings), values


def screens(context: Context) -> Findings:
    """Screen the card, and see whether one element that was made wrong is found."""
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    dtypes = _SCREENS if context.fake is None else _SCREENS_OF_A_CPU
    for dtype in dtypes:
        result = _probed(context, "sdc", dtype)
        values[dtype] = told(result)
        findings.append(
            Finding(
                name=f"{dtype}: wrong elements",
                seen=result.reason or "none",
                expected="none",
                agrees=result.outcome == "ok",
            )
        )
    caught = sdc.measure(_spec(context, dtypes[0]), lambda message: None, _one_wrong())
    row, column = (caught.detail.get(f"wrong_0_{name}") for name in ("row", "column"))
    values["injected"] = told(caught)
    findings.append(
        Finding(
            name="one element made wrong",
            seen=f"{caught.outcome}: {caught.median_value:g}, first at ({row}, {column})",
            expected=f"corrupt: 1, first at {_WRONG_AT}",
            agrees=caught.outcome == "corrupt"
            and caught.median_value == 1
            and (row, column) == _WRONG_AT,
        )
    )
    return tuple(findings), values


def _probed(context: Context, kind: str, dtype: str) -> ProbeResult:
    """Return the result of a burst; without a card, of the processor."""
    real = context.fake is None
    return run_probe(
        kind=kind,
        device=f"cuda:{context.the_card.uuid}" if real else "cpu",
        dtype=dtype if real or kind == "sdc" else "fp32",
        threads=None if real else 1,
        limits=ProbeLimits(wall_seconds=_WALL_SECONDS),
    )


def _spec(context: Context, dtype: str) -> ProbeSpec:
    return ProbeSpec(
        kind="sdc",
        device="cpu" if context.fake else f"cuda:{context.the_card.uuid}",
        dtype=dtype,
        sustained=False,
        sustained_seconds=0.0,
        threads=None,
        niceness=0,
        memory_bytes_max=8 << 30,
        wall_seconds=_WALL_SECONDS,
    )


def _one_wrong() -> sdc.Product:
    """The library, with one element of the third exact product off by two, the least that it can be."""
    exact = 0

    def multiply(a_mk: torch.Tensor, b_kn: torch.Tensor, dtype: str) -> torch.Tensor:
        nonlocal exact
        product = sdc.library_product(a_mk, b_kn, dtype)
        if a_mk.shape[1] == checksum.INNER[dtype]:
            exact += 1
            if exact == 3:
                product[_WRONG_AT] += 2
        return product

    return multiply

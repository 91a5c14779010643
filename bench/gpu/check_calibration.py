"""The product's own calibration on the card: kappa, the line through four shapes, the map of dtypes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from gpu.check_driver import Findings
from gpu.load import Phase, load
from gpu.result import Context, Finding
from gpu.tolerances import judge

from flopwatch_agent.calibrate import calibrate
from flopwatch_agent.reading import Reading
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_kernels.calibrate import EDGES
from flopwatch_kernels.calibration import Calibration
from flopwatch_kernels.messages import Mark, ProbeResult
from flopwatch_kernels.probe import run_probe

_DTYPES: Final = ("bf16", "fp8")
_STAND_IN_SECONDS: Final = 2.0


def calibration(context: Context) -> Findings:
    """Calibrate a few dtypes as `flopwatch probe --kind calibrate` does, and tell every kappa there is."""
    dtypes = _DTYPES[:1] if context.fake is not None else _DTYPES
    found = [asyncio.run(_calibrated(context, dtype)) for dtype in dtypes]
    findings: list[Finding] = []
    for each in found:
        findings += [
            judge(f"{each.dtype}: kappa by the product's own calibration", "kappa", each.kappa),
            judge(
                f"{each.dtype}: activity at no FLOPs",
                "intercept",
                each.intercept,
                judged=each.intercept is not None,
            ),
            Finding(
                name=f"{each.dtype}: pipes that move",
                seen=", ".join(each.pipes) or "none",
                expected="any",
                agrees=bool(each.pipes),
            ),
        ]
    values: dict[str, Any] = {each.dtype: _told(each) for each in found}
    return tuple(findings), values | {"kappa of the checks before": _table(context)}


async def _calibrated(context: Context, dtype: str) -> Calibration:
    source = NvmlSource()
    await source.start()

    async def read() -> Sequence[Reading]:
        return (await source.read()).readings

    try:
        found, _ = await calibrate(
            read,
            device=context.the_card.uuid,
            dtype=dtype,
            measure=run_probe if context.fake is None else _stand_in(context),
        )
    finally:
        await source.close()
    return found


def _told(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration without the name of its piece of hardware."""
    return {
        "kappa": calibration.kappa,
        "refused": calibration.refused,
        "pipes": calibration.pipes,
        "intercept": calibration.intercept,
        "points": [
            {"shape": point.shape, "kappa": point.kappa, "active": point.active}
            for point in calibration.points
        ],
    }


def _table(context: Context) -> dict[str, float]:
    """Return kappa by dtype and shape, of the checks that ran before."""
    phases = [
        phase
        for name, values in context.earlier.items()
        if name.startswith("gemm-")
        for phase in values.get("phases", ())
    ]
    return {
        f"{phase['dtype']} {'x'.join(map(str, phase['shape']))}": phase["kappa"]
        for phase in phases
        if phase.get("kappa")
    }


def _stand_in(context: Context) -> Callable[..., ProbeResult]:
    """Return a load of the processor that tells marks at the rate of the fake driver's counters."""

    def measure(
        *, on_mark: Callable[[Mark], None], dtype: str, device: str, **_: Any
    ) -> ProbeResult:
        shape = (EDGES["cuda"][0],) * 3
        phase = Phase(dtype=dtype, shape=shape, seconds=_STAND_IN_SECONDS)
        with load(context, [phase]) as running:
            running.wait()
            [log] = running.logs
        for boot_ns, iterations in log.marks:
            on_mark(Mark(boottime_ns=boot_ns, flops=float(iterations * phase.flops), shape=shape))
        return ProbeResult(
            kind="calibrate",
            device=f"cuda:{device}",
            sku=context.the_card.sku,
            driver_version=context.the_card.driver,
            dtype=dtype,
            iterations=log.marks[-1][1],
            seconds=_STAND_IN_SECONDS,
            sustained=False,
            started_at_unix_ns=0,
        )

    return measure

"""Memory against the datasheet, PCIe against its link, and what a launch costs."""

from __future__ import annotations

from gpu.check_driver import Findings
from gpu.check_tensor import exact, probed, told
from gpu.result import Context
from gpu.tolerances import judge


def bandwidth(context: Context) -> Findings:
    """Run the bandwidth probe; the best of copy, read and write is held against the datasheet."""
    result = probed(context, "bandwidth")
    datasheet = result.detail.get("datasheet_bytes_per_second")
    rates = {"copy": result.median_value}
    rates |= {name: float(result.detail[f"{name}_bytes_per_second"]) for name in ("read", "write")}
    best = max(rate for rate in rates.values() if rate is not None)
    findings = (
        judge(
            "best of copy, read and write / datasheet",
            "bandwidth",
            best / datasheet if isinstance(datasheet, float) else None,
            judged=isinstance(datasheet, float),
        ),
        exact("copy", result),
    )
    return findings, told(result)


def transfer(context: Context) -> Findings:
    """Run the probes of PCIe and of launches."""
    size = 64 << 20 if context.quick else 4 << 30
    pcie, launch = probed(context, "pcie", memory_bytes_max=size), probed(context, "launch")
    findings = (
        judge(
            "slower direction / the link's raw rate",
            "pcie",
            pcie.of_datasheet,
            judged=context.fake is None and pcie.of_datasheet is not None,
        ),
        exact("copies", pcie),
        judge(
            "launch to known end",
            "launch",
            None if launch.median_value is None else launch.median_value * 1e6,
            judged=context.fake is None,
        ),
    )
    return findings, {"pcie": told(pcie), "launch": told(launch)}

"""Results of probes as an H100 would give them, made up."""

from __future__ import annotations

from typing import Any

from flopwatch_kernels.messages import Moment, ProbeResult, ShapeRates

UUID = "GPU-00000000-0000-4000-8000-000000000000"
H100 = "NVIDIA H100 80GB HBM3"


def result(kind: str = "gemm", dtype: str | None = "bf16", **more: Any) -> ProbeResult:
    """A result as an H100 would give it."""
    shapes = ((8192, 8192, 8192), (2048, 2048, 13312))
    said: dict[str, Any] = {
        "kind": kind,
        "device": f"cuda:{UUID}",
        "sku": H100,
        "driver_version": "595.58.03",
        "dtype": dtype,
        "iterations": 54,
        "precision": 0.004,
        "seconds": 10.0,
        "sustained": False,
        "sm_clock_mhz": 1755.0,
        "power_watts": 690.0,
        "started_at_unix_ns": 1_790_000_000_000_000_000,
    }
    if kind in ("gemm", "tensor"):
        said |= {
            "shape": shapes[0],
            "shapes": tuple(
                ShapeRates(
                    shape=shape,
                    iterations=54,
                    median_flops=798e12 - 56e12 * number,
                    p10_flops=780e12 - 56e12 * number,
                    p90_flops=812e12 - 56e12 * number,
                )
                for number, shape in enumerate(shapes)
            ),
            "median_flops": 798e12,
            "p10_flops": 780e12,
            "p90_flops": 812e12,
            "datasheet_flops": 989.4e12,
            "of_datasheet": 798 / 989.4,
            "of_peak_at_clock": 0.86,
        }
    elif kind == "sdc":
        said |= {
            "median_value": 0.0,
            "unit": "mismatches",
            "detail": {
                "golden_shape": "4096x4096x4096",
                "golden_library": "torch 2.13.0, 132 SMs",
                "golden_operands_sha256": "aa",
                "golden_product_sha256": "bb",
            },
        }
    else:
        unit, value = ("s", 3.1e-6) if kind == "launch" else ("bytes/s", 3.01e12)
        said |= {"median_value": value, "p10_value": value, "p90_value": value, "unit": unit}
        said |= {"of_datasheet": 0.9 if kind == "bandwidth" else None}
    return ProbeResult(**{**said, **more})


def moments() -> tuple[Moment, ...]:
    """A sustained load that gets slower and hotter, on a card that tells no power."""
    return tuple(
        Moment(
            seconds=0.5 * number,
            flops=8e14 - 1e12 * number,
            clock_mhz=1980.0 - number,
            power_watts=None,
            temperature_celsius=40.0 + number,
        )
        for number in range(1, 20)
    )

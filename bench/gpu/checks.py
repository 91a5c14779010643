"""Every check, in the order in which they run: what tells most comes first, should time run out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from gpu import (
    check_bandwidth,
    check_calibration,
    check_ceiling,
    check_cost,
    check_counters,
    check_driver,
    check_gemm,
    check_tensor,
    check_training,
)
from gpu.check_driver import Findings
from gpu.result import Context

FIND_CARD: Final = "card"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. Attributes: deadline_seconds: after which its process and all below it are killed."""

    name: str
    about: str
    deadline_seconds: float
    run: Callable[[Context], Findings]


def _gemm(dtype: str) -> Check:
    full = dtype in check_gemm.FULL_DTYPES
    return Check(
        name=f"gemm-{dtype}",
        about=f"row against known FLOPs, {dtype}",
        deadline_seconds=90.0 if full else 60.0,
        run=partial(check_gemm.gemm, dtype=dtype),
    )


CARD: Final = Check(
    name=FIND_CARD, about="the card", deadline_seconds=30.0, run=check_driver.find_card
)
CHECKS: Final = (
    Check(
        name="record",
        about="every call and its answer",
        deadline_seconds=45.0,
        run=check_driver.record_driver,
    ),
    _gemm("bf16"),
    Check(
        name="cycles",
        about="cycle counters",
        deadline_seconds=60.0,
        run=check_counters.cycles,
    ),
    Check(
        name="tensor",
        about="the tensor pipes on registers, by our own kernels",
        deadline_seconds=90.0,
        run=check_tensor.tensor,
    ),
    Check(
        name="bandwidth",
        about="memory, by our own kernels",
        deadline_seconds=30.0,
        run=check_bandwidth.bandwidth,
    ),
    Check(
        name="nobody",
        about="counters without privileges",
        deadline_seconds=30.0,
        run=check_driver.as_nobody,
    ),
    _gemm("fp8"),
    Check(name="probe", about="the probe's ceiling", deadline_seconds=130.0, run=check_cost.probe),
    Check(
        name="calibration",
        about="kappa and pipes as the product finds them",
        deadline_seconds=75.0,
        run=check_calibration.calibration,
    ),
    Check(
        name="screens",
        about="corruption screens, and an element made wrong",
        deadline_seconds=60.0,
        run=check_ceiling.screens,
    ),
    Check(
        name="ceiling",
        about="the library's ceiling beside the best published",
        deadline_seconds=60.0,
        run=check_ceiling.ceiling,
    ),
    _gemm("int8"),
    _gemm("fp64"),
    Check(
        name="intervals",
        about="short sampling intervals",
        deadline_seconds=60.0,
        run=check_counters.intervals,
    ),
    Check(name="zeros", about="zeros against random", deadline_seconds=60.0, run=check_gemm.zeros),
    Check(
        name="latency",
        about="latency of cycle and calls",
        deadline_seconds=75.0,
        run=check_driver.latency,
    ),
    Check(name="cost", about="cost of the agent", deadline_seconds=75.0, run=check_cost.agent_cost),
    Check(
        name="training",
        about="training with the agent and without",
        deadline_seconds=150.0,
        run=check_training.training,
    ),
    Check(
        name="fma",
        about="multiply-adds on registers, by our own kernels",
        deadline_seconds=30.0,
        run=check_tensor.fma,
    ),
    Check(
        name="transfer",
        about="PCIe copies and launches",
        deadline_seconds=45.0,
        run=check_bandwidth.transfer,
    ),
    _gemm("fp16"),
    _gemm("tf32"),
)
BY_NAME: Final = {check.name: check for check in (CARD, *CHECKS)}

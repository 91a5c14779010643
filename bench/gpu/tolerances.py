"""How far what was seen may be from what is expected, and why that far. The only such numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from gpu.result import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Bounds, both inclusive. Attributes: why: where they come from."""

    low: float
    high: float
    unit: str
    why: str

    @property
    def text(self) -> str:
        """Return the bounds as a person writes them."""
        unit = f" {self.unit}" if self.unit else ""
        if math.isinf(self.high):
            return f"at least {self.low:g}{unit}"
        if math.isinf(self.low):
            return f"at most {self.high:g}{unit}"
        return f"{self.low:g} to {self.high:g}{unit}"


TOLERANCES: Final = {
    "kappa": Tolerance(
        low=0.90,
        high=1.05,
        unit="",
        why="known / counted FLOPs is 0.97 to 1.00 with tiles and tails; outside of 0.90 to 1.05 the peak "
        "table, the scale of a counter or the map of dtypes is wrong, and no absolute figure may go out",
    ),
    "points": Tolerance(
        low=-0.02,
        high=0.02,
        unit="",
        why="what is shown of a card is a share of its datasheet, and is to be right within 2 points of it",
    ),
    "sm_active": Tolerance(
        low=0.85,
        high=1.02,
        unit="",
        why="a loop of large products keeps every SM busy but for waves' tails and gaps between kernels",
    ),
    "clock": Tolerance(
        low=0.25,
        high=1.02,
        unit="of the highest",
        why="the power limit takes a third of the clock from a card that only multiplies; an idle card's "
        "clock, a fifth of the highest, would mean that the clock of another moment was read",
    ),
    "energy": Tolerance(
        low=0.90,
        high=1.10,
        unit="",
        why="energy counter over the integral of power at 1 Hz under a steady load: 5 % of the sensor, "
        "and as much for the sampling",
    ),
    "events": Tolerance(
        low=0.97,
        high=1.03,
        unit="",
        why="the same iterations by CUDA events and by the host's clock; they differ by one batch in 200",
    ),
    "two_clients": Tolerance(
        low=0.95,
        high=1.05,
        unit="",
        why="two processes that sample the same counters over the same seconds; the windows differ by the "
        "latency of a reading",
    ),
    "moves": Tolerance(
        low=0.05,
        high=math.inf,
        unit="",
        why="a pipe that does the work is active most of the time, one that does not is at zero",
    ),
    "probe_loop": Tolerance(
        low=0.90,
        high=1.12,
        unit="",
        why="the probe's median is of single products with the L2 cache flushed and pauses between; the "
        "loop has neither, and runs hotter",
    ),
    "probe_datasheet": Tolerance(
        low=0.45,
        high=1.0,
        unit="",
        why="the best products published reach 0.51 to 0.87 of datasheet peaks; more than 1 is a wrong peak",
    ),
    "tensor_peak": Tolerance(
        low=0.95,
        high=1.01,
        unit="",
        why="registers feed the tensor pipes without a gap but for the start of a launch of 10 ms; the clock "
        "is that of the kernel itself, so more than 1 is a wrong peak or a wrong count",
    ),
    "fma_peak": Tolerance(
        low=0.90,
        high=1.01,
        unit="",
        why="as the tensor pipes, with a loop's own instructions between: 2 in 128",
    ),
    "bandwidth": Tolerance(
        low=0.90,
        high=1.0,
        unit="",
        why="copies measured elsewhere reach 0.89 to 0.92 of datasheets, reads a little more",
    ),
    "pcie": Tolerance(
        low=0.75,
        high=1.0,
        unit="",
        why="headers and acknowledgements take 5 to 15 % of a link's raw rate; a lane or a generation lost "
        "takes half",
    ),
    "launch": Tolerance(
        low=0.5,
        high=50.0,
        unit="µs",
        why="some 5 to 15 µs on a quiet host; virtual machines take longer",
    ),
    "published": Tolerance(
        low=0.98,
        high=1.10,
        unit="",
        why="the same card, library call and shapes as a published search: 2 % for another specimen and "
        "library; far more than the best would be another peak",
    ),
    "intercept": Tolerance(
        low=-0.02,
        high=0.02,
        unit="",
        why="counters that say nothing where nothing is multiplied; two points are their noise",
    ),
    "cycle_scale": Tolerance(
        low=0.90,
        high=1.10,
        unit="",
        why="elapsed cycles over time × clock, for one SM or for all of them; nothing lies between",
    ),
    "cycle_ratio": Tolerance(
        low=0.95,
        high=1.05,
        unit="",
        why="cycles active over cycles elapsed and the percentage come from the same pair of samples",
    ),
    "zeros": Tolerance(
        low=0.98,
        high=1.40,
        unit="",
        why="zeros over random numbers: 1.13 to 1.15 where power limits, 1 where it does not; less than 1 "
        "has no explanation",
    ),
    "interval": Tolerance(
        low=0.95,
        high=1.05,
        unit="",
        why="a steady load has the same mean whatever the interval, unless short ones answer old values",
    ),
    "cycle_latency": Tolerance(
        low=-math.inf,
        high=100.0,
        unit="ms",
        why="a tenth of the reading period; with eight cards one read must still end inside a second",
    ),
    "slow_down": Tolerance(
        low=-math.inf,
        high=1.0,
        unit="%",
        why="a tenth of what two runs of the same training differ by; six pairs of windows tell half a "
        "percent",
    ),
    "agent_cpu": Tolerance(
        low=-math.inf, high=1.0, unit="% of a core", why="budget of the agent on a node"
    ),
    "agent_rss": Tolerance(
        low=-math.inf, high=100.0, unit="MiB", why="budget of the agent on a node"
    ),
}


def judge(name: str, tolerance: str, seen: float | None, *, judged: bool = True) -> Finding:
    """Return the finding; nothing seen disagrees.

    Args:
        judged: False: for information, as a time that a fake driver took.
    """
    bounds = TOLERANCES[tolerance]
    finite = seen is not None and math.isfinite(seen)
    agrees = finite and seen is not None and bounds.low <= seen <= bounds.high
    return Finding(
        name=name,
        seen=seen if finite else None,
        expected=bounds.text,
        tolerance=tolerance,
        agrees=agrees if judged else None,
    )

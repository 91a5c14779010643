"""Counters of cycles since the driver was loaded: activity and SM clock as means over exact time. Pure.

A ratio of two of them is the activity between two samples, and the elapsed cycles over the time are the
SM clock: no clock is sampled, and over a row of several readings activity × clock × time adds up to the
cycles counted, whatever the jitter of the readings.

What is not documented is found out. `step` turns counts into activity; a pair in every
``CHECK_PAIRS`` is checked:

- the elapsed cycles against time × a clock from elsewhere: a ratio about 1 is a mean of the SMs, one
  about their number is their sum; nothing lies between;
- the activities against the utilisation metrics of the same pair of samples.

Nothing is said before a check agreed. A check that fails is repeated with the next pair; after
``CHECKS_FAILED_MAX`` in a row the counters are given up until the cards are listed anew. Only a busy card
is checked: whether the cycles of idle SMs are counted while their clock is gated, nobody says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import pynvml

ELAPSED: Final = pynvml.NVML_GPM_METRIC_SM_CYCLES_ELAPSED
_ACTIVE: Final = {
    pynvml.NVML_GPM_METRIC_SM_CYCLES_ACTIVE: "sm_active_ratio",
    pynvml.NVML_GPM_METRIC_MMA_CYCLES_ACTIVE: "tensor_active_ratio",
    pynvml.NVML_GPM_METRIC_DMMA_CYCLES_ACTIVE: "dmma_active_ratio",
    pynvml.NVML_GPM_METRIC_HMMA_CYCLES_ACTIVE: "hmma_active_ratio",
    pynvml.NVML_GPM_METRIC_IMMA_CYCLES_ACTIVE: "imma_active_ratio",
    pynvml.NVML_GPM_METRIC_DFMA_CYCLES_ACTIVE: "dfma_active_ratio",
}
CYCLE_METRICS: Final = (ELAPSED, *_ACTIVE)
REQUIRED: Final = frozenset(CYCLE_METRICS[:3])
"""Elapsed, SM and tensor: without them there is no estimate."""

UTILISATION: Final = ("sm_active_ratio", "tensor_active_ratio")
"""Fields whose utilisation metric is compared with the cycles."""

CHECK_PAIRS: Final = 10
CHECKS_FAILED_MAX: Final = 3
CHECK_ACTIVE_MIN: Final = 0.75
"""Of the SMs. Were gated cycles not counted, such a card would have at least so many of them, and a counter
summed over pairs of SMs (TPCs, half their number) would still be told from one summed over SMs."""

SCALE_TOLERANCE: Final = 0.25
"""Relative. The clock to compare with is a mean of few samples and may miss a ramp, and a sample's counters
may be 100 ms old (the refresh that NVIDIA's header names): 10 % of a second. The two scales that it has to
tell apart differ by a factor of 10 and more."""

RATIO_TOLERANCE: Final = 0.02
"""Absolute. Both sides come from the same pair of samples of the same counters, and others saw three
decimals agree; 0.02 is a tenth of the efficiency that would be misjudged if a pipe were left out."""


class Cycles:
    """The cycle counters of one card or GPU instance.

    Attributes:
        scale: SMs that the counters are summed over: 1 or `sm_count`; None: not found out yet.
        disagreement: why they were given up, in words; None: they were not.
        is_check: the pair of the last step is one to check.
    """

    def __init__(self, sm_count: int | None) -> None:
        self.scale: int | None = None
        self.disagreement: str | None = None
        self.is_check = True
        self._sm_count = sm_count
        self._before: Mapping[int, float] | None = None
        self._hz = 0.0  # elapsed cycles of the last step over the time between its samples
        self._failed = 0
        self._left = 0  # pairs until the next check

    @property
    def wants_clock(self) -> bool:
        """Return whether the next pair needs a clock from elsewhere, or the one after it does.

        That one too, because such a clock is a mean since it was last asked for.
        """
        return self.disagreement is not None or self._left <= 1

    def restart(self) -> None:
        """Forget the counts before."""
        self._before = None

    def step(
        self,
        counts: Mapping[int, float] | None,
        seconds: float,
        sampled_seconds: float | None = None,
    ) -> dict[str, float] | None:
        """Return the activities and the SM clock since the step before; None where they are not known.

        They count once `check` agreed with this pair or, where `is_check` is False, an earlier one.

        Args:
            counts: metric → where the counter stands; None: it could not be read.
            seconds: between the readings; the clock times this is what was counted.
            sampled_seconds: between the samples themselves, which come a moment later than their readings.
        """
        before, self._before = self._before, counts
        if counts is None or before is None or before.keys() != counts.keys():
            return None
        moved = {metric: counts[metric] - before[metric] for metric in counts}
        elapsed = moved.get(ELAPSED, 0.0)
        # A fall is a restart of the counters; without elapsed cycles there is nothing to divide by.
        if not 0.0 < elapsed < math.inf or any(not 0.0 <= m < math.inf for m in moved.values()):
            return None
        self.is_check = self._left == 0
        self._left = (self._left or CHECK_PAIRS) - 1
        means = {name: moved[m] / elapsed for m, name in _ACTIVE.items() if m in moved}
        means["sm_clock_mhz"] = elapsed / (self.scale or 1) / seconds / 1e6
        self._hz = elapsed / (sampled_seconds or seconds)
        return means

    def check(
        self, means: dict[str, float], utilisation: Mapping[str, float], clock_mhz: float | None
    ) -> bool:
        """Return whether the pair can be believed, and set the scale the first time.

        Args:
            means: what `step` returned; the clock is set right where the scale was not known.
            utilisation: fields of ``UTILISATION`` by the driver's own metrics.
            clock_mhz: mean SM clock of the same time; None: not known, so nothing is decided.
        """
        busy = utilisation.get("sm_active_ratio", 0.0) >= CHECK_ACTIVE_MIN
        if not busy or not clock_mhz or utilisation.keys() != set(UTILISATION):
            if self.scale is None or self._failed:
                self._left = 0
            return self.scale is not None and not self._failed
        active = utilisation["sm_active_ratio"]
        why = self._scale_wrong(means, clock_mhz, active) or _ratio_wrong(means, utilisation)
        if why is None:
            self._failed = 0
            return True
        self._failed += 1
        self._left = 0
        if self._failed >= CHECKS_FAILED_MAX:
            self.disagreement = why
        return False

    def _scale_wrong(self, means: dict[str, float], clock_mhz: float, active: float) -> str | None:
        per_sm = self._hz / 1e6 / clock_mhz
        possible = (1, self._sm_count) if self.scale is None else (self.scale,)
        for scale in possible:
            if (
                scale
                and (1.0 - SCALE_TOLERANCE) * active <= per_sm / scale <= 1.0 + SCALE_TOLERANCE
            ):
                means["sm_clock_mhz"] *= (self.scale or 1) / scale
                self.scale = scale
                return None
        return (
            f"elapsed cycles over time and clock are {per_sm:.3g}: "
            f"neither 1 nor the number of SMs ({self._sm_count})"
        )


def _ratio_wrong(means: Mapping[str, float], utilisation: Mapping[str, float]) -> str | None:
    for name, said in utilisation.items():
        if abs(means[name] - said) > RATIO_TOLERANCE:
            return f"{name} is {means[name]:.4f} by cycles and {said:.4f} by utilisation"
    return None

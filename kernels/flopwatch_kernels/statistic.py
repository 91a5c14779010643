"""When a timing is steady enough, and what it says: pure arithmetic on durations."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_MEDIAN_VARIANCE_RATIO: Final = 1.57  # variance of a median over that of a mean: pi / 2
_Z_95: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates of one operation repeated under the same conditions, FLOP/s.

    Attributes:
        median: The figure to use.
        p10: Rate that one iteration in ten falls below.
        p90: Rate that one iteration in ten exceeds.
        maximum: The fastest iteration; never a ceiling by itself.
    """

    median: float
    p10: float
    p90: float
    maximum: float


def coefficient_of_variation(durations_seconds: Sequence[float]) -> float:
    """Standard deviation over mean; infinite for fewer than two durations, which show no spread."""
    if len(durations_seconds) < 2:
        return math.inf
    return statistics.stdev(durations_seconds) / statistics.fmean(durations_seconds)


def iterations_needed(variation: float, *, least: int, most: int, precision: float = 0.01) -> int:
    """Iterations after which the median is known to +-`precision` with 95 % confidence.

    Args:
        variation: Coefficient of variation of the iterations seen so far.
        least: Lower bound of the answer.
        most: Upper bound of the answer, also for an infinite variation.
        precision: Half-width wanted, relative.

    Returns:
        1.57 * (1.96 * variation / precision)^2, rounded to the nearest, inside the bounds: about
        6, 24, 54 and 151 iterations at 1, 2, 3 and 5 % variation.

    Source: asymptotic variance of the sample median of a normal sample, pi/2 * sigma^2 / n.
    """
    if math.isinf(variation):
        return most
    wanted = _MEDIAN_VARIANCE_RATIO * (_Z_95 * variation / precision) ** 2
    return max(least, min(most, round(wanted)))


def rates(durations_seconds: Sequence[float], *, flops: int) -> Rates:
    """The rates of operations of `flops` FLOP each that took `durations_seconds` (two or more)."""
    per_second = [flops / seconds for seconds in durations_seconds]
    deciles = statistics.quantiles(per_second, n=10, method="inclusive")
    return Rates(
        median=statistics.median(per_second),
        p10=deciles[0],
        p90=deciles[8],
        maximum=max(per_second),
    )

"""When a timing is steady enough, and what it says: pure arithmetic on durations."""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_MEDIAN_VARIANCE_RATIO: Final = 1.57  # variance of a median over that of a mean: pi / 2
_Z_95: Final = 1.96
_PRECISION_DURATIONS_MIN: Final = 6  # of five, even the extremes hold the median with 94 % only
_CORRELATION_MAX: Final = 0.95


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


def median_precision(durations_seconds: Sequence[float]) -> float | None:
    """Half-width of the 95 % confidence interval of the median, relative; None for fewer than six.

    From the order statistics, so that it holds for any distribution, also one with a long tail of
    disturbed iterations: between the k-th smallest and the k-th largest of n durations lies the
    median with 95 %, k = (n + 1 - 1.96 sqrt(n g)) / 2. Iterations that follow each other are alike (a
    clock that drifts); g = (1 + r) / (1 - r) widens the interval by their lag-1 correlation r.

    Source: Conover, Practical Nonparametric Statistics, 3.2; the effective sample size of a
    first-order autoregressive series.
    """
    count = len(durations_seconds)
    if count < _PRECISION_DURATIONS_MIN:
        return None
    alike = min(max(_lag_1_correlation(durations_seconds), 0.0), _CORRELATION_MAX)
    width = _Z_95 * math.sqrt(count * (1 + alike) / (1 - alike))
    below = max(0, math.floor((count - width - 1) / 2))  # half a rank for the continuity
    ordered = sorted(durations_seconds)
    median = statistics.median(ordered)
    return max(median - ordered[below], ordered[count - 1 - below] - median) / median


def _lag_1_correlation(values: Sequence[float]) -> float:
    """Rank correlation of each value with the next: one disturbed iteration does not hide a drift."""
    ranks = _ranks(values)
    mean = (len(ranks) - 1) / 2
    spread = sum((rank - mean) ** 2 for rank in ranks)
    if not spread:
        return 0.0
    return sum((a - mean) * (b - mean) for a, b in pairwise(ranks)) / spread


def _ranks(values: Sequence[float]) -> list[float]:
    """Place of each value in their order; the same for equal ones."""
    ordered = sorted(values)
    return [(bisect_left(ordered, v) + bisect_right(ordered, v) - 1) / 2 for v in values]


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

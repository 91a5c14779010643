"""kappa: FLOPs known over FLOPs that the card's counters say, from a load of known work. Pure.

    marks of the load   ──●────●────●────●──   FLOP done by when (`messages.Mark`)
    counter readings     |──────|──────|       FLOP counted, pipes active, between two readings

Each span between two readings that lies inside a shape's load gives a point: its known FLOPs are
read off the marks in proportion. The largest shape, which is first, gives kappa; all shapes
together, which keep the pipes busy to different degrees, must lie on a line through the origin:
activity without FLOPs would be an intercept. A kappa outside of 0.9 to 1.05 is kept with the reason
why no absolute figure may be published on it.

Source: sections 2.5 and 3.3 of this project's measurement science.
"""

import bisect
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from flopwatch_kernels.messages import Mark

KAPPA_MIN: Final = 0.90
KAPPA_MAX: Final = 1.05
INTERCEPT_MAX: Final = 0.02
"""Activity at no FLOPs that is still taken for noise: two points."""

MOVED_MIN: Final = 0.05
"""A pipe that does the work is active most of the time, one that does not is at zero."""

SETTLE_NS: Final = 300_000_000
"""Of each shape's load that is not looked at: the clock goes up, the first kernels are loaded."""

SPAN_SECONDS_MIN: Final = 1.0
ANY: Final = "any"
"""Pipe of a dtype that moves the counter of all tensor pipes and that of none of them."""

_SCALE_NEAR: Final = 0.15
_SPREAD_MIN: Final = 0.25
"""Of the largest work: an error of 0.5 % of the activity moves the intercept by less than 2 points."""

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What the counters said between two readings.

    Attributes:
        start_ns, end_ns: CLOCK_BOOTTIME of the readings.
        flops: FLOP by the estimator, with no kappa.
        active: share of the time that any tensor pipe was active.
        pipes: the same by pipe ("hmma", "imma", "dfma", "dmma"); those that the card counts.
    """

    start_ns: int
    end_ns: int
    flops: float
    active: float
    pipes: Mapping[str, float]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One shape's load. Attributes: shape: (m, n, k); seconds: looked at; known_flops,
    counted_flops: in that time; active: share of it that any tensor pipe was active."""

    shape: Shape
    seconds: float
    known_flops: float
    counted_flops: float
    active: float

    @property
    def kappa(self) -> float:
        """FLOP known / FLOP counted."""
        return self.known_flops / self.counted_flops if self.counted_flops else math.inf


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What a calibration found for one card, driver and dtype.

    Attributes:
        device: UUID of the card.
        driver: Version of its driver.
        sku: Full device name; None where the driver names none.
        dtype: Operand format of the load.
        kappa: FLOP known / FLOP counted, of the largest shape; None where nothing was counted.
        refused: Why nothing absolute may be published on it; None where it may.
        pipes: Pipes that moved: "hmma", "imma", "dfma", "dmma"; ("any",) where only their sum did.
        intercept: Activity at no FLOPs, of the line through the points; None where they
            are too close.
        points: A point per shape, the largest first.
        taken_unix_ns: Start of the load.
    """

    device: str
    driver: str
    sku: str | None
    dtype: str
    kappa: float | None
    refused: str | None
    pipes: tuple[str, ...]
    intercept: float | None
    points: tuple[Point, ...]
    taken_unix_ns: int


def calibration(
    marks: Sequence[Mark],
    counted: Sequence[Counted],
    *,
    device: str,
    driver: str,
    sku: str | None,
    dtype: str,
    sm_count: int | None,
    cut: bool,
    taken_unix_ns: int,
) -> Calibration | None:
    """What a load's marks and the counters beside it say; None where less than a second can be used.

    Args:
        marks: Of all shapes, in the order in which they came, the largest shape first.
        counted: Between consecutive readings of the card.
        sm_count: Of the device, which a wrong scale of a cycle counter would show as.
        cut: Whether the card is cut into MIG devices.
    """
    loads = _loads(marks)
    inside = {shape: _inside(load, counted) for shape, load in loads.items()}
    points = tuple(_point(shape, loads[shape], spans) for shape, spans in inside.items() if spans)
    if not points or points[0].shape != next(iter(loads)) or points[0].seconds < SPAN_SECONDS_MIN:
        return None
    pipes = _moved(inside[points[0].shape])
    line = intercept(points)
    return Calibration(
        device=device,
        driver=driver,
        sku=sku,
        dtype=dtype,
        kappa=points[0].kappa if points[0].counted_flops else None,
        refused=refusal(
            points[0].kappa, dtype=dtype, pipes=pipes, line=line, sm_count=sm_count, cut=cut
        ),
        pipes=pipes,
        intercept=line,
        points=points,
        taken_unix_ns=taken_unix_ns,
    )


def refusal(
    kappa: float,
    *,
    dtype: str,
    pipes: Sequence[str],
    line: float | None,
    sm_count: int | None,
    cut: bool,
) -> str | None:
    """Why no absolute figure may be published on a kappa, with the likeliest cause; None if it may."""
    if not pipes:
        return f"no tensor counter moved while {dtype} ran: the card or driver does not count it"
    if not KAPPA_MIN <= kappa <= KAPPA_MAX:
        text = f"kappa {kappa:.3g} is outside of {KAPPA_MIN:g} to {KAPPA_MAX:g}: "
        return text + _cause(kappa, dtype=dtype, sm_count=sm_count, cut=cut)
    if line is not None and abs(line) > INTERCEPT_MAX:
        return (
            f"the tensor pipes read {line:.1%} active at no FLOPs: the counter is not proportional"
            " to the work"
        )
    return None


def _cause(kappa: float, *, dtype: str, sm_count: int | None, cut: bool) -> str:
    if cut:
        return "the card is cut into MIG devices, whose activity is of another number of SMs"
    if sm_count and _near(kappa, sm_count):
        return f"the cycles are averaged over the {sm_count} SMs and were taken as their sum"
    if sm_count and _near(kappa, 1 / sm_count):
        return f"the cycles are summed over the {sm_count} SMs and were taken as their mean"
    if any(_near(kappa, factor) for factor in (0.25, 0.5, 2.0, 4.0)):
        return f"the counter of {dtype} runs at another dtype's rate: the map of dtypes is wrong"
    return "the peak table has another SKU's rate, clock or number of SMs"


def _near(kappa: float, factor: float) -> bool:
    return abs(kappa / factor - 1) <= _SCALE_NEAR


def intercept(points: Sequence[Point]) -> float | None:
    """Activity at no FLOPs: where the line through (work, activity) meets zero.

    Work is what the activity would be were the counter exact: active x known / counted. None where
    the points lie too close to each other to carry a line.
    """
    work = [point.active * point.kappa for point in points]
    if not all(map(math.isfinite, work)) or max(work) - min(work) <= _SPREAD_MIN * max(work):
        return None
    return statistics.linear_regression(work, [point.active for point in points]).intercept


def dtype_map(
    calibrations: Iterable[Calibration],
) -> dict[tuple[str | None, str], dict[str, tuple[str, ...]]]:
    """Pipes that moved: (sku, driver) -> dtype -> pipes, from the newest calibration of each."""
    found: dict[tuple[str | None, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
    for each in sorted(calibrations, key=lambda each: each.taken_unix_ns):
        found[each.sku, each.driver][each.dtype] = each.pipes
    return dict(found)


def _loads(marks: Sequence[Mark]) -> dict[Shape, list[Mark]]:
    loads: dict[Shape, list[Mark]] = {}
    for mark in marks:
        loads.setdefault(mark.shape, []).append(mark)
    return loads


def _inside(load: Sequence[Mark], counted: Sequence[Counted]) -> list[Counted]:
    """The spans that lie wholly inside a settled load."""
    start_ns, end_ns = load[0].boottime_ns + SETTLE_NS, load[-1].boottime_ns
    return [span for span in counted if start_ns <= span.start_ns < span.end_ns <= end_ns]


def _point(shape: Shape, load: Sequence[Mark], spans: Sequence[Counted]) -> Point:
    lengths = [(span.end_ns - span.start_ns) / 1e9 for span in spans]
    return Point(
        shape=shape,
        seconds=sum(lengths),
        known_flops=sum(_done(load, s.end_ns) - _done(load, s.start_ns) for s in spans),
        counted_flops=sum(span.flops for span in spans),
        active=_mean([span.active for span in spans], lengths),
    )


def _done(load: Sequence[Mark], boottime_ns: int) -> float:
    """FLOP done by a moment inside the load, between marks in proportion."""
    at = [mark.boottime_ns for mark in load]
    right = min(max(bisect.bisect_right(at, boottime_ns), 1), len(load) - 1)
    before, after = load[right - 1], load[right]
    length = after.boottime_ns - before.boottime_ns
    part = (boottime_ns - before.boottime_ns) / length if length else 1.0
    return before.flops + part * (after.flops - before.flops)


def _moved(spans: Sequence[Counted]) -> tuple[str, ...]:
    lengths = [span.end_ns - span.start_ns for span in spans]
    names = dict.fromkeys(name for span in spans for name in span.pipes)
    means = {name: _mean([span.pipes.get(name, 0.0) for span in spans], lengths) for name in names}
    moved = tuple(name for name, mean in means.items() if mean >= MOVED_MIN)
    if moved:
        return moved
    return (ANY,) if _mean([span.active for span in spans], lengths) >= MOVED_MIN else ()


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)

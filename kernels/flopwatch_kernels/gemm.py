"""The GEMM probe's child: the fastest of a few large multiplications, as the library does them.

    python -m flopwatch_kernels.gemm SPEC     SPEC and the output: see `messages`

Per shape: fresh random operands, warm-up, then timed iterations until the coefficient of variation
says that the median is known to 1 % (`statistic.iterations_needed`), inside bounds. The shape with
the highest median wins. A sustained probe then keeps the winner busy for ten seconds and more and
reports those iterations instead.

Source: sections 5.1 (specification) and 8 of this project's measurement science.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from flopwatch_kernels import peaks
from flopwatch_kernels.child import Tell, live, now_unix_ns
from flopwatch_kernels.gemm_devices import Device, dtype_of, flops_of, open_device, result_of
from flopwatch_kernels.gemm_operands import Shape
from flopwatch_kernels.messages import Moment, ProbeResult, ProbeSpec, Progress, ShapeRates
from flopwatch_kernels.sensors import Summary, Watch
from flopwatch_kernels.statistic import (
    Rates,
    coefficient_of_variation,
    iterations_needed,
    median_precision,
    rates,
)

_BATCH_SECONDS: Final = 0.5
_BATCH_ITERATIONS_MAX: Final = 2_000
_MOMENTS_MAX: Final = 120
_TOLD_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The timed iterations of one shape. Attributes: shape: (m, n, k); durations_seconds: of each
    iteration; seconds: wall time of all; device: what the sensors said meanwhile; moments: of a
    sustained load."""

    shape: Shape
    durations_seconds: Sequence[float]
    seconds: float
    device: Summary
    moments: tuple[Moment, ...] = ()

    @property
    def rates(self) -> Rates:
        """The run's rates, FLOP/s."""
        return rates(self.durations_seconds, flops=flops_of(self.shape))


def measure(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    """Measure in this process. Raises ProbeError, in words for whoever asked."""
    started_at_unix_ns = now_unix_ns()
    dtype = dtype_of(spec)
    device: Device = open_device(spec)
    tell(Progress(text=f"{dtype} choosing shapes"))
    shapes = device.shapes()
    held_seconds = round(spec.sustained_seconds) if spec.sustained else 0
    total = len(shapes) + held_seconds
    runs: list[Run] = []
    for done, shape in enumerate(shapes, 1):
        runs.append(_burst(device, shape))
        tell(Progress(text=f"{dtype} {_describe(runs[-1])}", done=done, total=total))
    best = max(runs, key=lambda run: run.rates.median)
    if spec.sustained:

        def tell_seconds(seconds: float) -> None:
            text = f"{dtype} sustained load, {seconds:.0f} of {held_seconds} s"
            done = len(shapes) + min(held_seconds, int(seconds))
            tell(Progress(text=text, done=done, total=total))

        best = _sustained(device, best.shape, spec.sustained_seconds, tell_seconds)
        tell(Progress(text=f"{dtype} sustained {_describe(best)}", done=total, total=total))
    return _result(spec, device, best, runs, started_at_unix_ns)


def _burst(device: Device, shape: Shape) -> Run:
    """Iterations until the spread says enough, at least two, inside the device's bounds."""
    multiply = device.load(shape)
    warm = _warm_up(device, multiply)
    least = max(2, min(device.iterations_min, int(device.burst_seconds_max / min(warm))))
    with Watch(device.sensor) as watch:
        durations = multiply(least)
        while sum(durations) < device.burst_seconds_max:
            variation = coefficient_of_variation(durations)
            wanted = iterations_needed(variation, least=least, most=device.iterations_max)
            if len(durations) >= wanted:
                break
            durations += multiply(min(wanted - len(durations), least))
    return _run(shape, durations, watch)


def _sustained(
    device: Device, shape: Shape, seconds: float, tell_seconds: Callable[[float], None]
) -> Run:
    """Iterations without a pause for `seconds` of wall time."""
    multiply = device.load(shape)
    warm = _warm_up(device, multiply)
    stretch_seconds = max(_BATCH_SECONDS, seconds / _MOMENTS_MAX)
    batch = max(2, min(_BATCH_ITERATIONS_MAX, int(stretch_seconds / min(warm))))
    durations: list[float] = []
    moments: list[Moment] = []
    with Watch(device.sensor) as watch:
        told_at = started_at = time.monotonic()
        while (now := time.monotonic()) - started_at < seconds:
            stretch = multiply(batch)
            durations += stretch
            moments.append(_moment(stretch, shape, time.monotonic() - started_at, watch))
            if now - told_at >= _TOLD_SECONDS:
                told_at = now
                tell_seconds(now - started_at)
    every = -(-len(moments) // _MOMENTS_MAX)  # short batches of a small shape give more
    return _run(shape, durations, watch, tuple(moments[::-1][::every][::-1]))


def _moment(durations: Sequence[float], shape: Shape, seconds: float, watch: Watch) -> Moment:
    device = watch.newest()
    return Moment(
        seconds=seconds,
        flops=rates(durations, flops=flops_of(shape)).median,
        clock_mhz=device.clock_mhz,
        power_watts=device.power_watts,
        temperature_celsius=device.temperature_celsius,
    )


def _warm_up(device: Device, multiply: Callable[[int], list[float]]) -> list[float]:
    """Untimed iterations, fewer where one takes long; their durations size the timed batches."""
    first = multiply(2)
    most = int(device.burst_seconds_max / min(first))
    return first + multiply(max(1, min(device.warm_up_iterations - 2, most)))


def _run(
    shape: Shape, durations: list[float], watch: Watch, moments: tuple[Moment, ...] = ()
) -> Run:
    return Run(
        shape=shape,
        durations_seconds=durations,
        seconds=watch.seconds,
        device=watch.summary(),
        moments=moments,
    )


def _describe(run: Run) -> str:
    m, n, k = run.shape
    tera = run.rates.median / 1e12
    return f"{m}x{n}x{k}: {tera:.4g} TFLOP/s, median of {len(run.durations_seconds)}"


def _peak(sku: str | None, dtype: str) -> peaks.Peak | None:
    """The peak that a library GEMM of this dtype is held against."""
    found = None if sku is None else peaks.find(sku)
    if found is None:
        return None
    names = ("fp64_tensor", "fp64_matrix", "fp64") if dtype == "fp64" else (dtype,)
    return next((found.peaks[name] for name in names if name in found.peaks), None)


def of_peak_at_clock(
    flops: float, peak: peaks.Peak | None, *, sm_count: int | None, clock_mhz: float | None
) -> float | None:
    """`flops` over what the SMs could do at the clock that was measured; None where not known.

    Source: section 5.1.7 of this project's measurement science, SMs x R x f.
    """
    if peak is None or not sm_count or not clock_mhz or peak.formula_valid is False:
        return None
    if peak.flop_per_clock_per_sm is None:
        return None
    return flops / (sm_count * peak.flop_per_clock_per_sm * clock_mhz * 1e6)


def _shape_rates(run: Run) -> ShapeRates:
    measured = run.rates
    return ShapeRates(
        shape=run.shape,
        iterations=len(run.durations_seconds),
        median_flops=measured.median,
        p10_flops=measured.p10,
        p90_flops=measured.p90,
    )


def _result(
    spec: ProbeSpec, device: Device, run: Run, runs: Sequence[Run], started_at_unix_ns: int
) -> ProbeResult:
    peak = _peak(device.sku, dtype_of(spec))
    measured = run.rates
    return result_of(
        spec,
        device,
        run.device,
        started_at_unix_ns,
        shape=run.shape,
        shapes=tuple(_shape_rates(tried) for tried in runs),
        iterations=len(run.durations_seconds),
        median_flops=measured.median,
        p10_flops=measured.p10,
        p90_flops=measured.p90,
        max_flops=measured.maximum,
        precision=median_precision(run.durations_seconds),
        seconds=run.seconds,
        moments=run.moments,
        datasheet_flops=None if peak is None else peak.dense_flops,
        of_datasheet=None if peak is None else measured.median / peak.dense_flops,
        of_peak_at_clock=of_peak_at_clock(
            measured.median, peak, sm_count=device.sm_count, clock_mhz=run.device.clock_mhz
        ),
    )


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))

"""The GEMM probe's child: the fastest of a few large multiplications, as the library does them.

    python -m flopwatch_kernels.gemm SPEC     SPEC and the output: see `messages`

Per shape: fresh random operands, warm-up, then timed iterations until the coefficient of variation
says that the median is known to 1 % (`statistic.iterations_needed`), inside bounds. The shape with
the highest median wins. A sustained probe then keeps the winner busy for ten seconds and more and
reports those iterations instead.

Source: sections 5.1 (specification) and 8 of this project's measurement science.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Final

import msgspec

from flopwatch_kernels import peaks
from flopwatch_kernels.errors import TORCH_MISSING, ProbeError
from flopwatch_kernels.gemm_devices import Cpu, Cuda, Device, flops_of
from flopwatch_kernels.gemm_operands import Shape, is_out_of_memory, out_of_memory
from flopwatch_kernels.messages import Done, Failed, Message, ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.sensors import Summary, Watch
from flopwatch_kernels.statistic import (
    Rates,
    coefficient_of_variation,
    iterations_needed,
    rates,
)

_BATCH_SECONDS: Final = 0.5
_BATCH_ITERATIONS_MAX: Final = 2_000
_SELF_DESTRUCT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The timed iterations of one shape. Attributes: shape: (m, n, k); durations_seconds: of each
    iteration; seconds: wall time of all; device: what the sensors said meanwhile."""

    shape: Shape
    durations_seconds: Sequence[float]
    seconds: float
    device: Summary

    @property
    def rates(self) -> Rates:
        """The run's rates, FLOP/s."""
        return rates(self.durations_seconds, flops=flops_of(self.shape))


def measure(spec: ProbeSpec, progress: Callable[[str], None]) -> ProbeResult:
    """Measure in this process. Raises ProbeError, in words for whoever asked."""
    started_at_unix_ns = time.time_ns()
    device: Device = Cpu(spec) if spec.device == "cpu" else Cuda(spec)
    best: Run | None = None
    for shape in device.shapes():
        run = _burst(device, shape)
        progress(f"{spec.dtype} {_describe(run)}")
        if best is None or run.rates.median > best.rates.median:
            best = run
    assert best is not None
    if spec.sustained:
        best = _sustained(device, best.shape, spec.sustained_seconds, progress)
        progress(f"{spec.dtype} sustained {_describe(best)}")
    return _result(spec, device, best, started_at_unix_ns)


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
    device: Device, shape: Shape, seconds: float, progress: Callable[[str], None]
) -> Run:
    """Iterations without a pause for `seconds` of wall time."""
    multiply = device.load(shape)
    warm = _warm_up(device, multiply)
    batch = max(2, min(_BATCH_ITERATIONS_MAX, int(_BATCH_SECONDS / min(warm))))
    durations: list[float] = []
    told_at = started_at = time.monotonic()
    with Watch(device.sensor) as watch:
        while (now := time.monotonic()) - started_at < seconds:
            durations += multiply(batch)
            if now - told_at >= 2.0:
                told_at = now
                progress(f"sustained load, {now - started_at:.0f} of {seconds:.0f} s")
    return _run(shape, durations, watch)


def _warm_up(device: Device, multiply: Callable[[int], list[float]]) -> list[float]:
    """Untimed iterations, fewer where one takes long; their durations size the timed batches."""
    first = multiply(2)
    most = int(device.burst_seconds_max / min(first))
    return first + multiply(max(1, min(device.warm_up_iterations - 2, most)))


def _run(shape: Shape, durations: list[float], watch: Watch) -> Run:
    return Run(
        shape=shape, durations_seconds=durations, seconds=watch.seconds, device=watch.summary()
    )


def _describe(run: Run) -> str:
    m, n, k = run.shape
    tera = run.rates.median / 1e12
    return f"{m}x{n}x{k}: {tera:.4g} TFLOP/s, median of {len(run.durations_seconds)}"


def _datasheet_flops(sku: str | None, dtype: str) -> float | None:
    """The peak that a library GEMM of this dtype is held against, FLOP/s."""
    found = None if sku is None else peaks.find(sku)
    if found is None:
        return None
    if dtype == "fp64":
        return found.tensor_fp64_flops
    peak = found.peaks.get(dtype)
    return None if peak is None else peak.dense_flops


def _result(spec: ProbeSpec, device: Device, run: Run, started_at_unix_ns: int) -> ProbeResult:
    import torch

    datasheet_flops = _datasheet_flops(device.sku, spec.dtype)
    measured = run.rates
    return ProbeResult(
        kind="gemm",
        device=device.name,
        sku=device.sku,
        dtype=spec.dtype,
        shape=run.shape,
        iterations=len(run.durations_seconds),
        median_flops=measured.median,
        p10_flops=measured.p10,
        p90_flops=measured.p90,
        max_flops=measured.maximum,
        seconds=run.seconds,
        sustained=spec.sustained,
        sm_clock_mhz=run.device.clock_mhz,
        power_watts=run.device.power_watts,
        temperature_celsius=run.device.temperature_celsius,
        energy_joules=run.device.energy_joules,
        threads=device.threads,
        torch_version=str(torch.__version__),
        started_at_unix_ns=started_at_unix_ns,
        datasheet_flops=datasheet_flops,
        of_datasheet=None if datasheet_flops is None else measured.median / datasheet_flops,
    )


def main(arguments: Sequence[str]) -> int:
    """The child's whole life; the exit code is 0 with a result and 1 with a `Failed` line."""
    output = _claim_standard_output()

    def say(message: Message) -> None:
        output.write(msgspec.json.encode(message) + b"\n")

    try:
        spec = msgspec.json.decode(arguments[0], type=ProbeSpec)
        _bound_this_process(spec)
        result = measure(spec, lambda text: say(Progress(text=text)))
    except ProbeError as exc:
        say(Failed(text=str(exc)))
        return 1
    except ModuleNotFoundError as exc:
        say(Failed(text=TORCH_MISSING if exc.name == "torch" else str(exc)))
        return 1
    except (RuntimeError, MemoryError) as exc:
        if not (isinstance(exc, MemoryError) or is_out_of_memory(exc)):
            raise
        say(Failed(text=str(out_of_memory((0, 0, 0)))))
        return 1
    say(Done(result=result))
    return 0


def _claim_standard_output() -> IO[bytes]:
    """The parent's pipe, for messages only: what libraries print goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def _bound_this_process(spec: ProbeSpec) -> None:
    """Niceness, and an end even if the parent that keeps the wall limit is gone."""
    if spec.niceness:
        os.nice(spec.niceness)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, spec.wall_seconds + _SELF_DESTRUCT_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

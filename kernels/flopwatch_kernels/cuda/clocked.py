"""Timing a kernel that only computes: how long, and at which clock.

The kernels of mma.cu, wgmma.cu and fma.cu take their iterations as an argument and write the SM
cycles and nanoseconds of their own loop. So the clock is that of the very time that was measured:
no sampling, and no difference between the clock that NVML shows and the one that was.
"""

import statistics
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_kernels.child import Tell
from flopwatch_kernels.cuda.driver import Argument
from flopwatch_kernels.cuda.session import BATCH, Repeated, Session
from flopwatch_kernels.peaks import Peak
from flopwatch_kernels.statistic import rates

_LAUNCH_SECONDS: Final = 0.01
_ITERATIONS_FIRST: Final = 512
_ITERATIONS_MAX: Final = 1 << 30
_GROWTH_MAX: Final = 64.0
_SEARCH_ROUNDS: Final = 6
_CLOCK: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocked:
    """Timed launches. Attributes: repeated; iterations: of each launch; clocks_hz: mean SM clock
    of each, as many as durations."""

    repeated: Repeated
    iterations: int
    clocks_hz: Sequence[float]

    @property
    def clock_mhz(self) -> float:
        """Mean SM clock of the launches, MHz."""
        return statistics.fmean(self.clocks_hz) / 1e6

    def sensor_clock(self) -> dict[str, float]:
        """The clock that NVML showed meanwhile, to compare; empty where it shows none."""
        seen = self.repeated.device.clock_mhz
        return {} if seen is None else {"sensor_clock_mhz": seen}

    def figures(self, flops: int, peak: Peak | None, sm_count: int) -> dict[str, float | None]:
        """What a result says of launches of so many FLOP, and of the peak that they are held against."""
        measured = rates(self.repeated.durations_seconds, flops=flops)
        return {
            "median_flops": measured.median,
            "p10_flops": measured.p10,
            "p90_flops": measured.p90,
            "max_flops": measured.maximum,
            "sm_clock_mhz": self.clock_mhz,
            "datasheet_flops": None if peak is None else peak.dense_flops,
            "of_datasheet": None if peak is None else measured.median / peak.dense_flops,
            "of_peak_at_clock": self.of_peak(flops, peak, sm_count),
        }

    def of_peak(self, flops: int, peak: Peak | None, sm_count: int) -> float | None:
        """FLOP/s over what the SMs could do at the clock they had, median of the launches.

        SMs x FLOP per clock and SM x clock; None where the datasheet's rate is not known, or is
        not what limits the card (H20).
        """
        if peak is None or peak.flop_per_clock_per_sm is None or peak.formula_valid is not True:
            return None
        per_cycle = sm_count * peak.flop_per_clock_per_sm
        pairs = zip(self.repeated.durations_seconds, self.clocks_hz, strict=True)
        return statistics.median(flops / (per_cycle * hz * seconds) for seconds, hz in pairs)


def clocked(
    session: Session,
    function: Any,
    blocks: int,
    threads: int,
    arguments: Callable[[int, int], Sequence[Argument]],
    tell: Tell,
) -> Clocked:
    """Launch until the median is known.

    Args:
        function: The kernel.
        blocks: All of them resident, so that they begin and end together.
        arguments: (iterations, address of the two clocks) to the kernel's arguments.
    """
    card = session.card
    clocks = card.allocate(BATCH * _CLOCK.size)
    found_hz: list[float] = []

    def launch(iterations: int, place: int) -> Callable[[], None]:
        packed = arguments(iterations, clocks + place * _CLOCK.size)
        return lambda: card.launch(function, blocks, threads, packed)

    def read_clocks() -> None:
        for cycles, ns in _CLOCK.iter_unpack(card.download(clocks, BATCH * _CLOCK.size)):
            found_hz.append(cycles / ns * 1e9 if ns else 0.0)

    iterations = _iterations(lambda n: card.timed([launch(n, 0)])[0])
    repeated = session.repeated(
        lambda place: launch(iterations, place), session.spec.kind, tell, read_clocks
    )
    return Clocked(repeated=repeated, iterations=iterations, clocks_hz=found_hz)


def _iterations(seconds_of: Callable[[int], float]) -> int:
    """Iterations of a launch that takes about 10 ms: long beside its start, short beside a boost."""
    iterations = _ITERATIONS_FIRST
    seconds_of(iterations)  # the first launch loads the code
    for _ in range(_SEARCH_ROUNDS):
        growth = _LAUNCH_SECONDS / max(seconds_of(iterations), 1e-9)
        iterations = max(1, min(_ITERATIONS_MAX, int(iterations * min(growth, _GROWTH_MAX))))
        if growth < 2.0:
            break
    return iterations

"""The launch probe's child: what it takes to start a kernel that does nothing.

    python -m flopwatch_kernels.launch SPEC     SPEC and the output: see `messages`

`median_value` is from the call to the moment when the host knows that the kernel has ended. In
`detail`: the call alone, and the time between kernels that are queued one behind the other, by the
card's events. The first two contain the binding's own microsecond.

Source: CUDA Driver API, cuLaunchKernel, cuStreamSynchronize.
"""

import statistics
import sys
import time
from typing import Final

from flopwatch_kernels.child import Tell, live
from flopwatch_kernels.cuda.session import Repeated, Session
from flopwatch_kernels.messages import ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.sensors import Watch

_WARM_UP: Final = 200
_LAUNCHES: Final = 2_000
_QUEUED: Final = 500


def measure(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    """Measure in this process. Raises ProbeError, in words for whoever asked."""
    session = Session(spec)
    card = session.card
    function = card.function("empty.cu", "empty")

    def launch() -> None:
        card.launch(function, 1, 1)

    for _ in range(_WARM_UP):
        launch()
    card.wait()
    tell(Progress(text=f"{_LAUNCHES} launches"))
    called: list[float] = []
    ended: list[float] = []
    with Watch(session.sensor) as watch:
        while len(ended) < _LAUNCHES or (
            spec.sustained and sum(ended) < spec.sustained_seconds and len(ended) < 1_000_000
        ):
            began_at = time.perf_counter()
            launch()
            called.append(time.perf_counter() - began_at)
            card.wait(0)
            ended.append(time.perf_counter() - began_at)
    queued = card.timed([launch] * _QUEUED)
    repeated = Repeated(durations_seconds=ended, seconds=watch.seconds, device=watch.summary())
    return session.result(
        repeated,
        median_value=statistics.median(ended),
        p10_value=percentile(ended, 10),
        p90_value=percentile(ended, 90),
        max_value=max(ended),
        unit="s",
        detail={
            "p99_seconds": percentile(ended, 99),
            "call_median_seconds": statistics.median(called),
            "call_p99_seconds": percentile(called, 99),
            "queued_median_seconds": statistics.median(queued),
            "queued_p99_seconds": percentile(queued, 99),
        },
    )


def percentile(values: list[float], number: int) -> float:
    """What `number` of 100 values do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[number - 1]


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))

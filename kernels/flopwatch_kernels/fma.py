"""The FMA probe's child: what the vector pipes do on registers, fp32 and fp64.

    python -m flopwatch_kernels.fma SPEC     SPEC and the output: see `messages`

16 independent chains x = a x + b a thread; FLOP/s = threads x 16 x iterations x 2 / duration.
Before, a = 2 and b = 1 must give 2^n (x + 1) - 1 in every chain of every thread, exactly.

Source: CUDA C++ Programming Guide, "Arithmetic Instructions" (results per clock and SM).
"""

import ctypes
import sys
from typing import Any, Final

from flopwatch_kernels.child import Tell, live
from flopwatch_kernels.cuda.clocked import clocked
from flopwatch_kernels.cuda.driver import Argument, pointer, u32
from flopwatch_kernels.cuda.session import Session
from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.messages import ProbeResult, ProbeSpec, Progress

_SOURCE: Final = "fma.cu"
_CHAINS: Final = 16
_THREADS: Final = 256
_WARP: Final = 32
_CHECK_ITERATIONS: Final = 8
_FACTOR, _TERM = 0.999, 0.001  # x stays near 1: neither overflows nor becomes a denormal


def measure(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    """Measure in this process. Raises ProbeError, in words for whoever asked."""
    assert spec.dtype is not None
    session = Session(spec)
    card = session.card
    function = card.function(_SOURCE, f"fma_{spec.dtype}")
    blocks = card.blocks_resident(function, _THREADS)
    number: Any = ctypes.c_float if spec.dtype == "fp32" else ctypes.c_double
    size = blocks * _THREADS * ctypes.sizeof(number)
    sums = card.allocate(size)

    def arguments(factor: float, term: float, iterations: int, clocks: int) -> list[Argument]:
        return [(factor, number), (term, number), pointer(sums), u32(iterations), pointer(clocks)]

    tell(Progress(text=f"{spec.dtype} check", done=0, total=2))
    check = arguments(2.0, 1.0, _CHECK_ITERATIONS, card.allocate(16))
    card.launch(function, blocks, _THREADS, check)
    wrong = _wrong(card.download(sums, size), spec.dtype)
    tell(Progress(text=f"{spec.dtype} multiply-adds", done=1, total=2))
    timed = clocked(
        session,
        function,
        blocks,
        _THREADS,
        lambda iterations, clocks: arguments(_FACTOR, _TERM, iterations, clocks),
        tell,
    )
    flops = blocks * _THREADS * _CHAINS * timed.iterations * 2
    sheet = session.sheet()
    peak = None if sheet is None else sheet.peaks.get(spec.dtype)
    return session.result(
        timed.repeated,
        dtype=spec.dtype,
        **timed.figures(flops, peak, card.sm_count),
        outcome="corrupt" if wrong else "ok",
        reason=f"{wrong} of {blocks * _THREADS} threads got an exact sum wrong" if wrong else None,
        detail={"sm_count": card.sm_count, "threads_wrong": wrong, **timed.sensor_clock()},
    )


def expected_sum(lane: int) -> int:
    """The sum of a thread's chains after the check: 2^n (x + 1) - 1 each, x = lane + chain."""
    return sum((lane + chain + 1) * 2**_CHECK_ITERATIONS - 1 for chain in range(_CHAINS))


def _wrong(data: bytearray, dtype: str) -> int:
    """Threads whose sum is wrong. Raises: ProbeError: all are, which is no card's fault."""
    import numpy as np

    sums = np.frombuffer(data, dtype={"fp32": "float32", "fp64": "float64"}[dtype])
    expected = np.array([expected_sum(lane) for lane in range(_WARP)])
    wrong = sums.reshape(-1, _WARP) != expected
    if wrong.all():
        raise ProbeError(
            f"fma_{dtype} of {_SOURCE} gives {sums[0]:g} in thread 0, not {expected[0]}: a fault of"
            " this program, please report it"
        )
    return int(wrong.sum())


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))

"""The load's own process: products without a pause, and what has been done by when.

    python -m gpu.load_child SPEC

SPEC is JSON: ``{"device": "cuda"|"cpu", "phases": [{"dtype", "shape", "seconds", "data", "pace_flops"}]}``.
Writes JSON lines: ``{"phase": i}`` as one begins; ``{"mark": [boottime ns, iterations]}`` as each batch has
ended; ``{"done": i, "event_seconds": s}``; ``{"error": i, "text": …}`` where one cannot run.

With ``pace_flops`` nothing is measured: the processor multiplies something small, and iterations are told
at exactly that rate. It stands in for a card where there is none.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

BATCH_SECONDS: Final = 0.05
BATCHES_QUEUED: Final = 3
_PR_SET_PDEATHSIG: Final = 1
_WARM_UP: Final = 10
_STAND_IN_SHAPE: Final = (128, 128, 128)


def say(**message: Any) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _zeros(shape: tuple[int, int, int]) -> Callable[[], object]:
    import torch

    m, n, k = shape
    a_mk = torch.zeros((m, k), dtype=torch.bfloat16, device="cuda")
    b_kn = torch.zeros((k, n), dtype=torch.bfloat16, device="cuda")
    c_mn = torch.zeros((m, n), dtype=torch.bfloat16, device="cuda")
    return lambda: torch.mm(a_mk, b_kn, out=c_mn)


def _measured(phase: dict[str, Any]) -> float:
    """Keep the card busy; return the seconds between the first and the last event."""
    import torch

    from flopwatch_kernels.gemm_operands import multiplication

    cuda: Any = torch.cuda
    shape = tuple(phase["shape"])
    multiply = (
        _zeros(shape) if phase["data"] == "zeros" else multiplication(shape, phase["dtype"], "cuda")
    )

    def event() -> Any:
        made = cuda.Event(enable_timing=True)
        made.record()
        return made

    before = event()
    for _ in range(_WARM_UP):
        multiply()
    after = event()
    cuda.synchronize()
    each_seconds = max(1e-6, before.elapsed_time(after) / 1e3 / _WARM_UP)
    batch = max(1, round(BATCH_SECONDS / each_seconds))
    first = last = event()
    cuda.synchronize()
    say(mark=[_boot_ns(), 0])
    end = time.monotonic() + phase["seconds"]
    queued: deque[Any] = deque()
    done = 0
    while queued or time.monotonic() < end:
        if len(queued) < BATCHES_QUEUED and time.monotonic() < end:
            for _ in range(batch):
                multiply()
            queued.append(event())
            continue
        last = queued.popleft()
        last.synchronize()
        done += batch
        say(mark=[_boot_ns(), done])
    return float(first.elapsed_time(last)) / 1e3


def _stood_in(phase: dict[str, Any]) -> None:
    """Tell iterations at the given rate, each mark at the moment when it is due."""
    from flopwatch_kernels.gemm_operands import multiplication

    m, n, k = phase["shape"]
    multiply = multiplication(_STAND_IN_SHAPE, "fp32", "cpu")
    per_second = phase["pace_flops"] / (2 * m * n * k)
    batch = max(1, round(BATCH_SECONDS * per_second))
    started_ns, done = _boot_ns(), 0
    say(mark=[started_ns, 0])
    while done / per_second < phase["seconds"]:
        multiply()
        done += batch
        due_ns = started_ns + round(done / per_second * 1e9)
        time.sleep(max(0.0, (due_ns - _boot_ns()) / 1e9))
        say(mark=[due_ns, done])


def main() -> int:
    """Run the phases one after the other; one that cannot run does not stop the next."""
    die_with_parent()
    spec = json.loads(sys.argv[1])
    if spec["device"] == "cpu":
        import torch

        torch.set_num_threads(1)
    for number, phase in enumerate(spec["phases"]):
        say(phase=number)
        try:
            seconds = None if phase["pace_flops"] else _measured(phase)
            if phase["pace_flops"]:
                _stood_in(phase)
        except Exception as exc:  # whatever torch, CUDA or the card says is the answer
            say(error=number, text=f"{type(exc).__name__}: {exc}".splitlines()[0])
        else:
            say(done=number, event_seconds=seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())

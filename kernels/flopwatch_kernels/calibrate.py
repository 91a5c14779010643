"""The child that loads a card with known work, and says how far it has come (`messages.Mark`).

    python -m flopwatch_kernels.calibrate SPEC     SPEC and the output: see `messages`

Whoever started it reads the card's counters meanwhile; `calibration` puts both together. Products
of four sizes run one after the other without a pause, the largest first, so that the tensor pipes
are busy to different degrees. No L2 flush and no events in between: this is a load, no ceiling.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from flopwatch_kernels.child import Tell, live, now_unix_ns
from flopwatch_kernels.gemm_devices import Device, dtype_of, flops_of, open_device, result_of
from flopwatch_kernels.gemm_operands import Multiplication, Shape, multiplication
from flopwatch_kernels.messages import Mark, ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.sensors import Watch

EDGES: Final = {"cuda": (8192, 4096, 2048, 1024), "cpu": (512, 384, 256, 128)}
_BATCH_SECONDS: Final = 0.05
_BATCHES_QUEUED: Final = 3
_WARM_UP: Final = 10


def measure(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    """Load the device in this process. Raises ProbeError, in words for whoever asked."""
    started_at_unix_ns = now_unix_ns()
    dtype = dtype_of(spec)
    device: Device = open_device(spec)
    place = "cpu" if spec.device == "cpu" else "cuda"
    edges = EDGES[place]
    known = iterations = 0
    with Watch(device.sensor) as watch:
        for done, edge in enumerate(edges, 1):
            shape = (edge, edge, edge)
            multiply = multiplication(shape, dtype, place)
            count = _load(multiply, shape, spec.sustained_seconds / len(edges), place, tell)
            iterations += count
            known += count * flops_of(shape)
            text = f"{dtype} load of known work, {edge}x{edge}x{edge}"
            tell(Progress(text=text, done=done, total=len(edges)))
    return result_of(
        spec,
        device,
        watch.summary(),
        started_at_unix_ns,
        iterations=iterations,
        seconds=watch.seconds,
        detail={"known_flop": float(known)},
    )


def _load(multiply: Multiplication, shape: Shape, seconds: float, place: str, tell: Tell) -> int:
    """Multiply for some seconds; return how often."""
    event = _cuda_event if place == "cuda" else _at_once
    for _ in range(_WARM_UP):
        multiply()
    event()()
    began = time.monotonic()
    multiply()
    event()()
    batch = max(1, round(_BATCH_SECONDS / max(1e-6, time.monotonic() - began)))

    def mark(count: int) -> None:
        done_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        tell(Mark(boottime_ns=done_ns, flops=float(count * flops_of(shape)), shape=shape))

    mark(0)
    end = time.monotonic() + seconds
    queued: deque[Callable[[], None]] = deque()
    done = 0
    while queued or time.monotonic() < end:
        if len(queued) < _BATCHES_QUEUED and time.monotonic() < end:
            for _ in range(batch):
                multiply()
            queued.append(event())
            if place == "cuda":
                continue
        queued.popleft()()
        done += batch
        mark(done)
    return done


def _cuda_event() -> Callable[[], None]:
    """An event behind what is queued by now; the call waits for it."""
    import torch

    cuda: Any = torch.cuda  # its Event has no type annotations
    made = cuda.Event()
    made.record()
    wait: Callable[[], None] = made.synchronize
    return wait


def _at_once() -> Callable[[], None]:
    """On a processor a call has ended when it returns."""
    return lambda: None


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))

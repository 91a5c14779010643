"""A load of known FLOPs on the card, as the checks see it, and the stage that provides it.

The real stage multiplies on the card. The fake one writes the fake driver's script so that its counters
say what the stand-in tells: dtype → pipe, clock, power, cycles.
"""

from __future__ import annotations

import bisect
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from gpu.result import Context

from flopwatch_kernels import peaks

SHAPES: Final = (
    (8192, 8192, 8192),
    (4096, 16384, 4096),
    (2048, 2048, 13312),
    (4096, 4096, 4096),
    (16384, 4096, 8192),
)
"""(m, n, k): a cube, a flat one, the fastest of a published search on H100, a small and a tall one."""

_FAKE_ACTIVE: Final = 0.8
_FAKE_CLOCK_MHZ: Final = 1755.0
_FAKE_ZEROS_RATIO: Final = 1.1
_FAKE_PIPES: Final = {"int8": 9, "fp64": 6}
_FAKE_TENSOR_FP64: Final = "fp64_tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of a load. Attributes: data: ``random`` or ``zeros``; pace_flops: of the stand-in."""

    dtype: str
    shape: tuple[int, int, int]
    seconds: float
    data: str = "random"
    pace_flops: float | None = None

    @property
    def flops(self) -> int:
        """Return the FLOPs of one iteration: 2·m·n·k."""
        m, n, k = self.shape
        return 2 * m * n * k


@dataclass(slots=True, kw_only=True)
class PhaseLog:
    """What was heard of a phase; the reader thread appends.

    Attributes:
        marks: (boottime ns, iterations done).
        event_seconds: of all iterations by the card's own events; None: not ended, or a stand-in.
    """

    phase: Phase
    marks: list[tuple[int, int]] = field(default_factory=list)
    event_seconds: float | None = None
    error: str | None = None
    ended: bool = False

    @property
    def span_ns(self) -> tuple[int, int] | None:
        """Return boottime of the first and the last mark."""
        return (self.marks[0][0], self.marks[-1][0]) if len(self.marks) > 1 else None

    def flops_between(self, start_ns: int, end_ns: int) -> float | None:
        """Return the FLOPs done in a span, between marks in proportion; None where it is not covered."""
        at = [self._iterations(t) for t in (start_ns, end_ns)]
        if at[0] is None or at[1] is None:
            return None
        return (at[1] - at[0]) * self.phase.flops

    def _iterations(self, boot_ns: int) -> float | None:
        span = self.span_ns
        if span is None or not span[0] <= boot_ns <= span[1]:
            return None
        right = min(bisect.bisect_right(self.marks, (boot_ns, 1 << 62)), len(self.marks) - 1)
        (t0, n0), (t1, n1) = self.marks[right - 1], self.marks[right]
        return n0 + (n1 - n0) * (boot_ns - t0) / (t1 - t0) if t1 > t0 else float(n1)

    def rate_by_host(self) -> float | None:
        """Return FLOP/s of the whole phase by the host's clock."""
        span = self.span_ns
        if span is None:
            return None
        return self.marks[-1][1] * self.phase.flops / ((span[1] - span[0]) / 1e9)

    def rate_by_events(self) -> float | None:
        """Return FLOP/s of the whole phase by the card's events."""
        if not self.event_seconds:
            return None
        return self.marks[-1][1] * self.phase.flops / self.event_seconds


class Load:
    """A running load. Attributes: logs: one for each phase, filled as it goes."""

    def __init__(self, process: subprocess.Popen[str], phases: Sequence[Phase]) -> None:
        self.logs = [PhaseLog(phase=phase) for phase in phases]
        self._process = process
        self._now = 0
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        """Return whether more is to be heard."""
        return self._reader.is_alive()

    def wait_for_marks(self, phase: int, seconds: float) -> PhaseLog:
        """Wait until a phase has been busy for some seconds and return its log.

        Raises:
            RuntimeError: it did not start, or ended before.
        """
        log = self.logs[phase]
        while True:
            span = log.span_ns
            if span is not None and span[1] - span[0] >= seconds * 1e9:
                return log
            if log.error is not None or log.ended or not self.running:
                raise RuntimeError(f"no load: {log.error or 'it ended too soon'}")
            time.sleep(0.02)

    def wait(self) -> None:
        """Wait for the end of all phases."""
        self._reader.join()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            message = json.loads(line)
            if "mark" in message:
                boot_ns, iterations = message["mark"]
                self.logs[self._now].marks.append((boot_ns, iterations))
            elif "phase" in message:
                self._now = message["phase"]
            elif "done" in message:
                log = self.logs[message["done"]]
                log.event_seconds, log.ended = message["event_seconds"], True
            elif "error" in message:
                self.logs[message["error"]].error = message["text"]


@contextmanager
def load(context: Context, phases: Sequence[Phase]) -> Iterator[Load]:
    """Run the phases on the context's card; they end with the block."""
    card, environment = context.the_card, dict(os.environ)
    if context.fake is None:
        device = "cuda"
        environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": card.uuid}
    else:
        device = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""
        paces = [_fake_rate(card.sku, phase) for phase in phases]
        phases = [
            Phase(**{**asdict(phase), "pace_flops": pace})
            for phase, pace in zip(phases, paces, strict=True)
        ]
        write_script(context, phases[0].dtype)
    spec = {"device": device, "phases": [asdict(phase) for phase in phases]}
    command = (sys.executable, "-m", "gpu.load_child", json.dumps(spec))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield Load(process, phases)
    finally:
        process.kill()
        process.wait(timeout=10)
        if context.fake is not None:
            write_script(context, None)


def _fake_peak(sku: str, dtype: str) -> peaks.Peak:
    found = peaks.find(sku)
    assert found is not None
    return found.peaks[_FAKE_TENSOR_FP64 if dtype == "fp64" else dtype]


def _fake_rate(sku: str, phase: Phase) -> float:
    """Return the FLOP/s at which the scripted counters would be right."""
    peak = _fake_peak(sku, phase.dtype)
    ratio = _FAKE_ZEROS_RATIO if phase.data == "zeros" else 1.0
    return ratio * _FAKE_ACTIVE * _FAKE_CLOCK_MHZ / (peak.ref_clock_mhz or 1.0) * peak.dense_flops


def write_script(context: Context, dtype: str | None) -> None:
    """Let the fake card multiply in this dtype, or idle."""
    assert context.fake is not None
    root = Path(__file__).resolve().parents[2]
    if str(root / "tests") not in sys.path:
        sys.path.append(str(root / "tests"))
    from fakenvml import Script, device

    tensor = 0.0 if dtype is None else _FAKE_ACTIVE
    sm = 0.0 if dtype is None else 0.98
    mhz = 345.0 if dtype is None else _FAKE_CLOCK_MHZ
    gpm: dict[int, Any] = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 21), 0)
    gpm |= {1: 100 * sm, 2: 100 * sm, 5: 100 * tensor, 10: 30 * sm, 60: 0, 61: 0}
    gpm[_FAKE_PIPES.get(dtype or "", 7)] = 100 * tensor
    cycles = mhz * 1e6 * 132  # summed over the SMs
    gpm |= dict.fromkeys(range(248, 261), 0)
    gpm |= {248: cycles, 249: cycles * sm, 250: cycles * tensor, 252: cycles * tensor}
    busy = dtype is not None
    lines = device(
        0,
        gpm=gpm,
        # A name of its own: a probe locks its card against every other process of this machine.
        uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, context.fake.script)}",
        sm_clock_mhz=mhz,
        power_milliwatts=650_000 if busy else 72_000,
        util_gpu=100 if busy else 0,
    )
    Script(Path(context.fake.script)).write(lines, context.fake.lines)

"""The bandwidth probe's child: how fast memory is copied, read and written.

    python -m flopwatch_kernels.bandwidth SPEC     SPEC and the output: see `messages`

On a card: buffers of 1 GiB, or 8 times its L2 cache if that is more. A copy counts bytes read and
bytes written; `median_value` is the copy's, read and write are in `detail`. The copy is compared
with a pattern afterwards, word by word. On a CPU: a copy by all threads, of a buffer that is
8 times the last-level cache where the memory cap allows it, in `detail` as "of_cache".

Source: section 5.2 of this project's measurement science: 89 to 92 % of the datasheet.
"""

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from flopwatch_kernels.child import Tell, live, now_unix_ns, out_of_memory
from flopwatch_kernels.cuda.driver import pointer, u32, u64
from flopwatch_kernels.cuda.session import Repeated, Session
from flopwatch_kernels.messages import ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.sensors import CpuSensor, Watch, told
from flopwatch_kernels.statistic import (
    coefficient_of_variation,
    iterations_needed,
    median_precision,
    rates,
)

_SOURCE: Final = "memory.cu"
_THREADS: Final = 256
_IN_FLIGHT: Final = 4  # as in memory.cu
_VECTOR_BYTES: Final = 16
_BUFFER_BYTES_MIN: Final = 1 << 30
_CACHES: Final = 8
_SEED: Final = 2026
_CPU_BYTES_MIN: Final = 64 << 20
_CPU_LEAST, _CPU_MOST = 6, 40
_CPU_SECONDS_MAX: Final = 1.5
_CPU_CAP_PARTS: Final = 3  # two buffers, and the interpreter
_COMPARED_BYTES: Final = 16 << 20  # at a time: the comparison needs memory of its own


def measure(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    """Measure in this process. Raises ProbeError, in words for whoever asked."""
    return _on_cpu(spec, tell) if spec.device == "cpu" else _on_card(spec, tell)


def _on_card(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    session = Session(spec)
    card = session.card
    functions = {name: card.function(_SOURCE, name) for name in ("copy", "read", "write")}
    blocks = min(card.blocks_resident(each, _THREADS) for each in functions.values())
    step = blocks * _THREADS * _IN_FLIGHT  # vectors: what the kernels move at a time
    wanted = max(_BUFFER_BYTES_MIN, _CACHES * card.l2_bytes)
    count = math.ceil(wanted / (step * _VECTOR_BYTES)) * step
    size = count * _VECTOR_BYTES
    source, target, found = card.allocate(size), card.allocate(size), card.allocate(8)
    card.clear(found, 8)

    def pattern_differs(address: int) -> int:
        arguments = [pointer(address), u64(count), u32(_SEED), pointer(found)]
        card.launch(card.function(_SOURCE, "mismatches"), blocks, _THREADS, arguments)
        return int.from_bytes(card.download(found, 8), "little")

    fill = [pointer(source), u64(count), u32(_SEED)]
    card.launch(card.function(_SOURCE, "pattern"), blocks, _THREADS, fill)
    card.clear(target, size)
    arguments = {
        "copy": [pointer(source), pointer(target), u64(count)],
        # A fold of hashes is as good as never 0; if it were, 4 bytes would be written.
        "read": [pointer(source), u64(count), u32(0), pointer(found)],
        "write": [pointer(target), u64(count), u32(0)],
    }

    def timed(name: str) -> Repeated:
        done = list(functions).index(name)
        tell(Progress(text=f"{name} of {size >> 20} MiB", done=done, total=len(functions)))
        launch = lambda: card.launch(functions[name], blocks, _THREADS, arguments[name])  # noqa: E731
        return session.repeated(lambda place: launch, name, tell)

    copies = timed("copy")
    wrong = pattern_differs(target)
    others = {name: timed(name) for name in ("read", "write")}
    sheet = session.sheet()
    datasheet = None
    if sheet is not None:
        datasheet = next(iter(sheet.peaks.values())).memory_bytes_per_second
    detail: dict[str, float | str | int] = {"buffer_bytes": size, "words_wrong": wrong}
    for name, repeated in others.items():
        median = statistics.median(repeated.durations_seconds)
        detail[f"{name}_bytes_per_second"] = size / median
    if datasheet is not None:
        detail["datasheet_bytes_per_second"] = datasheet
    return session.result_of_copies(
        copies,
        bytes_each=2 * size,
        bytes_per_second_most=datasheet,
        wrong=f"{wrong} words of a copy differ from its source" if wrong else None,
        detail=detail,
    )


def _on_cpu(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    started_at_unix_ns = now_unix_ns()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    cap = spec.memory_bytes_max if hard < 0 else min(spec.memory_bytes_max, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, hard))
    sensor = CpuSensor()
    threads = spec.threads or len(os.sched_getaffinity(0))
    cache = _cache_bytes(Path("/sys/devices/system/cpu/cpu0/cache"))
    size = min(max(_CPU_BYTES_MIN, _CACHES * (cache or 0)), cap // _CPU_CAP_PARTS)
    if size < _CPU_BYTES_MIN:
        raise out_of_memory(f"two buffers of {_CPU_BYTES_MIN >> 20} MiB")
    tell(Progress(text=f"copy of {size >> 20} MiB by {threads} threads"))
    with ThreadPoolExecutor(threads) as pool, Watch(sensor) as watch:
        copy, right = _cpu_copy(size, threads, pool)
        durations = _repeated_on_cpu(copy, spec)
        wrong = not right()
    copied = rates(durations, flops=2 * size)
    detail: dict[str, float | str | int] = {"buffer_bytes": size}
    if cache:
        detail["of_cache"] = size / cache
    return ProbeResult(
        kind=spec.kind,
        device="cpu",
        sku=sensor.model_name(),
        iterations=len(durations),
        median_value=copied.median,
        p10_value=copied.p10,
        p90_value=copied.p90,
        max_value=copied.maximum,
        unit="bytes/s",
        precision=median_precision(durations),
        seconds=sum(durations),
        sustained=spec.sustained,
        threads=threads,
        started_at_unix_ns=started_at_unix_ns,
        outcome="corrupt" if wrong else "ok",
        reason="a copy differs from its source" if wrong else None,
        detail=detail,
        **told(sensor.identity(), watch.summary()),
    )


def _cpu_copy(
    size: int, threads: int, pool: ThreadPoolExecutor
) -> tuple[Callable[[], None], Callable[[], bool]]:
    """A call that copies the buffer, and one that says whether the copy is right.

    Copies release the interpreter's lock, so threads copy their parts at the same time.
    """
    import numpy as np

    source = np.random.default_rng(_SEED).integers(0, 256, size, dtype=np.uint8)
    target = np.zeros_like(source)
    edges = [size * part // threads for part in range(threads + 1)]

    def part(number: int) -> None:
        piece: Any = slice(edges[number], edges[number + 1])
        np.copyto(target[piece], source[piece])

    def copy() -> None:
        list(pool.map(part, range(threads)))

    def right() -> bool:
        pieces = (slice(at, at + _COMPARED_BYTES) for at in range(0, size, _COMPARED_BYTES))
        return all(np.array_equal(source[piece], target[piece]) for piece in pieces)

    return copy, right


def _repeated_on_cpu(copy: Callable[[], None], spec: ProbeSpec) -> list[float]:
    copy()
    durations: list[float] = []
    began_at = time.monotonic()
    while True:
        started_at = time.perf_counter()
        copy()
        durations.append(time.perf_counter() - started_at)
        spent = time.monotonic() - began_at
        if len(durations) < 2:
            continue
        if spec.sustained:
            if spent >= spec.sustained_seconds:
                return durations
            continue
        variation = coefficient_of_variation(durations)
        wanted = iterations_needed(variation, least=_CPU_LEAST, most=_CPU_MOST)
        if len(durations) >= wanted or spent >= _CPU_SECONDS_MAX:
            return durations


def _cache_bytes(folder: Path) -> int | None:
    """Size of the largest cache of a core; None where the kernel does not say."""
    sizes = []
    for path in folder.glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            sizes.append(int(text.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return max(sizes, default=None)


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))

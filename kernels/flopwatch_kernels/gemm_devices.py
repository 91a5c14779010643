"""How a multiplication is timed on a CPU and on a CUDA card.

CUDA: an event before and after each iteration, one synchronisation per batch; between iterations
256 MiB are zeroed, so that no operand is found in the L2 cache. CPU: `perf_counter` around each
call. Source: MAMF finder v2 (ml-engineering) for shapes, warm-up and flush.
"""

import math
import os
import resource
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from flopwatch_kernels import peaks
from flopwatch_kernels.card import lock_device, open_card
from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.flops import gemm_flops
from flopwatch_kernels.gemm_operands import Shape, multiplication, operand_bytes
from flopwatch_kernels.messages import ProbeResult, ProbeSpec
from flopwatch_kernels.sensors import CpuSensor, NoSensor, Sensor, Summary, told

_CPU_ITERATION_SECONDS: Final = 0.04
_CPU_EDGES: Final = (256, 8192)
_CPU_EDGE_STEP: Final = 128
_CPU_SEARCH_ROUNDS: Final = 5
_CPU_SEARCH_ITERATIONS: Final = 4
_L2_FLUSH_BYTES: Final = 256 << 20
_CUDA_EVERYWHERE: Final[Shape] = (8192, 8192, 8192)
# The winners of MAMF searches as (a, b, c). The sources print MxNxK in one place and MxKxN in
# another, so both readings are tried.
_CUDA_WINNERS: Final[dict[str, Shape]] = {
    "A100": (1024, 10240, 5120),
    "H100": (2048, 2048, 13312),
    "B200": (1792, 16128, 3072),
    "B300": (12288, 18432, 1024),
    "GB200": (4096, 9728, 2048),
}
_CUDA_FAMILY: Final[dict[str, str]] = {
    "A100-SXM4-40GB": "A100",
    "A100-SXM4-80GB": "A100",
    "A100-PCIe-40GB": "A100",
    "A100-PCIe-80GB": "A100",
    "A800-SXM4-80GB": "A100",
    "H100-SXM5": "H100",
    "H100-PCIe": "H100",
    "H100-NVL": "H100",
    "H200-SXM": "H100",
    "H200-NVL": "H100",
    "H800-SXM5": "H100",
    "GH200-96GB": "H100",
    "B200-SXM": "B200",
    "B300-SXM": "B300",
    "GB300": "B300",
    "GB200": "GB200",
}


class Device(Protocol):
    """What the probe needs of the device it measures.

    Attributes: name: "cpu" or "cuda:UUID"; sku: full device name or None; threads: CPU threads
    that compute, None on a card; warm_up_iterations, iterations_min, iterations_max: bounds of a
    burst; burst_seconds_max: end of a shape's burst where iterations are slow, s of timed work;
    sensor: what can be read while it runs; sm_count: streaming multiprocessors that compute, None on
    a CPU.
    """

    name: str
    sku: str | None
    threads: int | None
    sm_count: int | None
    warm_up_iterations: int
    iterations_min: int
    iterations_max: int
    burst_seconds_max: float
    sensor: Sensor

    def shapes(self) -> tuple[Shape, ...]:
        """The shapes to try, that fit under the memory cap."""

    def load(self, shape: Shape) -> Callable[[int], list[float]]:
        """Fresh operands; the returned call runs n multiplications and gives seconds of each."""


class Cpu:
    """The host's processors. Raises: ProbeError: the memory cap is too small to begin."""

    name: str = "cpu"
    sm_count: int | None = None
    warm_up_iterations: int = 3
    iterations_min: int = 10
    iterations_max: int = 40
    burst_seconds_max: float = 0.8

    def __init__(self, spec: ProbeSpec) -> None:
        # Before torch is loaded, so that the cap holds for all it allocates.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        cap = spec.memory_bytes_max if hard < 0 else min(spec.memory_bytes_max, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (cap, hard))
        import torch

        available = len(os.sched_getaffinity(0))
        torch.set_num_threads(available if spec.threads is None else spec.threads)
        sensor = CpuSensor()
        self.sensor: Sensor = sensor
        self.sku: str | None = sensor.model_name()
        self.threads: int | None = torch.get_num_threads()
        self._spec = spec
        self._dtype = dtype_of(spec)

    def shapes(self) -> tuple[Shape, ...]:
        """A cube that takes about 40 ms, found from a small one up, and two slabs of its size."""
        edge = _CPU_EDGES[0]
        for _ in range(_CPU_SEARCH_ROUNDS):
            seconds = min(self.load((edge, edge, edge))(_CPU_SEARCH_ITERATIONS))
            if seconds >= _CPU_ITERATION_SECONDS / 2:
                break
            # A small product says little where cores are shared: grow again from what it gave.
            wanted = edge * math.cbrt(_CPU_ITERATION_SECONDS / seconds)
            edge = int(min(max(wanted, _CPU_EDGES[0]), _CPU_EDGES[1], self._edge_max()))
            edge = max(edge - edge % _CPU_EDGE_STEP, _CPU_EDGE_STEP)
        return ((edge, edge, edge), (2 * edge, edge, edge // 2), (edge // 2, edge, 2 * edge))

    def _edge_max(self) -> float:
        """Edge whose three cubes' faces take half of the cap: the library packs copies."""
        per_square = operand_bytes((1, 1, 1), self._dtype)
        return math.sqrt(self._spec.memory_bytes_max / 2 / per_square)

    def load(self, shape: Shape) -> Callable[[int], list[float]]:
        """As `Device.load`."""
        multiply = multiplication(shape, self._dtype, "cpu")

        def run(iterations: int) -> list[float]:
            durations = []
            for _ in range(iterations):
                started_at = time.perf_counter()
                multiply()
                durations.append(time.perf_counter() - started_at)
            return durations

        return run


class Cuda:
    """The one visible card. Raises: ProbeError: none, in use, or already being probed."""

    threads: int | None = None
    warm_up_iterations: int = 50
    iterations_min: int = 30
    iterations_max: int = 300
    burst_seconds_max: float = 1.5

    def __init__(self, spec: ProbeSpec) -> None:
        selector = spec.device.removeprefix("cuda:")
        self.name = spec.device
        self.sensor: Sensor = NoSensor()
        # A MIG slice has no counters of its own; the whole card's would be somebody else's.
        if not selector.startswith("MIG-"):
            card = open_card(selector)
            self.name = f"cuda:{card.uuid()}"
            self.sensor = card
        self._lock = lock_device(self.name)
        import torch

        if not torch.cuda.is_available():
            raise ProbeError(
                f"torch {torch.__version__} sees no card at --device {spec.device}: check"
                " nvidia-smi -L, and that this torch was built for CUDA"
            )
        properties = torch.cuda.get_device_properties(0)
        self.sm_count: int | None = properties.multi_processor_count
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, spec.memory_bytes_max / properties.total_memory)
        )
        self.sku: str | None = torch.cuda.get_device_name(0)
        self._spec = spec
        self._dtype = dtype_of(spec)
        self._flush: Any = torch.empty(_L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def shapes(self) -> tuple[Shape, ...]:
        """8192^3 and, where the card is known, the shapes that its MAMF search found fastest."""
        found = None if self.sku is None else peaks.find(self.sku)
        winner = None if found is None else _CUDA_WINNERS.get(_CUDA_FAMILY.get(found.key, ""))
        tried = [_CUDA_EVERYWHERE]
        if winner is not None:
            a, b, c = winner
            tried += [(a, b, c), (a, c, b)]
        room = self._spec.memory_bytes_max - _L2_FLUSH_BYTES
        fitting = [s for s in tried if operand_bytes(s, self._dtype) <= room]
        return tuple(fitting) or ((1024, 1024, 1024),)

    def load(self, shape: Shape) -> Callable[[int], list[float]]:
        """As `Device.load`."""
        import torch

        cuda: Any = torch.cuda  # its Event has no type annotations
        multiply = multiplication(shape, self._dtype, "cuda")

        def run(iterations: int) -> list[float]:
            pairs = [
                (cuda.Event(enable_timing=True), cuda.Event(enable_timing=True))
                for _ in range(iterations)
            ]
            for before, after in pairs:
                self._flush.zero_()
                multiply.refresh()
                before.record()
                multiply()
                after.record()
            cuda.synchronize()
            return [before.elapsed_time(after) / 1000 for before, after in pairs]

        return run


def open_device(spec: ProbeSpec) -> Cpu | Cuda:
    """The device to measure, ready. Raises: ProbeError: as the classes say."""
    return Cpu(spec) if spec.device == "cpu" else Cuda(spec)


def result_of(
    spec: ProbeSpec, device: Device, seen: Summary, started_at_unix_ns: int, **figures: Any
) -> ProbeResult:
    """What was measured with torch. Args: seen: what the sensors said meanwhile; figures: of this kind."""
    import torch

    return ProbeResult(
        kind=spec.kind,
        device=device.name,
        sku=device.sku,
        dtype=spec.dtype,
        sustained=spec.sustained,
        threads=device.threads,
        torch_version=str(torch.__version__),
        started_at_unix_ns=started_at_unix_ns,
        **told(device.sensor.identity(), seen),
        **figures,
    )


def dtype_of(spec: ProbeSpec) -> str:
    """The dtype to multiply. Raises: ProbeError: the spec names none."""
    if spec.dtype is None:
        raise ProbeError(f"--kind {spec.kind} multiplies: it needs a --dtype")
    return spec.dtype


def flops_of(shape: Shape) -> int:
    """FLOP of one multiplication of this shape. Source: `flops.gemm_flops`."""
    m, n, k = shape
    return gemm_flops(m, n, k)

"""What a probe is told, what it measures, and the lines between parent and child.

The parent passes one `ProbeSpec` as JSON on the child's command line. The child writes one JSON
object per line to its standard output: any number of `Progress`, then exactly one `Done` or
`Failed`, then it ends. Anything else is a broken child.
"""

import msgspec


class ProbeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child is to measure, and its bounds.

    Attributes:
        device: "cpu", or "cuda:" and what CUDA_VISIBLE_DEVICES was set to (index or UUID).
        dtype: Operand format, as in `flopwatch_kernels.probe.PROBE_DTYPES`.
        sustained: Load the device for `sustained_seconds` instead of a burst.
        sustained_seconds: Length of the sustained phase, s.
        threads: CPU threads; None for every core this process may use.
        niceness: Added to the child's niceness.
        memory_bytes_max: The child allocates no more than this on the device it measures.
        wall_seconds: The child ends itself a second after this, should its parent be gone.
    """

    device: str
    dtype: str
    sustained: bool
    sustained_seconds: float
    threads: int | None
    niceness: int
    memory_bytes_max: int
    wall_seconds: float


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one probe measured. None is always "not known", never zero.

    Attributes:
        kind: "gemm".
        device: "cpu", or "cuda:" and the card's UUID (its index where it has none).
        sku: Full device name; on a CPU the model name, None where the system names none.
        dtype: Operand format.
        shape: (m, n, k) of the fastest shape, whose figures these are.
        iterations: Timed multiplications of that shape.
        median_flops: FLOP/s of the median iteration: the measured ceiling.
        p10_flops: FLOP/s that one iteration in ten falls below.
        p90_flops: FLOP/s that one iteration in ten exceeds.
        max_flops: FLOP/s of the fastest iteration.
        seconds: Wall time of the timed iterations, s.
        sustained: True for ten seconds and more under load. Never compare with a burst, which
            ends before power and temperature settle and reads high.
        sm_clock_mhz: Mean SM (CPU: core) clock while timing, MHz.
        power_watts: Mean power while timing, W; of the packages for a CPU.
        temperature_celsius: Highest temperature while timing, degrees Celsius.
        energy_joules: Energy while timing, J; None for windows under a second, which the
            counters do not resolve.
        threads: CPU threads that computed; None on a card.
        torch_version: Version of the library that computed.
        started_at_unix_ns: Wall clock at the start, ns since 1970.
        datasheet_flops: Dense datasheet peak for this dtype, FLOP/s; None for an unknown device.
        of_datasheet: median_flops / datasheet_flops.
    """

    kind: str
    device: str
    sku: str | None
    dtype: str
    shape: tuple[int, int, int]
    iterations: int
    median_flops: float
    p10_flops: float
    p90_flops: float
    max_flops: float
    seconds: float
    sustained: bool
    sm_clock_mhz: float | None
    power_watts: float | None
    temperature_celsius: float | None
    energy_joules: float | None
    threads: int | None
    torch_version: str
    started_at_unix_ns: int
    datasheet_flops: float | None
    of_datasheet: float | None


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress", tag_field="type"):
    """A line for the person who waits."""

    text: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done", tag_field="type"):
    """The measurement."""

    result: ProbeResult


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", tag_field="type"):
    """Why there is no measurement, in words for the person who started the probe."""

    text: str


Message = Progress | Done | Failed

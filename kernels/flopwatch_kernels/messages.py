"""What a probe is told, what it measures, and the lines between parent and child.

The parent passes one `ProbeSpec` as JSON on the child's command line. The child writes one JSON
object per line to its standard output: any number of `Progress` and `Mark`, then exactly one `Done` or
`Failed`, then it ends. Anything else is a broken child.
"""

import msgspec


class ProbeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child is to measure, and its bounds.

    Attributes:
        kind: As in `flopwatch_kernels.probe.PROBE_KINDS`; a module may serve more than one.
        device: "cpu", or "cuda:" and what CUDA_VISIBLE_DEVICES was set to (index or UUID).
        peer: The second card of a peer-to-peer probe, named as `device`; None for other kinds.
        dtype: Operand format, one of the kind's; None for a kind that has none.
        sustained: Load the device for `sustained_seconds` instead of a burst.
        sustained_seconds: Length of the sustained phase, s.
        threads: CPU threads; None for every core this process may use.
        niceness: Added to the child's niceness.
        memory_bytes_max: The child allocates no more than this on the device it measures.
        wall_seconds: The child ends itself a second after this, should its parent not end it.
        parent_pid: Whoever started the child, which ends with it; None: it does not look.
    """

    kind: str = "gemm"
    device: str
    peer: str | None = None
    dtype: str | None
    sustained: bool
    sustained_seconds: float
    threads: int | None
    niceness: int
    memory_bytes_max: int
    wall_seconds: float
    parent_pid: int | None = None


class ShapeRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the shapes that were tried, in burst. Attributes: shape: (m, n, k); iterations:
    timed ones; median_flops, p10_flops, p90_flops: as of `ProbeResult`."""

    shape: tuple[int, int, int]
    iterations: int
    median_flops: float
    p10_flops: float
    p90_flops: float


class Moment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stretch of a sustained load. Attributes: seconds: end of the stretch since the load began;
    flops: median FLOP/s of its iterations; clock_mhz, power_watts, temperature_celsius: the device
    at its end, None where it does not say."""

    seconds: float
    flops: float
    clock_mhz: float | None
    power_watts: float | None
    temperature_celsius: float | None


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one probe measured. None is always "not known" or "this kind has none", never zero.

    A kind gives either FLOP/s (gemm, tensor, fma: the `_flops` fields) or another quantity
    (the `_value` fields, in `unit`).

    Attributes:
        kind: As in `flopwatch_kernels.probe.PROBE_KINDS`.
        device: "cpu", or "cuda:" and the card's UUID (its index where it has none).
        sku: Full device name; on a CPU the model name, None where the system names none.
        serial: Board serial number.
        driver_version: NVIDIA driver, e.g. "595.58.03".
        dtype: Operand format.
        shape: (m, n, k) of the fastest shape, whose figures these are; of the screened one (sdc).
        shapes: Every shape tried, in burst.
        iterations: Timed repetitions behind the median.
        median_flops: FLOP/s of the median iteration: the measured ceiling.
        p10_flops: FLOP/s that one iteration in ten falls below.
        p90_flops: FLOP/s that one iteration in ten exceeds.
        max_flops: FLOP/s of the fastest iteration.
        median_value: Median of a quantity that is no FLOP/s, in `unit`.
        p10_value: What one repetition in ten falls below, in `unit`.
        p90_value: What one repetition in ten exceeds, in `unit`.
        max_value: The largest, in `unit`.
        unit: "bytes/s", "s" or "mismatches".
        precision: Half-width of the median's 95 % confidence interval, relative: 0.01 is +-1 %.
        seconds: Wall time of the timed iterations, s.
        sustained: True for ten seconds and more under load. Never compare with a burst, which
            ends before power and temperature settle and reads high.
        moments: A sustained load over time, oldest first.
        sm_clock_mhz: Mean SM (CPU: core) clock while timing, MHz.
        power_watts: Mean power while timing, W; of the packages for a CPU.
        temperature_celsius: Highest temperature while timing, degrees Celsius.
        energy_joules: Energy while timing, J; None for windows under a second, which the
            counters do not resolve.
        throttle_seconds: Seconds below the wanted clock while timing, by reason, as the driver's
            own counters say; empty where it has none.
        threads: CPU threads that computed; None on a card.
        torch_version: Version of torch, where it computed.
        started_at_unix_ns: Wall clock at the start, ns since 1970.
        datasheet_flops: Dense datasheet peak for this dtype, FLOP/s; None for an unknown device.
        of_datasheet: median_flops / datasheet_flops (or median_value over the datasheet's value).
        of_peak_at_clock: median_flops / (SMs x FLOP per clock and SM x the measured mean clock):
            tells silicon and temperature (the clock) from software (the rest).
        counter_flops: FLOP/s that the card's own counters showed meanwhile, if somebody read them.
        kappa: FLOP known / FLOP counted, from the same.
        outcome: "ok", or "corrupt" where the device computed a wrong result.
        reason: Why it is not ok, in words; None where it is.
        detail: What only this kind has, by name with its unit last.
    """

    kind: str
    device: str
    sku: str | None
    serial: str | None = None
    driver_version: str | None = None
    dtype: str | None = None
    shape: tuple[int, int, int] | None = None
    shapes: tuple[ShapeRates, ...] = ()
    iterations: int
    median_flops: float | None = None
    p10_flops: float | None = None
    p90_flops: float | None = None
    max_flops: float | None = None
    median_value: float | None = None
    p10_value: float | None = None
    p90_value: float | None = None
    max_value: float | None = None
    unit: str | None = None
    precision: float | None = None
    seconds: float
    sustained: bool
    moments: tuple[Moment, ...] = ()
    sm_clock_mhz: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    energy_joules: float | None = None
    throttle_seconds: dict[str, float] = {}
    threads: int | None = None
    torch_version: str | None = None
    started_at_unix_ns: int
    datasheet_flops: float | None = None
    of_datasheet: float | None = None
    of_peak_at_clock: float | None = None
    counter_flops: float | None = None
    kappa: float | None = None
    outcome: str = "ok"
    reason: str | None = None
    detail: dict[str, float | str | int] = {}


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress", tag_field="type"):
    """A line for the person who waits. Attributes: text: what was done last or is being done;
    done, total: steps of this probe; None where their number is not known."""

    text: str
    done: int | None = None
    total: int | None = None


class Mark(msgspec.Struct, frozen=True, kw_only=True, tag="mark", tag_field="type"):
    """How far a load of known work has come. Attributes: boottime_ns: CLOCK_BOOTTIME when the card
    had done it; flops: FLOP since the first mark of this shape, which says 0; shape: (m, n, k)."""

    boottime_ns: int
    flops: float
    shape: tuple[int, int, int]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done", tag_field="type"):
    """The measurement."""

    result: ProbeResult


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", tag_field="type"):
    """Why there is no measurement, in words for the person who started the probe."""

    text: str


Message = Progress | Mark | Done | Failed

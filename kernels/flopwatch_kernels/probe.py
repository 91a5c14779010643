"""Run a probe: the parent's side. Nothing here computes or touches a driver.

    run_probe ──exec──► child (python -m flopwatch_kernels.gemm SPEC) ──► card
        ▲                 │  own session, niceness, memory cap, CUDA_VISIBLE_DEVICES
        └── JSON lines ───┘  killed with all it started at the wall limit

A CUDA context costs hundreds of megabytes, blocks resets and MIG changes and holds the power
state: so it lives in a child that ends. The child may be killed at any moment.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from flopwatch_kernels.child_process import ChildExit, run_child
from flopwatch_kernels.errors import TORCH_MISSING, ProbeError
from flopwatch_kernels.messages import Done, Failed, Message, ProbeResult, ProbeSpec, Progress

__all__ = [
    "PROBE_DTYPES",
    "PROBE_KINDS",
    "ProbeError",
    "ProbeKind",
    "ProbeLimits",
    "ProbeResult",
    "run_probe",
]

PROBE_DTYPES: Final[tuple[str, ...]] = (
    "fp32",
    "fp64",
    "bf16",
    "fp16",
    "tf32",
    "fp8",
    "int8",
)
"""Dtypes that can be asked for; fp8 and int8 run where this torch has a kernel for the device."""

_CUDA_ONLY: Final = ("tf32",)
_CUDA_DEVICE: Final = re.compile(r"(?:cuda:)?(\d+|(?:GPU|MIG)-[0-9A-Za-z/-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeKind:
    """A probe that exists. Attributes: name: as in --kind; module: what the child runs."""

    name: str
    module: str


PROBE_KINDS: Final[tuple[ProbeKind, ...]] = (
    ProbeKind(name="gemm", module="flopwatch_kernels.gemm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLimits:
    """Bounds of one probe.

    Attributes:
        wall_seconds: The child is killed after this, s, counted from its start.
        memory_bytes_max: What it may allocate on the device it measures, bytes.
        niceness: Added to its niceness, 0..19.
        sustained_seconds: Length of a sustained load, s; at least ten.
    """

    wall_seconds: float = 120.0
    memory_bytes_max: int = 4 << 30
    niceness: int = 0
    sustained_seconds: float = 10.0


def run_probe(
    *,
    kind: str = "gemm",
    device: str = "cpu",
    dtype: str | None = None,
    sustained: bool = False,
    threads: int | None = None,
    limits: ProbeLimits | None = None,
    on_progress: Callable[[str], None] | None = None,
    stop_reason: Callable[[], str | None] | None = None,
) -> ProbeResult:
    """Measure what a device reaches, in a child process. Blocks until it has ended.

    Args:
        kind: One of `PROBE_KINDS`.
        device: "cpu", "cuda:N" (PCI order) or a card's UUID ("GPU-...", "MIG-...").
        dtype: One of `PROBE_DTYPES`; None for fp32 on a CPU and bf16 on a card.
        sustained: Load it for at least ten seconds: what training gets. Otherwise a burst.
        threads: CPU threads; None for every core this process may use.
        limits: Bounds; None for the defaults.
        on_progress: Called with a line of text now and then, in this thread.
        stop_reason: Asked ten times a second, e.g. for a tenant on the card; a text stops it.

    Raises:
        ProbeError: Unknown kind, device or dtype, no torch, a busy card, the wall or memory limit,
            or a child that died; the text says what to change.
    """
    limits = ProbeLimits() if limits is None else limits
    module = _module(kind)
    selector = _selector(device)
    spec = ProbeSpec(
        device="cpu" if selector is None else f"cuda:{selector}",
        dtype=_dtype(dtype, selector),
        sustained=sustained,
        sustained_seconds=max(10.0, limits.sustained_seconds),
        threads=threads,
        niceness=limits.niceness,
        memory_bytes_max=limits.memory_bytes_max,
        wall_seconds=limits.wall_seconds,
    )
    if importlib.util.find_spec("torch") is None:
        raise ProbeError(TORCH_MISSING)
    last: list[Message] = []

    def hear(line: bytes) -> None:
        message = _decode(line)
        if isinstance(message, Progress):
            if on_progress is not None:
                on_progress(message.text)
        else:
            last.append(message)

    exit_ = run_child(
        (sys.executable, "-P", "-m", module, msgspec.json.encode(spec).decode()),
        environment=_environment(selector),
        wall_seconds=limits.wall_seconds,
        on_line=hear,
        stop_reason=stop_reason,
    )
    return _outcome(last, exit_)


def _outcome(heard: list[Message], exit_: ChildExit) -> ProbeResult:
    """The one final message, or the error that its absence is."""
    if len(heard) == 1 and isinstance(heard[0], Done):
        return heard[0].result
    if len(heard) == 1 and isinstance(heard[0], Failed):
        raise ProbeError(heard[0].text)
    if "bad_alloc" in exit_.stderr_tail:
        raise ProbeError("the probe ran out of memory under its cap: raise memory_bytes_max")
    ending = (
        f"was killed by signal {-exit_.returncode}"
        if exit_.returncode < 0
        else f"ended with code {exit_.returncode}"
    )
    reason = exit_.stderr_tail.splitlines()[-1] if exit_.stderr_tail else "it wrote no reason"
    raise ProbeError(f"the probe {ending} without a result: {reason}")


def _decode(line: bytes) -> Message:
    try:
        message: Message = msgspec.json.decode(line, type=Message)
    except msgspec.MsgspecError as exc:
        raise ProbeError(f"the probe wrote a line that is not a message: {line[:80]!r}") from exc
    return message


def _module(kind: str) -> str:
    for known in PROBE_KINDS:
        if known.name == kind:
            return known.module
    kinds = ", ".join(known.name for known in PROBE_KINDS)
    raise ProbeError(f"unknown probe kind {kind!r}: --kind takes {kinds}")


def _selector(device: str) -> str | None:
    """The card's index or UUID; None for the CPU."""
    if device == "cpu":
        return None
    if device == "cuda":
        return "0"
    if match := _CUDA_DEVICE.fullmatch(device):
        return match[1]
    raise ProbeError(f"unknown device {device!r}: --device takes cpu, cuda:N or a card's UUID")


def _dtype(dtype: str | None, selector: str | None) -> str:
    if dtype is None:
        return "fp32" if selector is None else "bf16"
    if dtype not in PROBE_DTYPES:
        raise ProbeError(f"unknown dtype {dtype!r}: --dtype takes {', '.join(PROBE_DTYPES)}")
    if selector is None and dtype in _CUDA_ONLY:
        raise ProbeError(f"a CPU has no {dtype}: pass --dtype fp32, or --device cuda:N")
    return dtype


def _environment(selector: str | None) -> dict[str, str]:
    """The parent's environment with exactly one card visible, or none for the CPU."""
    return {
        **os.environ,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that an index means what NVML means by it
        "CUDA_VISIBLE_DEVICES": "" if selector is None else selector,
    }

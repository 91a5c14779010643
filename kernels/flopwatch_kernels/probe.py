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

from flopwatch_kernels import goldens
from flopwatch_kernels.child_process import ChildExit, run_child
from flopwatch_kernels.errors import TORCH_MISSING, ProbeError
from flopwatch_kernels.messages import Done, Failed, Mark, Message, ProbeResult, ProbeSpec, Progress

__all__ = [
    "PROBE_DTYPES",
    "PROBE_KINDS",
    "ProbeError",
    "ProbeKind",
    "ProbeLimits",
    "ProbeResult",
    "default_dtype",
    "device_selector",
    "probe_kind",
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
    """A probe that exists.

    Attributes:
        name: As in --kind.
        module: What the child runs.
        dtypes: Operand formats it takes; empty for a kind that has none.
        on_cpu: Whether it also runs on a processor.
        torch: Whether its child needs torch.
        peer: Whether it needs a second card.
        load: Whether it only loads the device with known work, for counters to be read beside it.
    """

    name: str
    module: str
    dtypes: tuple[str, ...] = ()
    on_cpu: bool = False
    torch: bool = False
    peer: bool = False
    load: bool = False


PROBE_KINDS: Final[tuple[ProbeKind, ...]] = (
    ProbeKind(
        name="gemm",
        module="flopwatch_kernels.gemm",
        dtypes=PROBE_DTYPES,
        on_cpu=True,
        torch=True,
    ),
    ProbeKind(
        name="sdc",
        module="flopwatch_kernels.sdc",
        dtypes=("bf16", "fp16", "int8", "fp8"),
        on_cpu=True,
        torch=True,
    ),
    ProbeKind(
        name="tensor",
        module="flopwatch_kernels.tensor",
        dtypes=("bf16", "fp16", "tf32", "fp8", "int8", "fp64"),
    ),
    ProbeKind(name="fma", module="flopwatch_kernels.fma", dtypes=("fp32", "fp64")),
    ProbeKind(name="bandwidth", module="flopwatch_kernels.bandwidth", on_cpu=True),
    ProbeKind(name="pcie", module="flopwatch_kernels.transfer"),
    ProbeKind(name="p2p", module="flopwatch_kernels.transfer", peer=True),
    ProbeKind(name="launch", module="flopwatch_kernels.launch"),
    ProbeKind(
        name="calibrate",
        module="flopwatch_kernels.calibrate",
        dtypes=PROBE_DTYPES,
        on_cpu=True,
        torch=True,
        load=True,
    ),
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


def probe_kind(name: str) -> ProbeKind:
    """The kind of this name. Raises: ProbeError: there is none."""
    for known in PROBE_KINDS:
        if known.name == name:
            return known
    kinds = ", ".join(known.name for known in PROBE_KINDS)
    raise ProbeError(f"unknown probe kind {name!r}: --kind takes {kinds}")


def default_dtype(kind: ProbeKind, *, on_cpu: bool) -> str | None:
    """The dtype where none is asked for: fp32 on a CPU, else bf16, as far as the kind has them."""
    if not kind.dtypes:
        return None
    wanted = "fp32" if on_cpu else "bf16"
    return wanted if wanted in kind.dtypes else kind.dtypes[0]


def run_probe(
    *,
    kind: str = "gemm",
    device: str = "cpu",
    peer: str | None = None,
    dtype: str | None = None,
    sustained: bool = False,
    threads: int | None = None,
    limits: ProbeLimits | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_mark: Callable[[Mark], None] | None = None,
    stop_reason: Callable[[], str | None] | None = None,
) -> ProbeResult:
    """Measure what a device reaches, in a child process. Blocks until it has ended.

    Args:
        kind: One of `PROBE_KINDS`.
        device: "cpu", "cuda:N" (PCI order) or a card's UUID ("GPU-...", "MIG-...").
        peer: The second card of a kind that copies between two; None for the others.
        dtype: One of the kind's; None for `default_dtype`.
        sustained: Load it for at least ten seconds: what training gets. Otherwise a burst.
        threads: CPU threads; None for every core this process may use.
        limits: Bounds; None for the defaults.
        on_progress: Called now and then, in this thread.
        on_mark: Called as a load of known work goes on (kind calibrate), in this thread.
        stop_reason: Asked ten times a second, e.g. for a tenant on the card; a text stops it.

    Raises:
        ProbeError: Unknown kind, device or dtype, a package that is missing, a busy card, the wall
            or memory limit, or a child that died; the text says what to change.
    """
    limits = ProbeLimits() if limits is None else limits
    found = probe_kind(kind)
    selector = device_selector(device)
    peer_selector = _peer(peer, found, selector)
    spec = ProbeSpec(
        kind=kind,
        device="cpu" if selector is None else f"cuda:{selector}",
        peer=None if peer_selector is None else f"cuda:{peer_selector}",
        dtype=_dtype(dtype, found, on_cpu=selector is None),
        sustained=sustained,
        sustained_seconds=max(10.0, limits.sustained_seconds),
        threads=threads,
        niceness=limits.niceness,
        memory_bytes_max=limits.memory_bytes_max,
        wall_seconds=limits.wall_seconds,
        parent_pid=os.getpid(),
    )
    if found.torch and importlib.util.find_spec("torch") is None:
        raise ProbeError(TORCH_MISSING)
    last: list[Message] = []
    exit_ = run_child(
        (sys.executable, "-P", "-m", found.module, msgspec.json.encode(spec).decode()),
        environment=_environment(selector, peer_selector),
        wall_seconds=limits.wall_seconds,
        on_line=lambda line: _hear(_decode(line), last, on_progress, on_mark),
        stop_reason=stop_reason,
    )
    return goldens.judged(_outcome(last, exit_), goldens.packaged())


def _hear(
    message: Message,
    last: list[Message],
    on_progress: Callable[[Progress], None] | None,
    on_mark: Callable[[Mark], None] | None,
) -> None:
    if isinstance(message, Progress):
        if on_progress is not None:
            on_progress(message)
    elif isinstance(message, Mark):
        if on_mark is not None:
            on_mark(message)
    else:
        last.append(message)


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


def _peer(peer: str | None, kind: ProbeKind, selector: str | None) -> str | None:
    if selector is None and not kind.on_cpu:
        raise ProbeError(f"a CPU has no {kind.name} probe: pass --device cuda:N")
    if kind.peer and peer is None:
        raise ProbeError(f"--kind {kind.name} copies between two cards: pass --peer cuda:N")
    if peer is None:
        return None
    found = device_selector(peer)
    if not kind.peer or found is None or found == selector:
        raise ProbeError(f"--peer {peer}: it takes another card, for a kind that copies to one")
    return found


def device_selector(device: str) -> str | None:
    """The card's index or UUID; None for the CPU. Raises: ProbeError: it is neither."""
    if device == "cpu":
        return None
    if device == "cuda":
        return "0"
    if match := _CUDA_DEVICE.fullmatch(device):
        return match[1]
    raise ProbeError(f"unknown device {device!r}: --device takes cpu, cuda:N or a card's UUID")


def _dtype(dtype: str | None, kind: ProbeKind, *, on_cpu: bool) -> str | None:
    if dtype is None:
        return default_dtype(kind, on_cpu=on_cpu)
    if dtype not in kind.dtypes:
        taken = f"takes {', '.join(kind.dtypes)}" if kind.dtypes else "is not for this kind"
        raise ProbeError(f"unknown dtype {dtype!r}: --dtype of --kind {kind.name} {taken}")
    if on_cpu and dtype in _CUDA_ONLY:
        raise ProbeError(f"a CPU has no {dtype}: pass --dtype fp32, or --device cuda:N")
    return dtype


def _environment(selector: str | None, peer: str | None = None) -> dict[str, str]:
    """The parent's environment with only the cards of the probe visible, none for the CPU."""
    visible = ",".join(each for each in (selector, peer) if each is not None)
    return {
        **os.environ,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that an index means what NVML means by it
        "CUDA_VISIBLE_DEVICES": visible,
    }

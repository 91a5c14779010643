"""What `probe` runs: which kinds and dtypes, one after the other, and why some are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flopwatch.cli.probe_hook import locks
from flopwatch.cli.probe_table import left_out_lines
from flopwatch.cli.progress import counted
from flopwatch_agent import ceilings, goldens
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.probing.guard import Guard, Order, record_of
from flopwatch_agent.probing.inbox import Inbox
from flopwatch_agent.probing.lock import Refused
from flopwatch_kernels.calibration import Calibration
from flopwatch_kernels.messages import ProbeResult, Progress
from flopwatch_kernels.probe import (
    PROBE_KINDS,
    ProbeError,
    ProbeKind,
    ProbeLimits,
    default_dtype,
    device_selector,
    probe_kind,
    run_probe,
)
from flopwatch_proto.errors import UsageError

ALL: Final = "all"
_DESCRIPTION_MAX: Final = 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One probe to run. Attributes: dtype: None for a kind that has none."""

    kind: ProbeKind
    dtype: str | None

    @property
    def name(self) -> str:
        """The step for a person."""
        return f"{self.kind.name} {self.dtype}" if self.dtype else self.kind.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The command line. Attributes: kinds, dtypes: names separated by commas, or "all"; dtypes: None
    for each kind's own; save: data directory of the agent that is to use the results."""

    device: str
    peer: str | None
    kinds: str
    dtypes: str | None
    sustained: bool
    wall_seconds: float
    save: Path | None

    @property
    def on_cpu(self) -> bool:
        """Whether a processor is measured."""
        return self.device == "cpu"


@dataclass(slots=True, kw_only=True)
class Harvest:
    """What came of it. Attributes: left_out: (what, why)."""

    results: list[ProbeResult] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def plan(wish: Wish) -> tuple[list[Step], list[tuple[str, str]]]:
    """What is to be run, and what is left out and why.

    Raises:
        ProbeError: an unknown kind or device, or a kind that this device cannot have.
    """
    device_selector(wish.device)
    steps: list[Step] = []
    left_out: list[tuple[str, str]] = []
    every = wish.kinds == ALL
    names = [k.name for k in PROBE_KINDS if not k.load] if every else wish.kinds.split(",")
    for kind in (probe_kind(name.strip()) for name in names):
        if kind.load and wish.on_cpu:
            raise ProbeError("a processor has no counters to calibrate: pass --device cuda:N")
        if every and wish.on_cpu and not kind.on_cpu:
            left_out.append((kind.name, "a processor has none: --device cuda:N"))
        elif every and kind.peer and wish.peer is None:
            left_out.append((kind.name, "it copies between two cards: --peer cuda:N"))
        else:
            for dtype in _dtypes(wish, kind):
                if every and dtype is not None and dtype not in kind.dtypes:
                    left_out.append((f"{kind.name} {dtype}", "this kind has no such dtype"))
                else:
                    steps.append(Step(kind=kind, dtype=dtype))
    return steps, left_out


def _dtypes(wish: Wish, kind: ProbeKind) -> Sequence[str | None]:
    if wish.dtypes is None or not kind.dtypes:
        return (default_dtype(kind, on_cpu=wish.on_cpu),)
    if wish.dtypes == ALL:
        return tuple(dtype for dtype in kind.dtypes if not (wish.on_cpu and dtype == "tf32"))
    return tuple(dtype.strip() for dtype in wish.dtypes.split(","))


def run(wish: Wish) -> Harvest:
    """Run what can be run.

    Raises:
        UsageError: the only probe cannot run, or none of them can; or the results cannot be kept.
    """
    try:
        steps, left_out = plan(wish)
    except ProbeError as exc:
        raise UsageError(str(exc)) from exc
    harvest = Harvest(left_out=list(left_out))
    with _bars(len(steps)) as begin:
        for step in steps:
            try:
                _run_step(step, wish, harvest, begin(step))
            except (ProbeError, Refused) as exc:
                if len(steps) == 1:
                    raise UsageError(str(exc)) from exc
                harvest.left_out.append((step.name, str(exc)))
    if not harvest.results and not harvest.calibrations:
        failed = left_out_lines(harvest.left_out[len(left_out) :])
        raise UsageError(f"nothing was measured; {'; '.join(failed)}")
    return harvest


def _run_step(step: Step, wish: Wish, harvest: Harvest, tell: Callable[[Progress], None]) -> None:
    result, calibration = _measured(step, wish, tell)
    if calibration is not None:
        harvest.calibrations.append(calibration)
        return
    if wish.save is not None and wish.on_cpu:
        if step.kind.name == "gemm":
            ceilings.save(wish.save, _ceiling(result))
        Inbox(wish.save).put(record_of(result))
    harvest.results.append(result)


def _measured(
    step: Step, wish: Wish, tell: Callable[[Progress], None]
) -> tuple[ProbeResult, Calibration | None]:
    """A card is probed under the agent's lock, and left to whoever comes; a processor is not."""
    if wish.on_cpu:
        result = run_probe(
            kind=step.kind.name,
            device=wish.device,
            peer=wish.peer,
            dtype=step.dtype,
            sustained=wish.sustained,
            limits=ProbeLimits(wall_seconds=wish.wall_seconds),
            on_progress=tell,
        )
        return result if wish.save is None else goldens.screened(wish.save, result), None
    if step.dtype is not None and step.dtype not in step.kind.dtypes:
        taken = ", ".join(step.kind.dtypes)
        raise ProbeError(
            f"unknown dtype {step.dtype!r}: --dtype of --kind {step.kind.name}: {taken}"
        )
    order = Order(
        device=wish.device,
        peer=(wish.peer or "") if step.kind.peer else "",
        kind=step.kind.name,
        dtype=step.dtype,
        sustained=wish.sustained,
        wall_seconds=wish.wall_seconds,
        locks=str(locks()),
        data="" if wish.save is None else str(wish.save),
    )
    found = Guard(SystemClock(), run_probe).run(order, tell)
    if found.result is None:
        raise ProbeError(found.record.reason)
    return found.result, found.calibration


def _ceiling(result: ProbeResult) -> ceilings.Ceiling:
    assert result.median_flops is not None
    assert result.dtype is not None
    return ceilings.Ceiling(
        device=result.device,
        dtype=result.dtype,
        flops=result.median_flops,
        sustained=result.sustained,
        taken_unix_ns=result.started_at_unix_ns,
    )


@contextmanager
def _bars(total: int) -> Iterator[Callable[[Step], Callable[[Progress], None]]]:
    """A bar of the probes, where there is more than one, and one of the running probe's steps."""
    with counted() as progress:
        probes = progress.add_task("probes", total=total, visible=total > 1)
        running = progress.add_task("", total=None)
        begun = 0

        def begin(step: Step) -> Callable[[Progress], None]:
            nonlocal begun
            progress.update(probes, completed=begun)
            progress.reset(running, total=None, description=step.name)
            begun += 1

            def tell(said: Progress) -> None:
                text = f"{step.kind.name} {said.text}"[:_DESCRIPTION_MAX]
                if said.total is None:
                    progress.update(running, description=text)
                else:
                    progress.update(
                        running, description=text, completed=said.done or 0, total=said.total
                    )

            return tell

        try:
            yield begin
            progress.update(probes, completed=total)
        finally:
            progress.remove_task(running)

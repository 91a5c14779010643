"""What names a process's work: labels from its environment, cleaned and bounded.

The environment is read once per (pid, start time): a process cannot change it for us later, and a pid
that comes back is another process. How it is read, and by whose rights: `access`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, get_args

from flopwatch_agent.access import Access, Direct, Either, Helper
from flopwatch_agent.config import WorkloadClass
from flopwatch_agent.pids import started_ticks
from flopwatch_kernels import flops, peaks

TEXT_CHARACTERS_MAX: Final = 128
_KNOWN_MAX: Final = 4096
_BELIEVED: Final = 16
"""Questions between two looks at a start: the counter of pids does not come round in less."""
_PASSWD: Final = Path("/etc/passwd")

WORKLOAD_CLASSES: Final[frozenset[str]] = frozenset(get_args(WorkloadClass))
PHASES: Final = frozenset({"steady", "startup", "checkpoint", "eval", "unknown"})

_DTYPE_NAMES: Final = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "float64": "fp64",
    "double": "fp64",
    "float8": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "mxfp8": "fp8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    **{name: name for name in peaks.DTYPES},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What a process says of its work; None: it does not say.

    Attributes:
        flops_per_token: model FLOPs per token of one forward and backward pass, as the job counts.
    """

    job: str | None = None
    team: str | None = None
    user: str | None = None
    workload_class: str | None = None
    phase: str | None = None
    dtype: str | None = None
    convention: str | None = None
    flops_per_token: float | None = None


def clean_text(text: str | None) -> str | None:
    """Return a label fit to store: printable, without blanks around, bounded; None when empty."""
    if text is None:
        return None
    printable = "".join(c for c in text[: 4 * TEXT_CHARACTERS_MAX] if c.isprintable())
    return printable.strip()[:TEXT_CHARACTERS_MAX] or None


def clean_dtype(text: str | None) -> str | None:
    """Return the peak table's name of a dtype (``torch.bfloat16`` is bf16); None when unknown."""
    return None if text is None else _DTYPE_NAMES.get(text.strip().lower().removeprefix("torch."))


def clean_class(text: str | None) -> str | None:
    """Return one of the workload classes, or None."""
    return text if text in WORKLOAD_CLASSES else None


def clean_phase(text: str | None) -> str | None:
    """Return one of the phases of a job, or None."""
    return text if text in PHASES else None


def clean_convention(text: str | None) -> str | None:
    """Return one of the conventions of counting FLOPs, or None."""
    return text if text in flops.CONVENTIONS else None


def labels_of_environment(environment: Mapping[str, str]) -> Labels:
    """Return the labels that an environment gives; FLOPWATCH_* win over the scheduler's."""

    def first(*names: str) -> str | None:
        found = (clean_text(environment.get(name)) for name in names)
        return next((text for text in found if text is not None), None)

    return Labels(
        job=first("FLOPWATCH_JOB", "SLURM_JOB_ID"),
        team=first("FLOPWATCH_TEAM", "SLURM_JOB_ACCOUNT"),
        user=first("FLOPWATCH_USER", "SLURM_JOB_USER", "USER", "LOGNAME"),
        workload_class=clean_class(environment.get("FLOPWATCH_WORKLOAD_CLASS")),
        phase=clean_phase(environment.get("FLOPWATCH_PHASE")),
        dtype=clean_dtype(environment.get("FLOPWATCH_DTYPE")),
        convention=clean_convention(environment.get("FLOPWATCH_CONVENTION")),
        flops_per_token=_positive(environment.get("FLOPWATCH_MODEL_FLOPS_PER_TOKEN")),
    )


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value > 0 and math.isfinite(value) else None


@dataclass(slots=True, kw_only=True)
class _Known:
    """Attributes: started: in clock ticks since boot; believed: questions left without a look."""

    started: int
    labels: Labels
    believed: int = 0


class Environments:
    """Labels of running processes, from their environment.

    Args:
        proc: the process file system of the host.
        access: reads environments; by default itself, or the root helper where it may not.
    """

    def __init__(self, proc: Path = Path("/proc"), access: Access | None = None) -> None:
        self.unreadable_total = 0
        self.access: Access = access or Either(Direct(proc), Helper())
        self._proc = proc
        self._known: OrderedDict[int, _Known] = OrderedDict()

    def labels(self, pid: int) -> Labels:
        """Return a process's labels; empty ones where it is gone or may not be read."""
        known = self._known.get(pid)
        if known is not None and known.believed > 0:
            known.believed -= 1
            return known.labels
        started = started_ticks(pid, self._proc)
        if started is None:
            self._known.pop(pid, None)
            return Labels()
        if known is None or known.started != started:
            known = self._known[pid] = _Known(started=started, labels=self._read(pid))
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(pid)
        known.believed = _BELIEVED
        return known.labels

    def _read(self, pid: int) -> Labels:
        try:
            labels = labels_of_environment(self.access.environ(pid))
        except OSError:
            self.unreadable_total += 1
            labels = Labels()
        return labels if labels.user is not None else replace(labels, user=self._owner(pid))

    def _owner(self, pid: int) -> str | None:
        """Return whose process it is: the local name, else the number. A directory is never asked."""
        try:
            uid = (self._proc / str(pid)).stat().st_uid
            lines = _PASSWD.read_text(errors="replace").splitlines()
        except OSError:
            return None
        entries = (line.split(":") for line in lines)
        names = (entry[0] for entry in entries if len(entry) > 2 and entry[2] == str(uid))
        return clean_text(next(names, f"uid-{uid}"))

"""`probe --policy`: probes that nobody waits for. They yield to everybody, and never fail who called them.

A prolog or epilog that ends with anything but 0 drains its node; so whatever goes wrong is one line on
standard error, and the exit code is 0. The results go to the agent of this host.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import msgspec

from flopwatch.cli import host
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.config import default_jobs_socket
from flopwatch_agent.probing.guard import Guard, Order, Policy, Refused
from flopwatch_agent.probing.schedule import take_wanted
from flopwatch_kernels.probe import PROBE_KINDS, probe_kind
from flopwatch_proto.errors import FlopwatchError, UsageError

POLICIES: Final = ("idle", "prolog", "epilog", "hand")
WANTED: Final = "wanted"
"""Device of the unit: the probes that the agent of this host has asked for."""

WALL_SECONDS: Final = 20.0
NICENESS: Final = 10


def locks() -> Path:
    """Where the agent of this host looks for probes."""
    return default_jobs_socket().with_name("probing")


def run_hook(
    policy: str,
    devices: str,
    *,
    kinds: Sequence[str],
    dtype: str | None = None,
    sustained: bool = False,
    wall_seconds: float = WALL_SECONDS,
    save: Path | None = None,
) -> int:
    """Probe each device as far as its policy lets it; return 0.

    Args:
        devices: names separated by commas, as CUDA_VISIBLE_DEVICES and SLURM_JOB_GPUS write them.
        wall_seconds: of each probe.

    Raises:
        UsageError: the command line is wrong, which a hook finds out when it is installed.
    """
    if policy not in POLICIES:
        raise UsageError(f"--policy {policy!r}: one of {', '.join(POLICIES)}")
    if wall_seconds <= 0:
        raise UsageError(f"--wall {wall_seconds:g}: more than 0 seconds")
    data = save or host.data_directory()
    if devices == WANTED:
        # Whoever wrote them may not be who carries them out: only what is measured is theirs to say.
        mine = {"locks": str(locks()), "data": str(data), "measured": ""}
        orders = [msgspec.structs.replace(order, **mine) for order in take_wanted(locks())]
    else:
        orders = [
            Order(
                device=_device(name),
                kind=kind,
                dtype=dtype,
                sustained=sustained,
                policy=cast("Policy", policy),
                wall_seconds=wall_seconds,
                niceness=NICENESS,
                locks=str(locks()),
                data=str(data),
            )
            for name in re.split(r"[\s,]+", devices.strip(" ,"))
            if name
            for kind in _kinds(kinds, name)
        ]
    guard = Guard(SystemClock())
    signal.signal(signal.SIGTERM, lambda *_: guard.stop("it was told to end"))
    for order in orders:
        _carry_out(guard, order)
    return 0


def _carry_out(guard: Guard, order: Order) -> None:
    try:
        record = guard.run(order).record
        said = f"{record.outcome}{f': {record.reason}' if record.reason else ''}"
    except Refused as exc:
        said = f"not probed: {exc}"
    except (FlopwatchError, OSError) as exc:
        said = f"not kept: {exc}"
    sys.stderr.write(f"flopwatch: {order.device}: {order.what}: {said}\n")


def _kinds(names: Sequence[str], device: str) -> Sequence[str]:
    """Return the kinds that are meant: `all` are those that one device alone has."""
    if tuple(names) != ("all",):
        for name in names:
            probe_kind(name)
        return names
    here = (k for k in PROBE_KINDS if not (k.peer or k.load))
    return [kind.name for kind in here if kind.on_cpu or device != "cpu"]


def _device(name: str) -> str:
    return f"cuda:{name}" if name.isdigit() else name

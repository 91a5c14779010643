"""The card under a probe, before this process has a context on it: known, free and locked."""

import socket

from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.sensors import NvmlSensor


def open_card(selector: str) -> NvmlSensor:
    """The card, if NVML knows it and nobody computes on it.

    To be asked before this process has a context of its own, which would be in the list.

    Raises:
        ProbeError: NVML does not know it, or it is in use.
    """
    card = NvmlSensor(selector)
    pids = card.compute_pids()
    if pids:
        listed = ", ".join(str(pid) for pid in pids)
        raise ProbeError(
            f"the card {selector} is in use (pid {listed}): a probe would steal its time; drain it"
        )
    return card


def lock_device(name: str) -> socket.socket:
    """Hold the device against a second probe until the returned socket, or the process, is gone.

    An abstract socket needs no file and cannot be left behind; it is per network namespace, so
    two containers do not see each other's.

    Raises:
        ProbeError: Another probe holds it.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0flopwatch-probe-{name}")
    except OSError as exc:
        lock.close()
        raise ProbeError(f"another probe is running on {name}: wait for it to end") from exc
    return lock

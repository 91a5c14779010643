"""The compute processes of a card, as the driver lists them, without what cannot be.

Drivers list pids of another namespace, pids that are gone, and, where a struct's version does not fit,
plain garbage. On the host every pid must be in /proc; in a container of its own pid namespace nobody can
tell, and the list stands. A list with an absurd number of entries says nothing: not known, not empty.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Final

import pynvml

from flopwatch_agent import pids
from flopwatch_agent.driver.library import INSUFFICIENT_SIZE, SUCCESS, UNSUPPORTED, Library
from flopwatch_agent.driver.messages import ProcessInfo

_SYMBOLS: Final = (
    # The second and third version share one layout; the first has another, and is left alone.
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetComputeRunningProcesses_v2",
)
_ROOM_FIRST: Final = 64
_ROOM_MAX: Final = 2_048
_LOOKS: Final = 16
"""Listings between two looks at a start: the counter of pids does not come round in less."""

PLAUSIBLE_MAX: Final = 1_000
_MEMORY_BYTES_MAX: Final = 1 << 44  # "not available" is 2**64 - 1
_HOST_PID_NAMESPACE: Final = "pid:[4026531836]"
"""The first pid namespace of a kernel always has this number (PROC_PID_INIT_INO)."""


def _boot_unix_ms() -> int | None:
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    starts = [int(line.split()[1]) for line in lines if line.startswith("btime ")]
    return starts[0] * 1000 if starts else None


def believed(processes: list[ProcessInfo], *, sees_every_pid: bool) -> list[ProcessInfo]:
    """Return the processes that can be: on a host one that /proc does not show is gone, or never was."""
    return [p for p in processes if p.started_unix_ms is not None or not sees_every_pid]


def _is_host_namespace() -> bool:
    try:
        same = os.readlink("/proc/self/ns/pid") == _HOST_PID_NAMESPACE
        # Mounted with hidepid, /proc shows only one's own: then who is not there may be a stranger.
        return same and os.path.exists("/proc/1/stat")
    except OSError:
        return False


class ComputeProcesses:
    """The lists of all cards, through one buffer."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._sees_every_pid = _is_host_namespace()
        self._boot_unix_ms = _boot_unix_ms()
        self._tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
        self._buffer = (pynvml.c_nvmlProcessInfo_v2_t * _ROOM_FIRST)()
        self._starts: dict[int, tuple[int, int]] = {}  # pid → start, listings left that believe it
        self._symbol = next((s for s in _SYMBOLS if library.function(s) is not None), _SYMBOLS[0])

    def read(self, handle: Any) -> list[ProcessInfo] | None:
        """Return the card's processes, one entry a pid; None when the driver does not say.

        With MIG a process is listed once for each instance: its memory is the sum.
        """
        while True:
            count = ctypes.c_uint(len(self._buffer))
            code = self._library.call(self._symbol, handle, ctypes.byref(count), self._buffer)
            if code != INSUFFICIENT_SIZE or len(self._buffer) >= _ROOM_MAX:
                break
            self._buffer = (pynvml.c_nvmlProcessInfo_v2_t * (len(self._buffer) * 2))()
        if code in UNSUPPORTED or code != SUCCESS or count.value > len(self._buffer):
            return None
        if count.value > PLAUSIBLE_MAX:
            return None
        memory: dict[int, int | None] = {}
        for entry in self._buffer[: count.value]:
            pid, used = entry.pid, entry.usedGpuMemory
            if pid <= 0:
                continue
            known = memory.get(pid)
            memory[pid] = known if used > _MEMORY_BYTES_MAX else used + (known or 0)
        found = [
            ProcessInfo(pid=pid, started_unix_ms=self._started_unix_ms(pid), memory_bytes=used)
            for pid, used in memory.items()
        ]
        return believed(found, sees_every_pid=self._sees_every_pid)

    def _started_unix_ms(self, pid: int) -> int | None:
        """Return when the process started; None for one that our /proc does not show."""
        if self._boot_unix_ms is None:
            return None
        started, left = self._starts.pop(pid, (0, 0))
        if left > 0 and pids.exists(pid):
            self._starts[pid] = (started, left - 1)
            return started
        ticks = pids.started_ticks(pid)
        if ticks is None:
            return None
        started = self._boot_unix_ms + int(ticks * self._tick_ms)
        self._starts[pid] = (started, _LOOKS)
        while len(self._starts) > _ROOM_MAX:
            del self._starts[next(iter(self._starts))]
        return started

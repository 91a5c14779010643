"""Which process a pid is: pids come round, the pair of pid and start time does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
STATE, PARENT, START = 0, 1, 19
"""Fields of /proc/PID/stat, counted after the command name, which may hold blanks and brackets."""


def exists(pid: int) -> bool:
    """Return whether there is such a process, whoever owns it: a tenth of what reading its start costs."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def stat_of(pid: int, proc: Path = _PROC) -> list[bytes] | None:
    """Return the fields of a process, one that has ended and was not waited for too; None: it is gone."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > START else None


def started_ticks(pid: int, proc: Path = _PROC) -> int | None:
    """Return when a process started, in clock ticks since boot; as `stat_of`."""
    fields = stat_of(pid, proc)
    return None if fields is None else int(fields[START])


def running(fields: list[bytes]) -> bool:
    """Whether a process has not ended."""
    return fields[STATE] not in (b"Z", b"X")

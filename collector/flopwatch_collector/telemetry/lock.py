"""One process per data directory: the engine allows no second one and does not say who has it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from flopwatch_proto.errors import UsageError

LOCK_NAME: Final = "flopwatch.lock"
SHADOW: Final = "shadow"
"""Where the engine puts what it froze."""


class DirectoryLock:
    """An advisory lock on a directory that ends with the process, however it ends."""

    def __init__(self, directory: Path) -> None:
        """Take the lock, making the directory where it is missing.

        Raises:
            UsageError: the directory cannot be written, or another process holds it.
        """
        self._path = directory / LOCK_NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise UsageError(
                f"--data: {directory} cannot be written ({exc.strerror}); name another directory"
            ) from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._descriptor, 4096, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise UsageError(
                f"--data: {directory} is in use by {holder or 'another process'}; "
                "stop it or name another directory"
            ) from exc
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, _this_process().encode(), 0)

    def release(self) -> None:
        """Give the directory up."""
        os.close(self._descriptor)


def _this_process() -> str:
    try:
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    command = b" ".join(words).decode(errors="replace").strip()[:200]
    return f"process {os.getpid()} ({command})" if command else f"process {os.getpid()}"

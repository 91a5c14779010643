"""Files that a probe leaves for the agent: whole or not at all, and the agent's to read and remove."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final

_OTHER: Final = re.compile(r"[^A-Za-z0-9_.-]")


def file_name(device: str) -> str:
    """Return a device's name as part of a file's."""
    return _OTHER.sub("_", device)[:80] or "_"


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file whole; it belongs to who owns the directory, also where root writes it.

    Raises:
        OSError: it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with open(handle, "wb") as file:
        give_to_owner_of(path.parent, handle)
        file.write(content)
        file.flush()
        os.fsync(handle)
    scratch.replace(path)


def make_directory(path: Path) -> None:
    """Make a directory that belongs to who owns the one it lies in.

    Raises:
        OSError: it cannot be made, or leads elsewhere: root would write there.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o755, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            give_to_owner_of(path.parent, handle)
        finally:
            os.close(handle)


def give_to_owner_of(directory: Path, handle: int) -> None:
    """Let root's files be those of the directory's owner: the agent is not root."""
    if os.geteuid() == 0:
        owner = directory.stat()
        with contextlib.suppress(OSError):
            os.fchown(handle, owner.st_uid, owner.st_gid)

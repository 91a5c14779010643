"""What probes found, in a file beside the spool: a probe's parent writes it whole, the agent reads it.

The agent looks at its start and whenever the file is another one. A file that cannot be read changes nothing,
and is never written over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog

from flopwatch_agent.probing.files import write_whole
from flopwatch_proto.errors import UsageError

Content = TypeVar("Content", bound=msgspec.Struct)

_log = structlog.get_logger()


class Kept(Generic[Content]):
    """One such file.

    Args:
        form: what it holds; without arguments it is what an absent file holds.
        what: it is a file of these, in words.
    """

    def __init__(self, path: Path, form: type[Content], what: str) -> None:
        self._path = path
        self._form = form
        self._what = what
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> Content:
        """Return what it says. Raises: UsageError: it is something else."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=self._form)
        except FileNotFoundError:
            return self._form()
        except (OSError, msgspec.DecodeError) as exc:
            raise UsageError(f"{self._path}: not a file of {self._what}: {exc}") from exc

    def write(self, content: Content) -> None:
        """Replace it. Raises: UsageError: the directory cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, msgspec.json.format(msgspec.json.encode(content)))
        except OSError as exc:
            raise UsageError(f"{self._path}: cannot be written: {exc.strerror}") from exc

    def news(self) -> Content | None:
        """Return what it says if it is another one than last time; None: the same, or unreadable."""
        seen = self._identity()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            return self.read()
        except UsageError as exc:
            _log.warning("kept_file_unreadable", what=self._what, reason=str(exc))
            return None

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

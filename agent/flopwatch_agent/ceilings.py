"""What this host's devices reach when measured: the ceilings that probes found, kept beside the spool.

A probe's parent writes, the agent reads: at its start and whenever the file is another one. The file is
replaced whole, so a reader never sees half of it. A file that cannot be read changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import structlog

from flopwatch_agent.probing.files import write_whole
from flopwatch_proto.errors import UsageError

FILE_NAME: Final = "ceilings.json"

_log = structlog.get_logger()


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """One measured ceiling.

    Attributes:
        device: ``cpu``, or the card's UUID.
        flops: median FLOP/s.
        sustained: measured under ten seconds of load or more; a burst reads high.
        taken_unix_ns: start of the measurement.
    """

    device: str
    dtype: str
    flops: float
    sustained: bool
    taken_unix_ns: int


class _File(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    ceilings: tuple[Ceiling, ...] = ()


class Ceilings:
    """The ceilings of a data directory.

    Attributes:
        flops: (device uuid or slot, dtype) → FLOP/s, sustained where that was measured; changed in place
            by `refresh`.
    """

    def __init__(self, directory: Path) -> None:
        self.flops: dict[tuple[str, str], float] = {}
        self._path = directory / FILE_NAME
        self._seen: tuple[int, int, int] | None = None

    def refresh(self) -> None:
        """Read the file if it is another one than last time; what it no longer says is gone."""
        seen = _identity(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            found = _read(self._path)
        except UsageError as exc:
            _log.warning("ceilings_unreadable", reason=str(exc))
            return
        self.flops.clear()
        # A burst reads high: where a card has both, training is measured against the sustained one.
        for each in sorted(found, key=lambda ceiling: ceiling.sustained):
            self.flops[each.device, each.dtype] = each.flops
        _log.info("ceilings_loaded", count=len(self.flops))


def save(directory: Path, ceiling: Ceiling) -> None:
    """Keep a ceiling; it replaces what was known of the same device, dtype and load.

    Raises:
        UsageError: the directory cannot be written, or its file is something else.
    """
    path = directory / FILE_NAME
    others = (each for each in _read(path) if _subject(each) != _subject(ceiling))
    content = msgspec.json.encode(_File(ceilings=(*others, ceiling)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(content))
    except OSError as exc:
        raise UsageError(f"{path}: cannot be written: {exc.strerror}") from exc


def _subject(ceiling: Ceiling) -> tuple[str, str, bool]:
    return ceiling.device, ceiling.dtype, ceiling.sustained


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(path: Path) -> tuple[Ceiling, ...]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).ceilings
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as exc:
        raise UsageError(f"{path}: not a file of ceilings: {exc}") from exc

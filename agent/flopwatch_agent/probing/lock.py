"""One probe of a card, and one of a host, at a time; and the word by which the agent knows its own probes.

    DIRECTORY/host.lock     flock while any card of this host is probed
    DIRECTORY/CARD.lock     flock while this one is, with a `Word`: whose process, since and until when

Files are never removed: whoever holds a removed one would hold nothing. A word counts while its process
lives; without an end, and without a process, the probe ended when its process was last seen.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Final, Self

import msgspec

from flopwatch_agent import pids
from flopwatch_agent.probing.files import file_name, give_to_owner_of, make_directory
from flopwatch_proto.errors import FlopwatchError

_HOST: Final = "host"
_BYTES_MAX: Final = 4_096
_DEPTH_MAX: Final = 16


class Refused(FlopwatchError):
    """A probe that must not be: the text says why."""


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock says.

    Attributes:
        pid, ticks: the probe's parent, and when it started, which tells it from a later one of its number.
        began_ns, ended_ns: boottime; without an end it goes on.
        what: kind, dtype and load.
    """

    pid: int
    ticks: int
    began_ns: int
    ended_ns: int | None = None
    what: str = ""

    @property
    def alive(self) -> bool:
        """Whether the probe's parent is there."""
        return self.ticks == ticks_of(self.pid)


class Lock:
    """The lock of a card, or of two, held from `take` to `release`. Empty names are none."""

    def __init__(self, directory: Path, *devices: str) -> None:
        names = (_HOST, *(file_name(device) for device in devices if device))
        self._directory = directory
        self._paths = [directory / f"{name}.lock" for name in names]
        self._handles: list[int] = []
        self._word: Word | None = None

    def take(self, what: str, boottime_ns: int) -> Self:
        """Hold host and card.

        Raises:
            Refused: another probe runs; its process is named. Or the directory cannot be written.
        """
        try:
            make_directory(self._directory)
            for path in self._paths:
                self._handles.append(_locked(path))
        except OSError as exc:
            self._let_go()
            raise Refused(f"{exc.filename or self._directory}: {exc.strerror}") from exc
        except Refused:
            self._let_go()
            raise
        pid = os.getpid()
        self._word = Word(pid=pid, ticks=ticks_of(pid) or 0, began_ns=boottime_ns, what=what)
        for handle in self._handles:
            _write(handle, self._word)
        return self

    def release(self, boottime_ns: int) -> None:
        """Say when it ended, and let go. Safe without `take`, and twice."""
        if self._word is not None:
            ended = msgspec.structs.replace(self._word, ended_ns=boottime_ns)
            for handle in self._handles:
                _write(handle, ended)
        self._let_go()

    def _let_go(self) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles, self._word = [], None


def word_of(directory: Path, device: str) -> Word | None:
    """Return what a card's lock says; None where it was never probed, or a stranger wrote it."""
    try:
        handle = os.open(directory / f"{file_name(device)}.lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with open(handle, "rb") as file:
        owner = os.fstat(handle)
        if owner.st_uid not in (0, os.geteuid()) or not stat.S_ISREG(owner.st_mode):
            return None
        try:
            return msgspec.json.decode(file.read(_BYTES_MAX), type=Word)
        except msgspec.DecodeError:
            return None


def descends(pid: int, ancestor: int) -> bool:
    """Whether a process is another one, or was started by it or by what it started."""
    for _ in range(_DEPTH_MAX):
        if pid == ancestor:
            return True
        parent = _field(pid, pids.PARENT)
        if parent is None or parent <= 1:
            return False
        pid = parent
    return False


def ticks_of(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None where it has ended."""
    return _field(pid, pids.START)


def _field(pid: int, field: int) -> int | None:
    fields = pids.stat_of(pid)
    return int(fields[field]) if fields is not None and pids.running(fields) else None


def _locked(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        give_to_owner_of(path.parent, handle)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.read(handle, _BYTES_MAX)
        os.close(handle)
        try:
            word = msgspec.json.decode(said, type=Word)
            holder = f"pid {word.pid} probes ({word.what})"
        except msgspec.DecodeError:
            holder = "another probe runs"
        raise Refused(f"{path}: {holder}") from None
    except OSError:
        os.close(handle)
        raise
    return handle


def _write(handle: int, word: Word) -> None:
    content = msgspec.json.encode(word)
    os.pwrite(handle, content, 0)
    os.ftruncate(handle, len(content))

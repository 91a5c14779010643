"""The release window: for a while the agent holds no card, so that an operator can reset or cut one anew.

    release       one line "BOOT_ID UNTIL_BOOTTIME_SECONDS": somebody wants the window open until then
    release.held  the same line, a blank, and a word: what the agent that runs made of it

Both lie beside the socket of the jobs. The end counts on CLOCK_BOOTTIME of one boot: no step of the wall
clock and no forgotten file keeps a window open, and `SECONDS_MAX` bounds what anybody can ask for. Only a
file of root's or of the agent's own user is believed. ``flopwatch agent release`` writes the one and waits
for the other; SIGUSR1 writes the one.

systemd empties that directory when the agent stops. So the agent keeps a request that it honours among its
own data as well, and one that starts while the window is open puts it back: a restart takes no card.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from flopwatch_agent.identity import boot_id

SECONDS_DEFAULT: Final = 600.0
SECONDS_MAX: Final = 86_400.0
_BYTES_MAX: Final = 256
_log = structlog.get_logger()

RELEASED: Final = "released"
STUCK: Final = "stuck"
"""The driver child cannot be ended: something of it stays inside the driver."""


def boottime_seconds() -> float:
    """Return CLOCK_BOOTTIME now."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Window:
    """The two files. Times are CLOCK_BOOTTIME in seconds.

    Args:
        kept: where the agent keeps a request that it honours; None: nowhere, as for who only asks.
    """

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], float] = boottime_seconds,
        boot: str | None = None,
        kept: Path | None = None,
    ) -> None:
        self.path = path
        self._held = path.with_name(path.name + ".held")
        self._now = now
        self._boot = boot_id() if boot is None else boot
        self._kept = kept
        # Where only the request is missing, somebody has taken it back.
        if kept is not None and not (path.exists() or self.is_held) and (line := _read(kept)):
            with contextlib.suppress(OSError):
                _write(path, line)

    # ---- who asks

    def ask(self, seconds: float) -> str:
        """Write the request and return its line; OSError where the place cannot be written."""
        until = self._now() + min(seconds, SECONDS_MAX)
        line = f"{self._boot} {until:.3f}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, line)
        return line

    def end(self) -> None:
        """Take the request back."""
        self.path.unlink(missing_ok=True)

    def answer_to(self, line: str) -> str | None:
        """Return the agent's word about a request, None as long as there is none."""
        words = _read(self._held).rsplit(" ", 1)
        return words[1] if len(words) == 2 and words[0] == line else None

    @property
    def is_held(self) -> bool:
        """Return whether an agent says that it holds a window open."""
        return self._held.exists()

    def ask_by_signal(self) -> None:
        """SIGUSR1: ask for the usual time; a place that cannot be written is logged."""
        try:
            self.ask(SECONDS_DEFAULT)
        except OSError as exc:
            _log.warning("release_not_asked", path=str(self.path), error=str(exc))

    # ---- the agent

    def open_until(self) -> float | None:
        """Return the end of the window that is asked for, None where none is open now."""
        try:
            owner = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return None
        if owner.st_uid not in (0, os.geteuid()) or not stat.S_ISREG(owner.st_mode):
            return None
        boot, _, text = _read(self.path).partition(" ")
        try:
            until = float(text)
        except ValueError:
            return None
        now = self._now()
        return until if boot == self._boot and now < until <= now + SECONDS_MAX else None

    def answer(self, word: str) -> None:
        """Say what was made of the request that is there."""
        with contextlib.suppress(OSError):
            line = _read(self.path)
            _write(self._held, f"{line} {word}")
            if self._kept is not None:
                _write(self._kept, line)

    def close(self) -> None:
        """Take the files away: the window is over."""
        for path in (self.path, self._held, self._kept):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(_BYTES_MAX).strip()
    except OSError:
        return ""


def _write(path: Path, line: str) -> None:
    """Write the file whole, readable for everybody: it holds no secret."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(line + "\n", encoding="ascii")
    scratch.chmod(0o644)
    scratch.replace(path)

"""Who else is on the card that is being probed: the parent's side of `watch`.

A thread takes what the child says; `stop_reason` only looks at it, so it may be asked as often as one likes.
Whoever cannot be told to be ours is somebody: a probe ends too early rather than too late.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Final

import msgspec

from flopwatch_agent.probing.lock import Refused, descends
from flopwatch_agent.probing.watch import Found, Line, Refusal, Seen

START_SECONDS_MAX: Final = 15.0
SILENCE_SECONDS_MAX: Final = 2.0
"""A driver that makes a context keeps other callers waiting, but not for this long."""

_lines: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)


class Witness:
    """Watches one card, from its making to `close`.

    Args:
        selector: UUID of the card, or its index in PCI order.

    Attributes:
        card: as the driver names it.

    Raises:
        Refused: no such card, or no driver.
    """

    def __init__(self, selector: str) -> None:
        self._child = subprocess.Popen(
            (sys.executable, "-P", "-m", "flopwatch_agent.probing.watch", selector),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._changed = threading.Condition()
        self._found: Found | None = None
        self._stop: str | None = None
        self._seen = False
        self._heard = time.monotonic()
        self._ours: set[int] = {os.getpid()}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._seen or self._stop, START_SECONDS_MAX)
            found, stop = self._found, self._stop
        if found is None or not (self._seen or stop):
            self.close()
            raise Refused(stop or "the driver does not answer")
        self.card: Found = found

    def stop_reason(self) -> str | None:
        """Return why a probe must not be on the card; None: nobody else is."""
        if self._stop is None and time.monotonic() - self._heard > SILENCE_SECONDS_MAX:
            return "the driver no longer says who is on the card"
        return self._stop

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.wait()
        self._thread.join()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for text in self._child.stdout:
            try:
                self._hear(_lines.decode(text))
            except msgspec.DecodeError:
                break
        self._say_stop("nobody watches the card any more")

    def _hear(self, line: Line) -> None:
        self._heard = time.monotonic()
        if isinstance(line, Found):
            self._found = line
            if line.cut:
                self._say_stop("the card is cut into MIG devices")
        elif isinstance(line, Refusal):
            self._say_stop(line.text)
        else:
            self._see(line)

    def _see(self, line: Seen) -> None:
        if line.pids is None:
            self._say_stop("the driver does not list the card's processes")
            return
        for pid in line.pids:
            if pid not in self._ours and descends(pid, os.getpid()):
                self._ours.add(pid)
            elif pid not in self._ours:
                self._say_stop(f"process {pid} is on the card")
        self._ours &= {os.getpid(), *line.pids}
        if not self._seen:
            with self._changed:
                self._seen = True
                self._changed.notify_all()

    def _say_stop(self, reason: str) -> None:
        with self._changed:
            self._stop = self._stop or reason
            self._changed.notify_all()

"""A child process of the collector that may die: started again, never waited for by anything else.

It stays in the collector's process group, inherits its environment, and reads its standard input, a pipe
that closes when the collector goes, however it goes: that is the child's sign to end. It inherits no
socket. Its first line of output says where it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from flopwatch_proto.errors import FlopwatchError, UsageError

BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
STOP_SECONDS_MAX: Final = 5.0
USAGE_EXIT: Final = 2

log = structlog.get_logger()


class ChildEndedError(FlopwatchError):
    """A child ended before it said where it listens; it has said why."""


class Child:
    """Keeps one child process running. Attributes: restarts: how often it was started again."""

    def __init__(
        self, name: str, command: Callable[[], Sequence[str]], said: Callable[[str], None]
    ) -> None:
        """command: built anew for every start; said: called with each start's first line."""
        self.restarts = 0
        self._name = name
        self._command = command
        self._said = said
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The child's pid while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def start(self) -> None:
        """Start it and wait for its first line.

        Raises:
            UsageError: it ended with the exit code of a wrong configuration; it has said why.
            ChildEndedError: it ended for another reason.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self._command(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            if code == USAGE_EXIT:
                raise UsageError("")
            raise ChildEndedError(f"{self._name} ended with {code} before it was ready")
        self._said(line.decode().strip())

    async def keep(self) -> None:
        """Start it again whenever it ends; runs until cancelled."""
        failures = 0
        while True:
            if self._process is not None:
                code = await self._process.wait()
                log.warning("child_ended", child=self._name, code=code)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            try:
                await self.start()
            except (FlopwatchError, OSError) as exc:
                failures += 1
                log.warning("child_failed", child=self._name, reason=str(exc))
            else:
                failures = 0
                self.restarts += 1

    async def stop(self) -> None:
        """Close its pipe and wait; end it where it does not listen."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

"""The driver child as the agent sees it: one generation after the other, each on a leash.

    idle ──ask──► waiting ──reply──► idle
                     │ deadline: ChildSilent, now and on every ask until the reply
                     ├── terminate_after: SIGTERM  (the child ends between two calls into the driver)
                     └── kill_after: SIGKILL, the generation is abandoned
    end of the pipe ──► ChildGone; the next generation starts after a backoff

A process inside a driver call that never returns cannot be killed either. So an abandoned child is not
waited for, and after a few of them no more are started: each may hold a card for ever (`abandoned`).
While it reads, the child keeps the card it is at in a scrap of shared memory: the parent learns from it
where a silent one hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import psutil

from flopwatch_agent.driver.messages import (
    LENGTH_BYTES,
    QuitRequest,
    Reply,
    Request,
    body_length,
    frame,
    parse_reply,
)
from flopwatch_agent.sources.abandoned import Abandoned


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What a driver child may take.

    Attributes:
        deadline_seconds: of one read of all cards.
        terminate_after_seconds: silence before SIGTERM.
        kill_after_seconds: silence before SIGKILL.
        abandoned_max: children killed that way in one boot before no more are started.
        backoff_first_seconds: pause before the next generation; doubles with each that read nothing.
        quit_seconds: how long a child may take to end when asked to.
    """

    deadline_seconds: float = 5.0
    terminate_after_seconds: float = 30.0
    kill_after_seconds: float = 60.0
    abandoned_max: int = 3
    backoff_first_seconds: float = 1.0
    backoff_seconds_max: float = 30.0
    quit_seconds: float = 3.0
    rss_bytes_max: int = 150 * 1024 * 1024
    fds_max: int = 512


class ChildSilent(Exception):
    """No reply within the deadline.

    Attributes:
        seconds: of silence so far.
        at: slot of the card it hangs at; empty where it is at none.
        stopped: no more children are started.
    """

    def __init__(self, seconds: float, *, at: str = "", stopped: bool = False) -> None:
        super().__init__(f"no reply for {seconds:.1f} s")
        self.seconds = seconds
        self.at = at
        self.stopped = stopped


class ChildGone(Exception):
    """There is no child now. Attributes: status: exit status of the last one, None before the first."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"the driver child ended with status {status}")
        self.status = status


class DriverChild:
    """The child, and its successors.

    Attributes:
        generation: counts the children started; a reply belongs to the generation of its ask.
        fruitless: generations in a row that ended without being praised.
        late: the last reply that came after its deadline; its readings are old, its events are not.
    """

    def __init__(
        self,
        limits: ChildLimits,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        abandoned: Abandoned | None = None,
    ) -> None:
        self.generation = 0
        self.fruitless = 0
        self.late: Reply | None = None
        self._limits = limits
        self._environment = None if environment is None else dict(environment)
        self._clock = clock
        self._abandoned = abandoned or Abandoned()
        self._progress = os.memfd_create("flopwatch-progress")
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: asyncio.Task[Reply] | None = None
        self._asked_at = 0.0
        self._terminated = False
        self._start_at = 0.0
        self._status: int | None = None
        self._silent_since: float | None = None

    @property
    def pid(self) -> int | None:
        """Return the pid of the running child, or None."""
        return self._process.pid if self._process is not None else None

    async def ask(self, request: Request, until: float) -> Reply:
        """Send a request, and return its reply.

        Args:
            until: deadline, on the clock given to the constructor.

        Raises:
            ChildSilent: no reply by then, or the reply to an earlier request is still out.
            ChildGone: the child ended, or the next one may not start yet.
        """
        if self._waiting is not None:
            await self._chase()
        if self._process is None:
            if self._is_stopped():
                self._silent_since = self._silent_since or self._clock()
                raise ChildSilent(self._silence(), stopped=True)
            await self._start()
        self._asked_at = self._clock()
        self._waiting = asyncio.create_task(self._exchange(request), name="driver-reply")
        return await self._reply(until)

    def praise(self) -> None:
        """Say that the running child did its work: its successor need not wait long."""
        self.fruitless = 0
        self._silent_since = None

    async def _start(self) -> None:
        if self._clock() < self._start_at:
            raise ChildGone(self._status)
        os.ftruncate(self._progress, 0)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "flopwatch_agent.driver", str(self._progress)),
                pass_fds=(self._progress,),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
            )
        except OSError as exc:  # no memory or no process left
            self._end(None)
            raise ChildGone(None) from exc
        self._abandoned.started(self._process.pid)
        self._terminated = False
        self.generation += 1

    async def _exchange(self, request: Request) -> Reply:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(frame(request))
        prefix = await process.stdout.readexactly(LENGTH_BYTES)
        return parse_reply(await process.stdout.readexactly(body_length(prefix)))

    async def _reply(self, until: float) -> Reply:
        waiting = self._waiting
        assert waiting is not None
        done, _ = await asyncio.wait({waiting}, timeout=max(0.0, until - self._clock()))
        if not done:
            self._silent_since = self._silent_since or self._asked_at
            raise ChildSilent(self._silence(), at=self._at())
        self._waiting = None
        try:
            return waiting.result()
        except (asyncio.IncompleteReadError, OSError) as exc:
            await self._bury()
            raise ChildGone(self._status) from exc
        except (ValueError, msgspec.DecodeError) as exc:
            # Something else wrote into the pipe: nothing that comes after can be trusted.
            self._kill()
            await self._bury()
            raise ChildGone(self._status) from exc

    async def _chase(self) -> None:
        """Deal with a reply that is still out; returns when the child may be asked again."""
        assert self._waiting is not None
        if self._waiting.done():
            # An end of the pipe shows here too.
            self.late = await self._reply(self._clock())
            return
        silence = self._clock() - self._asked_at
        process = self._process
        assert process is not None
        if silence >= self._limits.kill_after_seconds:
            self._abandon()
        elif silence >= self._limits.terminate_after_seconds and not self._terminated:
            self._terminated = True
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        raise ChildSilent(self._silence(), at=self._at(), stopped=self._is_stopped())

    async def is_over(self) -> bool:
        """Deal with a reply that is still out; return whether nothing is waited for any more.

        Raises:
            ChildGone: the child ended.
        """
        try:
            if self._waiting is not None:
                await self._chase()
        except ChildSilent:
            return self._waiting is None
        return True

    def _is_stopped(self) -> bool:
        return len(self._abandoned.pids) >= self._limits.abandoned_max

    def _silence(self) -> float:
        return self._clock() - (self._silent_since or self._asked_at)

    def _at(self) -> str:
        return os.pread(self._progress, 64, 0).decode("ascii", "replace").strip("\0 ")

    def _abandon(self) -> None:
        assert self._waiting is not None
        assert self._process is not None
        self._abandoned.add(self._process.pid)
        self._kill()
        self._waiting.cancel()
        self._waiting = None
        self._end(None)

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _bury(self) -> None:
        """Collect the child whose pipe ended; one that does not end by itself is killed."""
        assert self._process is not None
        try:
            async with asyncio.timeout(self._limits.quit_seconds):
                self._end(await self._process.wait())
        except TimeoutError:
            self._kill()
            self._end(None)

    def _end(self, status: int | None, *, wanted: bool = False) -> None:
        """Forget the child and plan the next one."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        self._status = status
        if wanted:
            self._start_at = self._clock()
            return
        pause = self._limits.backoff_first_seconds * 2**self.fruitless
        self._start_at = self._clock() + min(pause, self._limits.backoff_seconds_max)
        self.fruitless = min(self.fruitless + 1, 16)

    def is_bloated(self) -> bool:
        """Return whether the child holds more memory or descriptors than it may."""
        if self._process is None:
            return False
        try:
            process = psutil.Process(self._process.pid)
            rss, fds = process.memory_info().rss, process.num_fds()
        except psutil.Error:
            return False
        return rss > self._limits.rss_bytes_max or fds > self._limits.fds_max

    async def quit(self) -> bool:
        """End the child in good order; the next ask starts another one at once.

        Returns:
            False where it does not end: a driver call that cannot be interrupted holds it.
        """
        if self._process is None:
            return True
        process = self._process
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        elif process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(frame(QuitRequest()))
        status = None
        try:
            async with asyncio.timeout(self._limits.quit_seconds):
                status = await process.wait()
        except TimeoutError:
            self._kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.quit_seconds):
                    status = await process.wait()
        if status is None:
            self._abandoned.add(process.pid)
        self._end(status, wanted=True)
        return status is not None

    async def close(self) -> bool:
        """End the child for good, as `quit` does; a second time is nothing."""
        ended = await self.quit()
        if self._progress >= 0:
            os.close(self._progress)
        self._progress = -1
        return ended

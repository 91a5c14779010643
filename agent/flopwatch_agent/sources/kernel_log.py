"""Xids, SXids and lost cards from the kernel log: what the driver's event set does not say.

``journalctl -k -f -o json`` where it can be read (group systemd-journal), else ``/dev/kmsg`` (needs
CAP_SYSLOG or an open ``kernel.dmesg_restrict``), else nothing, which is told once as an event. journalctl
is a child; one that ends is started again after 1 s, doubling to 60 s, behind the last line it gave. Lines
before the agent's start are not read. At most `LINES_MAX` wait for a read, the rest is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_agent.events.kernel_lines import KernelLines
from flopwatch_agent.sources import NoDevice, SourceReport
from flopwatch_agent.sources.pci import PCI_ROOT, nvidia_slots
from flopwatch_proto.v1 import telemetry_pb2 as pb

LINES_MAX: Final = 10_000
_LINE_BYTES_MAX: Final = 256 * 1024
_KMSG_BYTES: Final = 8192
_BACKOFF_SECONDS: Final = (1.0, 60.0)
_PROBE_SECONDS: Final = 5.0

_log = structlog.get_logger()


class KernelLog:
    """The source ``kernel_log``: it has no devices, only events. Attributes: dropped_total: lines."""

    name = "kernel_log"

    def __init__(
        self,
        *,
        journalctl: Sequence[str] = ("journalctl",),
        kmsg: Path = Path("/dev/kmsg"),
        pci_root: Path = PCI_ROOT,
        backoff_seconds: tuple[float, float] = _BACKOFF_SECONDS,
    ) -> None:
        self.dropped_total = 0
        self._command = (*journalctl, "-k", "-f", "-o", "json", "--no-pager")
        self._kmsg_path = kmsg
        self._pci_root = pci_root
        self._backoff_seconds = backoff_seconds
        self._lines = KernelLines()
        self._waiting: deque[tuple[str, int]] = deque()
        self._events: list[pb.Event] = []
        self._cursor = ""
        self._follower: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._kmsg: int | None = None

    async def start(self) -> None:
        """Open the log; NoDevice on a host without an NVIDIA card."""
        if not nvidia_slots(self._pci_root):
            raise NoDevice("no NVIDIA card on the PCI bus: the kernel log is not read")
        if await self._is_readable():
            self._follower = asyncio.create_task(self._follow(), name="kernel-log")
            return
        try:
            self._kmsg = _at_end(self._kmsg_path)
        except OSError as exc:
            text = f"journalctl shows no kernel log, {self._kmsg_path}: {exc.strerror}"
            _log.warning("kernel_log_unreadable", text=text)
            now = wall_unix_ms(SystemClock())
            event = pb.Event(kind="kernel_log_unreadable", time_unix_ms=now, text=text)
            self._events.append(event)

    async def read(self) -> SourceReport:
        """Return the events of the lines that came; never waits."""
        if self._kmsg is not None:
            self._read_kmsg(self._kmsg)
        events, self._events = self._events, []
        while self._waiting:
            events += self._lines.read(*self._waiting.popleft())
        return SourceReport(events=tuple(events))

    async def close(self) -> None:
        """End the child."""
        if self._follower is not None:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        if self._kmsg is not None:
            os.close(self._kmsg)
        self._follower = self._kmsg = None

    def _take(self, message: str, time_unix_ms: int) -> None:
        if "NVRM" not in message and "SXid" not in message:
            return
        if len(self._waiting) >= LINES_MAX:
            self._waiting.popleft()
            self.dropped_total += 1
        self._waiting.append((message, time_unix_ms))

    # ---- journalctl

    async def _is_readable(self) -> bool:
        """Return whether journalctl is there and shows at least one line of the kernel."""
        if shutil.which(self._command[0]) is None:
            return False
        probe = [word for word in self._command if word != "-f"]
        try:
            process = await asyncio.create_subprocess_exec(
                *(*probe, "-n", "1"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return False
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                said, _ = await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return False
        return process.returncode == 0 and bool(said.strip())

    async def _follow(self) -> None:
        pause, pause_max = self._backoff_seconds
        while True:
            began = time.monotonic()
            try:
                await self._follow_one()
            except OSError as exc:  # no process left
                _log.warning("kernel_log_not_followed", error=str(exc))
            finally:
                await self._end()
            if time.monotonic() - began > pause_max:
                pause = self._backoff_seconds[0]
            await asyncio.sleep(pause)
            pause = min(pause * 2, pause_max)

    async def _follow_one(self) -> None:
        since = ("--after-cursor", self._cursor) if self._cursor else ("-n", "0")
        self._process = await asyncio.create_subprocess_exec(
            *(*self._command, *since),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE_BYTES_MAX,
        )
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than a line may be; the reader has thrown it away
                self.dropped_total += 1
                continue
            if not line:
                return
            self._take_json(line)

    def _take_json(self, line: bytes) -> None:
        try:
            entry = msgspec.json.decode(line)
            at_unix_ms = int(entry["__REALTIME_TIMESTAMP"]) // 1000
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            self.dropped_total += 1
            return
        self._cursor = str(entry.get("__CURSOR", ""))
        self._take(_text(entry.get("MESSAGE")), at_unix_ms)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it only reads
        await process.wait()

    # ---- /dev/kmsg

    def _read_kmsg(self, descriptor: int) -> None:
        for _ in range(LINES_MAX):
            try:
                record = os.read(descriptor, _KMSG_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno == errno.EPIPE:  # the kernel overwrote lines that were not read
                    self.dropped_total += 1
                    continue
                return
            if not record:
                return
            head, _, message = record.decode("utf-8", "replace").partition(";")
            self._take(message.partition("\n")[0], _kmsg_unix_ms(head))


def _at_end(kmsg: Path) -> int:
    descriptor = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _text(message: Any) -> str:
    """journalctl writes a message that is not UTF-8 as a list of bytes, and one too long as null."""
    if isinstance(message, list):
        with contextlib.suppress(TypeError, ValueError):
            return bytes(message).decode("utf-8", "replace")
    return message if isinstance(message, str) else ""


def _kmsg_unix_ms(head: str) -> int:
    """Return the wall clock of a record; its own stamp is microseconds on CLOCK_MONOTONIC."""
    clock = SystemClock()
    fields = head.split(",")
    if len(fields) < 3 or not fields[2].isdigit():
        return wall_unix_ms(clock)
    age_ms = round(clock.monotonic_seconds() * 1000) - int(fields[2]) // 1000
    return wall_unix_ms(clock) - max(0, age_ms)

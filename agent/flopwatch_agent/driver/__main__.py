"""``python -m flopwatch_agent.driver [FD]``: answer requests until told to quit or the parent is gone.

FD: a file in shared memory that holds the slot of the card being read, for a parent that waits in vain.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

from flopwatch_agent.driver import inventory
from flopwatch_agent.driver.card import Card
from flopwatch_agent.driver.events import XidEvents
from flopwatch_agent.driver.library import UNKNOWN, DriverUnusable, Library
from flopwatch_agent.driver.messages import (
    EXIT_REINIT,
    LENGTH_BYTES,
    DriverEvent,
    EventsReply,
    EventsRequest,
    Failure,
    InventoryReply,
    InventoryRequest,
    QuitRequest,
    ReadReply,
    Reply,
    Request,
    body_length,
    frame,
    parse_request,
)
from flopwatch_agent.driver.processes import ComputeProcesses

_COUNT_READS: Final = 10
"""The number of cards is asked for in every tenth reading."""


class Driver:
    """The opened driver and the cards of the last inventory."""

    def __init__(self, progress: int | None = None) -> None:
        """Open it; DriverUnusable when it cannot be."""
        self._progress = progress
        self._library = Library()
        self._processes = ComputeProcesses(self._library)
        self._cards: list[Card] = []
        self._listed_count: int | None = None
        self._events: XidEvents | None = None
        self._undelivered: list[DriverEvent] = []
        self._reads = 0

    def answer(self, request: Request) -> Reply:
        """Return the reply; DriverUnusable when the driver as a whole fails meanwhile."""
        match request:
            case InventoryRequest(skip=skip):
                return self._inventory(skip)
            case EventsRequest():
                return EventsReply(events=self._drain())
            case _:
                return self._read()

    def _inventory(self, skip: Sequence[str]) -> InventoryReply:
        self._forget()
        listed, unreachable = inventory.list_cards(self._library)
        self._listed_count = len(listed) + unreachable
        self._cards = [
            Card(self._library, card, self._processes, first_read=i)
            for i, card in enumerate(listed)
            if card.info.slot not in skip
        ]
        self._events = XidEvents(self._library, listed)
        self._events.start()
        return InventoryReply(
            driver_version=self._library.text("nvmlSystemGetDriverVersion"),
            nvml_version=self._library.text("nvmlSystemGetNVMLVersion"),
            devices=[card.info for card in listed],
            unreachable=unreachable,
        )

    def _read(self) -> ReadReply:
        readings = []
        for card in self._cards:
            self._is_at(card.info.slot)
            readings.append(card.read())
        self._is_at("")
        if self._cards and all(card.silent for card in self._cards):
            # What a container sees when its device nodes were taken away: only a new process helps.
            raise DriverUnusable("every call", UNKNOWN)
        self._reads += 1
        stale = any(card.stale for card in self._cards)
        if self._reads % _COUNT_READS == 0:
            count = inventory.count(self._library)
            stale |= count is not None and count != self._listed_count
        return ReadReply(
            devices=readings,
            events=self._drain(),
            stale=stale,
        )

    def _is_at(self, slot: str) -> None:
        if self._progress is not None:
            os.pwrite(self._progress, slot.encode().ljust(64, b"\0"), 0)

    def _forget(self) -> bool:
        """Free what belongs to the last inventory; False when the event thread is stuck."""
        for card in self._cards:
            card.close()
        self._cards = []
        if self._events is None:
            return True
        ended = self._events.stop()
        self._undelivered += self._events.drain()
        return ended

    def _drain(self) -> list[DriverEvent]:
        events, self._undelivered = self._undelivered, []
        return events + (self._events.drain() if self._events else [])

    def close(self) -> None:
        """Let go of the driver, unless a thread of ours is stuck in it."""
        if self._forget():
            self._library.close()


def _claim_stdout() -> int:
    """Return a descriptor of the reply pipe; what anyone else prints goes to stderr from here on."""
    replies = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _read_exactly(fd: int, size: int) -> bytes | None:
    """Return the bytes, or None when the parent is gone."""
    parts = b""
    while len(parts) < size:
        part = os.read(fd, size - len(parts))
        if not part:
            return None
        parts += part
    return parts


def _next_request(fd: int) -> Request | None:
    prefix = _read_exactly(fd, LENGTH_BYTES)
    body = _read_exactly(fd, body_length(prefix)) if prefix is not None else None
    return None if body is None else parse_request(body)


def _send(fd: int, reply: Reply) -> None:
    data = frame(reply)
    while data:
        data = data[os.write(fd, data) :]


def _serve(requests: int, replies: int, progress: int | None = None) -> int:
    """Answer requests; return the exit status."""
    driver: Driver | None = None
    status = 0
    try:
        while (request := _next_request(requests)) is not None:
            if isinstance(request, QuitRequest):
                break
            driver = driver or Driver(progress)
            _send(replies, driver.answer(request))
    except DriverUnusable as exc:
        failure: Failure = exc.failure
        _send(replies, failure)
        status = EXIT_REINIT
    except BrokenPipeError:
        status = 0
    finally:
        if driver is not None:
            _close(driver)
    return status


def _close(driver: Driver) -> None:
    try:
        driver.close()
    except DriverUnusable:
        return  # it is gone already


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Run the child. A signal ends it between two calls into the driver, never inside one."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C of a terminal is the parent's to handle
    gc.freeze()  # what stands now lives as long as the process
    status = 1
    try:
        progress = int(sys.argv[1]) if len(sys.argv) > 1 else None
        status = _serve(sys.stdin.fileno(), _claim_stdout(), progress)
    except SystemExit:
        status = 0
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        # Not through the interpreter's end: a thread stuck in the driver would hold it up.
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()

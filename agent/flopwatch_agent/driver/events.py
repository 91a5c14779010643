"""Xids, from the driver's own event set, in a thread of their own.

The wait is at most a second, so that the thread ends soon after it is told to; only then is the set
freed. A wait that fails (a lost card makes every wait fail) registers anew after 1 s, doubling to 30 s.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.inventory import Listed
from flopwatch_agent.driver.library import SUCCESS, TIMEOUT, UNKNOWN, Library, LibraryError
from flopwatch_agent.driver.messages import DriverEvent

WAIT_MS: Final = 1000
_BACKOFF_SECONDS_MAX: Final = 30.0
_EVENTS_MAX: Final = 1000
_NO_INSTANCE: Final = 0xFFFFFFFF


class XidEvents:
    """The thread and its queue; a full queue drops the oldest."""

    def __init__(self, library: Library, cards: Sequence[Listed]) -> None:
        self._library = library
        self._cards = {int(card.handle.value or 0): card for card in cards}
        self._events: deque[DriverEvent] = deque(maxlen=_EVENTS_MAX)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="xid", daemon=True)

    def start(self) -> None:
        """Begin to watch; nothing happens where the library has no event sets."""
        if self._cards and self._library.function("nvmlEventSetCreate") is not None:
            self._thread.start()

    def drain(self) -> list[DriverEvent]:
        """Return the events that no one has taken yet."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def stop(self, timeout_seconds: float = 1.5) -> bool:
        """End the thread; False when it is stuck in the driver, which must then be left alone."""
        self._ending.set()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _watch(self) -> None:
        backoff_seconds = 1.0
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                watched = self._register_and_wait()
            except LibraryError:
                watched = True
            if not watched:
                return
            if time.monotonic() - began > _BACKOFF_SECONDS_MAX:
                backoff_seconds = 1.0
            self._ending.wait(backoff_seconds)
            backoff_seconds = min(backoff_seconds * 2, _BACKOFF_SECONDS_MAX)

    def _register_and_wait(self) -> bool:
        """Watch until a wait fails; False when no card has these events."""
        events = ctypes.c_void_p()
        if self._library.call("nvmlEventSetCreate", ctypes.byref(events)) != SUCCESS:
            return True
        try:
            codes = [self._register(card.handle, events) for card in self._cards.values()]
            if SUCCESS not in codes:
                return False
            while not self._ending.is_set():
                data = pynvml.c_nvmlEventData_t()
                code = self._wait(events, data)
                if code == SUCCESS:
                    self._note(data)
                elif code != TIMEOUT:
                    return True
            return True
        finally:
            self._library.call("nvmlEventSetFree", events)

    def _register(self, handle: Any, events: Any) -> int:
        kind = ctypes.c_ulonglong(pynvml.nvmlEventTypeXidCriticalError)
        try:
            return self._library.call("nvmlDeviceRegisterEvents", handle, kind, events)
        except LibraryError:
            return int(UNKNOWN)

    def _wait(self, events: Any, data: Any) -> int:
        return self._library.call(
            "nvmlEventSetWait_v2", events, ctypes.byref(data), ctypes.c_uint(WAIT_MS)
        )

    def _note(self, data: Any) -> None:
        if data.eventType != pynvml.nvmlEventTypeXidCriticalError or data.eventData == 0:
            return
        card = self._cards.get(ctypes.cast(data.device, ctypes.c_void_p).value or 0)
        instance = data.gpuInstanceId
        self._events.append(
            DriverEvent(
                slot=card.info.slot if card is not None else "",
                code=data.eventData,
                time_unix_ms=time.time_ns() // 1_000_000,
                gpu_instance=None if instance == _NO_INSTANCE else instance,
            )
        )

"""The datagrams of this process: one a second to the agent's unix socket, and never in the way.

    training thread: meter.step()  ──► plain counters  ◄── this thread, once a second ──► jobs.sock

A daemon thread of its own reads the counters and sends without blocking; a change of phase wakes it. Where
no agent listens, the datagram is dropped and counted; nothing is raised and nothing waits. The agent knows
the process by its pid, so a process has one sender, which sums its meters.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

PERIOD_SECONDS: Final = 1.0
EVENTS_MAX: Final = 64
"""Checkpoints and evaluations that wait to be sent; the thread is woken for each."""

_LABEL_CHARACTERS_MAX: Final = 128
_SOCKETS: Final = (
    Path("/run/flopwatch/jobs.sock"),
    Path("~/.local/share/flopwatch/jobs.sock"),
)


class Counters(Protocol):
    """What the sender reads of a meter."""

    model_flops_total: float
    tokens_total: float
    steps_total: int
    step_seconds_total: float
    reported_seconds_total: float
    reported_mfu_seconds_total: float
    step_number: int | None
    counts_flops: bool
    reported_factor: float | None
    phase: str | None

    def labels(self) -> Mapping[str, str | None]:
        """Return job, team, dtype, convention, workload_class, device."""
        ...


@dataclass(slots=True)
class _Counts:
    """What meters counted, summed. Attributes: reported_flops: None until a meter knows its factor."""

    flops: float = 0.0
    tokens: float = 0.0
    steps: int = 0
    step_ms: float = 0.0
    reported_ms: float = 0.0
    reported_mfu_ms: float = 0.0
    reported_flops: float | None = None

    def add(self, meter: Counters) -> None:
        self.flops += meter.model_flops_total
        self.tokens += meter.tokens_total
        self.steps += meter.steps_total
        self.step_ms += meter.step_seconds_total * 1e3
        self.reported_ms += meter.reported_seconds_total * 1e3
        self.reported_mfu_ms += meter.reported_mfu_seconds_total * 1e3
        if meter.reported_factor is not None:
            mine = meter.model_flops_total * meter.reported_factor
            self.reported_flops = (self.reported_flops or 0.0) + mine


class Sender:
    """Sends the sum of the meters of this process.

    Attributes:
        sent: datagrams that an agent took.
        dropped: datagrams that nobody took.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.sent = 0
        self.dropped = 0
        self._environment = environment
        self._meters: list[Counters] = []
        self._ended = _Counts()  # of meters that were closed
        self._events: deque[tuple[str, float | None]] = deque(maxlen=EVENTS_MAX)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._pid = 0

    def add(self, meter: Counters) -> None:
        """Take a meter's counters along from now on; the first one starts the thread."""
        with self._lock:
            if self._pid != os.getpid():
                self._begin()
            self._meters.append(meter)
            if self._thread is None:
                self._stop, self._wake = threading.Event(), threading.Event()
                self._send(event="start")
                self._thread = threading.Thread(
                    target=self._run,
                    args=(self._stop, self._wake),
                    name="flopwatch",
                    daemon=True,
                )
                self._thread.start()

    def tell(self, event: str | None, event_ms: float | None = None) -> None:
        """Have the thread send at once: a phase began, or `event` is over. Neither locks nor sends."""
        if event is not None:
            if len(self._events) == EVENTS_MAX:
                self.dropped += 1
            self._events.append((event, event_ms))
        self._wake.set()

    def remove(self, meter: Counters) -> None:
        """Keep what a meter counted and follow it no longer; after the last one say goodbye."""
        with self._lock:
            if meter not in self._meters or self._pid != os.getpid():
                return
            if len(self._meters) == 1:
                self._goodbye()
                return
            self._meters.remove(meter)
            self._ended.add(meter)

    def exit(self) -> None:
        """Send the last counters; a forked child, which counted nothing, stays silent."""
        with self._lock:
            if self._meters and self._pid == os.getpid():
                self._goodbye()

    def _goodbye(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread = None
        self._send_events()
        self._send(event="exit")
        self._meters.clear()
        self._ended = _Counts()

    def _begin(self) -> None:
        """Start afresh in this process: after a fork the parent's thread and counts are not ours."""
        if self._pid == 0:
            atexit.register(self.exit)
        self._pid = os.getpid()
        self._meters, self._thread, self._ended = [], None, _Counts()
        self._events.clear()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        while not stop.is_set():
            wake.wait(PERIOD_SECONDS)
            wake.clear()
            with self._lock:
                if stop.is_set():
                    return
                if not self._send_events():
                    self._send(event=None)

    def _send_events(self) -> bool:
        """Send a datagram for each event that waits; return whether there was one."""
        sent = False
        while self._events:
            self._send(*self._events.popleft())
            sent = True
        return sent

    def _send(self, event: str | None, event_ms: float | None = None) -> None:
        """Send one datagram, whatever happens."""
        try:
            data = json.dumps(self._message(event, event_ms)).encode()
        except (TypeError, ValueError, RuntimeError):
            self.dropped += 1  # a counter that is no number; the training loop is none the wiser
            return
        for path in self._paths():
            try:
                if self._socket is not None and self._socket.sendto(data, path):
                    self.sent += 1
                    return
            except OSError:
                continue
        self.dropped += 1

    def _paths(self) -> list[str]:
        chosen = self._environment.get("FLOPWATCH_SOCKET")
        return [chosen] if chosen else [str(path.expanduser()) for path in _SOCKETS]

    def _message(self, event: str | None, event_ms: float | None) -> dict[str, object]:
        latest = self._meters[-1]
        counted = replace(self._ended)
        for meter in self._meters:
            counted.add(meter)
        message: dict[str, object] = {
            name: None if text is None else text[:_LABEL_CHARACTERS_MAX]
            for name, text in latest.labels().items()
        }
        message |= {
            "v": 1,
            "pid": self._pid,
            "phase": latest.phase,
            "steps_total": int(counted.steps),
            "step_ms_total": float(counted.step_ms),
            "tokens_total": float(counted.tokens),
            "unix_ms": time.time_ns() // 1_000_000,
        }
        if latest.step_number is not None:
            message["step"] = int(latest.step_number)
        if any(meter.counts_flops for meter in self._meters):
            message["model_flops_total"] = float(counted.flops)
        if counted.reported_ms:
            message["reported_ms_total"] = float(counted.reported_ms)
            message["reported_mfu_ms_total"] = float(counted.reported_mfu_ms)
        if counted.reported_flops is not None:
            message["reported_flops_total"] = float(counted.reported_flops)
        if event is not None:
            message["event"] = event
        if event_ms is not None:
            message["event_ms"] = event_ms
        return message

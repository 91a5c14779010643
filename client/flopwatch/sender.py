"""The datagrams of this process: one a second to the agent's unix socket, and never in the way.

    training thread: meter.step()  ──► plain counters  ◄── this thread, once a second ──► jobs.sock

A daemon thread of its own reads the counters and sends without blocking. Where no agent listens, the
datagram is dropped and counted; nothing is raised and nothing waits. The agent knows the process by its
pid, so a process has one sender, which sums its meters.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

PERIOD_SECONDS: Final = 1.0
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
    counts_flops: bool
    phase: str | None

    def labels(self) -> Mapping[str, str | None]:
        """Return job, team, dtype, convention, workload_class, device."""
        ...


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
        self._ended = [0.0, 0.0, 0]  # FLOPs, tokens, steps of meters that were closed
        self._lock = threading.Lock()
        self._stop = threading.Event()
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
                self._stop = threading.Event()
                self._send(event="start")
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="flopwatch", daemon=True
                )
                self._thread.start()

    def remove(self, meter: Counters) -> None:
        """Keep what a meter counted and follow it no longer; after the last one say goodbye."""
        with self._lock:
            if meter not in self._meters or self._pid != os.getpid():
                return
            if len(self._meters) == 1:
                self._stop.set()
                self._thread = None
                self._send(event="exit")
                self._meters.clear()
                self._ended = [0.0, 0.0, 0]
                return
            self._meters.remove(meter)
            for i, value in enumerate(_counts(meter)):
                self._ended[i] += value

    def exit(self) -> None:
        """Send the last counters; a forked child, which counted nothing, stays silent."""
        with self._lock:
            if self._meters and self._pid == os.getpid():
                self._stop.set()
                self._thread = None
                self._send(event="exit")
                self._meters.clear()

    def _begin(self) -> None:
        """Start afresh in this process: after a fork the parent's thread and counts are not ours."""
        if self._pid == 0:
            atexit.register(self.exit)
        self._pid = os.getpid()
        self._meters, self._thread, self._ended = [], None, [0.0, 0.0, 0]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(PERIOD_SECONDS):
            with self._lock:
                if stop.is_set():
                    return
                self._send(event=None)

    def _send(self, event: str | None) -> None:
        """Send one datagram, whatever happens."""
        try:
            data = json.dumps(self._message(event)).encode()
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

    def _message(self, event: str | None) -> dict[str, object]:
        latest = self._meters[-1]
        flops, tokens, steps = (
            sum(values)
            for values in zip(self._ended, *(_counts(meter) for meter in self._meters), strict=True)
        )
        message: dict[str, object] = {
            name: None if text is None else text[:_LABEL_CHARACTERS_MAX]
            for name, text in latest.labels().items()
        }
        message |= {
            "v": 1,
            "pid": self._pid,
            "phase": latest.phase,
            "steps_total": steps,
            "tokens_total": tokens,
            "unix_ms": time.time_ns() // 1_000_000,
        }
        if any(meter.counts_flops for meter in self._meters):
            message["model_flops_total"] = flops
        if event is not None:
            message["event"] = event
        return message


def _counts(meter: Counters) -> tuple[float, float, int]:
    return float(meter.model_flops_total), float(meter.tokens_total), int(meter.steps_total)

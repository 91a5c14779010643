"""Receivers of pages that keep the state their models keep: PagerDuty's alerts, Slack's messages, beats."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from fake_api import Answering, answering

HANGS_UP: Final = 0
"""Takes the event, and gives no answer."""
LATE: Final = 1
"""Takes the event, and answers when nobody waits any more."""


@dataclass
class PagerDuty:
    """Alerts by dedup key, as the Events API keeps them.

    Attributes:
        answers: what the next requests are answered with: a status, `HANGS_UP` or `LATE`; then `luck`.
        late_seconds: how long an answer of `LATE` takes.
        opened: how often an alert was opened under a key: what somebody was woken for.
    """

    answers: list[int] = field(default_factory=list)
    luck: Callable[[], int] = lambda: 202
    late_seconds: float = 1.0
    open: dict[str, dict[str, Any]] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def take(self, path: str, event: dict[str, Any]) -> int:
        """Take an event; return what it is answered with."""
        with self.lock:
            status = self.answers.pop(0) if self.answers else self.luck()
            if status not in (HANGS_UP, LATE, 202):
                return status
            if path == "/v2/change/enqueue":
                self.changes.append(event)
                return status
            key = event["dedup_key"]
            if event["event_action"] == "resolve":
                if self.open.pop(key, None) is not None:
                    self.closes(key)
            elif key not in self.open:
                self.opens(key)
                self.open[key] = event
            else:
                self.open[key] |= event
            return status

    def opens(self, key: str) -> None:
        """An alert was opened; called with the lock held."""
        self.opened[key] = self.opened.get(key, 0) + 1

    def closes(self, key: str) -> None:
        """An alert was closed; called with the lock held."""

    def stumble(self, chance: random.Random, times: int) -> None:
        """Answer the next requests at random, but never 400."""
        self.answers = [chance.choice((202, 429, 500, HANGS_UP)) for _ in range(times)]


@contextmanager
def pagerduty() -> Iterator[PagerDuty]:
    """A service for the length of a block."""
    with serving(PagerDuty()) as service:
        yield service


_Service = TypeVar("_Service", bound=PagerDuty)


@contextmanager
def serving(service: _Service) -> Iterator[_Service]:
    """A service of one's own making, for the length of a block."""

    class Handler(Answering):
        def do_POST(self) -> None:
            event = self.posted_json()
            assert event["routing_key"] == "canary-key"
            status = service.take(self.path, event)
            if status == HANGS_UP:
                self.close_connection = True
                return
            if status == LATE:
                time.sleep(service.late_seconds)
            self.say(202 if status == LATE else status, {"status": "success"})

        def handle(self) -> None:
            # Whoever asked may have been killed meanwhile, in the middle of what it said.
            with suppress(ConnectionError, json.JSONDecodeError):
                super().handle()

    with answering(Handler) as url:
        service.url = url
        yield service


@dataclass
class Slack:
    """Messages by time stamp. Attributes: threads: what stands below each; error: the next answer."""

    messages: dict[str, dict[str, Any]] = field(default_factory=dict)
    threads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    error: str | None = None
    url: str = ""

    def take(self, path: str, told: dict[str, Any]) -> dict[str, Any]:
        """Take a call of the Web API; return the answer."""
        if self.error is not None:
            error, self.error = self.error, None
            return {"ok": False, "error": error}
        if path == "/api/chat.update":
            self.messages[told["ts"]] = told
            return {"ok": True, "ts": told["ts"], "channel": "C1"}
        if "thread_ts" in told:
            self.threads.setdefault(told["thread_ts"], []).append(told)
            return {"ok": True, "ts": "9.9", "channel": "C1"}
        stamp = f"{len(self.messages) + 1}.0"
        self.messages[stamp] = told
        return {"ok": True, "ts": stamp, "channel": "C1"}


@contextmanager
def slack() -> Iterator[Slack]:
    service = Slack()

    class Handler(Answering):
        def do_POST(self) -> None:
            assert self.headers["Authorization"] == "Bearer canary-key"
            self.say(200, service.take(self.path, self.posted_json()))

    with answering(Handler) as url:
        service.url = url
        yield service


@contextmanager
def watcher() -> Iterator[tuple[str, list[Any]]]:
    """A watcher of heartbeats. Yields its URL and what it heard."""
    heard: list[Any] = []

    class Handler(Answering):
        def do_POST(self) -> None:
            heard.append(
                (self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            )
            self.say(200, {})

    with answering(Handler) as url:
        yield url, heard

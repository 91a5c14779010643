"""What the web process reads from: the collector's read server, the control store, the clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from flopwatch_collector.audit import books
from flopwatch_collector.audit.books import Books
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.telemetry import NO_PARAMETERS
from flopwatch_collector.web.answers import Answers
from flopwatch_collector.web.lookout import Lookout
from flopwatch_proto.errors import RetryableError, UsageError


class Collector(Protocol):
    """The part of `RemoteStore` that is used here."""

    def query(self, sql: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> pa.Table: ...
    def status(self) -> dict[str, Any]: ...
    def metrics(self) -> str: ...
    def agents(self) -> list[dict[str, Any]]: ...


class Control:
    """The control store, opened to read when it is first needed and again after a failure."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._store: ControlStore | None = None
        self._lock = threading.Lock()

    def store(self) -> ControlStore:
        """Return the open store. Raises: RetryableError where it cannot be read now."""
        with self._lock:
            if self._store is None:
                try:
                    self._store = ControlStore.open(self._dsn, migrate=False)
                except UsageError as exc:
                    raise RetryableError(str(exc)) from exc
            return self._store

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            if self._store is not None:
                self._store.close()


@dataclass(slots=True, kw_only=True)
class Sources:
    """Everything a request may ask.

    Attributes:
        deployment: the name pages carry; empty: none.
        pagerduty_secret_file: with what PagerDuty signs its webhooks; empty: none is taken.
        reference_dtypes: cluster → dtype whose peak its waterfall is of.
        rules: settings of the rules, for the gauges of what they say now.
        readings: held while the readings of a capture are in memory: one at a time.
        books: of all clusters; read every 5 minutes, as long as somebody asks.
    """

    collector: Collector
    control: Control
    answers: Answers
    now_unix_ms: Callable[[], int]
    deployment: str = ""
    pagerduty_secret_file: str = ""
    reference_dtypes: Mapping[str, str] = field(default_factory=dict)
    rules: RulesConfig = field(default_factory=RulesConfig)
    listeners: int = field(default=0)
    readings: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    books: Lookout[list[Books]] = field(init=False)

    def __post_init__(self) -> None:
        """Make what reads from the rest."""
        self.books = Lookout(
            lambda: books.read(self.collector, self.now_unix_ms()), self.answers.monotonic_s
        )

"""Marks of the minutes whose lines no longer match their rows.

A commit marks the minutes it touches before it stores the rows (`DirtyMarks.mark`), and settles them
after (`DirtyMarks.settle`). Whoever recomputes a minute notes the time before it reads the rows, and
afterwards clears the marks that are older than that (`clear`). A minute that was touched since, or whose
rows are being stored right now, stays dirty. So:

- a crash between mark and rows costs one recompute;
- a crash between rows and clear costs one recompute;
- a row that arrives while its minute is recomputed is never forgotten.

A process that owns the store alone knows what it marked and does not repeat itself. Where several
collectors share a store, each marks every commit twice, before and after its rows (that one under the
time at which they landed, since somebody else may have read and cleared meanwhile), and a clear leaves
marks younger than ``SKEW_MS`` before the recompute began, in case their clocks differ.

Times are those of the caller, but never run backwards here: a mark is at least as new as every recompute
that was cleared before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from flopwatch_collector.telemetry import Reader

if TYPE_CHECKING:
    from flopwatch_collector.telemetry.store import TelemetryStore

MINUTE_MS: Final = 60_000
SKEW_MS: Final = 5_000

Minute = tuple[str, int]
"""(cluster, start of the minute in unix ms)."""


class Appender(Protocol):
    """The part of the store that marks need."""

    exclusive: bool

    def append(self, table: str, columns: Mapping[str, Sequence[Any]]) -> int: ...


class DirtyMarks:
    """What this process marked. Safe to use from several threads."""

    def __init__(self, store: Appender, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """clock_ns: measures how long a commit took."""
        self._store = store
        self._clock_ns = clock_ns
        self._ahead_ms = 0
        self._lock = threading.Lock()
        self._touched_unix_ms: dict[Minute, int] = {}
        self._in_flight: dict[Minute, int] = {}
        self._began_unix_ms: dict[Minute, int] = {}
        self._newest_unix_ms = 0

    def mark(self, minutes: Iterable[Minute], now_unix_ms: int) -> None:
        """Mark minutes dirty before their rows are stored; `settle` or `abandon` must follow.

        Raises:
            RetryableError: the store failed; nothing is in flight.
        """
        wanted = sorted(set(minutes))
        with self._lock:
            now = self._advance(now_unix_ms)
            self._ahead_ms = max(self._ahead_ms, now - self._clock_ms())
            new = [m for m in wanted if not self._store.exclusive or m not in self._touched_unix_ms]
            for minute in wanted:
                self._in_flight[minute] = self._in_flight.get(minute, 0) + 1
                self._began_unix_ms.setdefault(minute, now_unix_ms)
        try:
            self._write(new, now, cleared=False)
        except BaseException:
            self.abandon(wanted)
            raise
        with self._lock:
            for minute in wanted:
                self._touched_unix_ms[minute] = now

    def settle(self, minutes: Iterable[Minute], now_unix_ms: int) -> None:
        """Say that the rows of marked minutes are stored.

        Raises:
            RetryableError: the store failed; the rows must not be acknowledged.
        """
        wanted = sorted(set(minutes))
        with self._lock:
            landed = now_unix_ms if self._store.exclusive else self._clock_ms() + self._ahead_ms
            now = self._advance(max(now_unix_ms, landed))
        try:
            if not self._store.exclusive:
                self._write(wanted, now, cleared=False)
        finally:
            with self._lock:
                for minute in wanted:
                    self._touched_unix_ms[minute] = now
                    self._land(minute)

    def abandon(self, minutes: Iterable[Minute]) -> None:
        """Say that the rows of marked minutes will not be stored now; the marks stay."""
        with self._lock:
            for minute in set(minutes):
                self._land(minute)

    def begin(self, now_unix_ms: int) -> int:
        """Return when a recompute begins; call it before reading rows and hand the answer to `clear`.

        What is settled from here on counts as later, whatever the time its commit was given.
        """
        with self._lock:
            return self._advance(now_unix_ms)

    def known_until(self, now_unix_ms: int) -> int:
        """Return a time so that rows stored by it are in every answer of the store from here on.

        Rows stored after it may be in an answer, or not: a commit takes its time, and clocks differ.
        """
        with self._lock:
            return min([now_unix_ms - SKEW_MS, *self._began_unix_ms.values()]) - 1

    def clear(self, cluster: str, minutes: Iterable[int], marked_before_unix_ms: int) -> list[int]:
        """Clear minutes that were not touched since a recompute began; return those cleared.

        Args:
            marked_before_unix_ms: what `begin` returned before any row was read.
        """
        before = marked_before_unix_ms - (0 if self._store.exclusive else SKEW_MS)
        cleared: list[int] = []
        with self._lock:
            self._advance(marked_before_unix_ms)
            for start in sorted(set(minutes)):
                minute = (cluster, start)
                if minute in self._in_flight:
                    continue
                if self._touched_unix_ms.get(minute, 0) >= before:
                    continue
                self._touched_unix_ms.pop(minute, None)
                cleared.append(start)
        self._write([(cluster, start) for start in cleared], before - 1, cleared=True)
        return cleared

    def _advance(self, unix_ms: int) -> int:
        self._newest_unix_ms = max(self._newest_unix_ms, unix_ms)
        return self._newest_unix_ms

    def _clock_ms(self) -> int:
        return self._clock_ns() // 1_000_000

    def _land(self, minute: Minute) -> None:
        left = self._in_flight.get(minute, 0) - 1
        if left > 0:
            self._in_flight[minute] = left
        else:
            self._in_flight.pop(minute, None)
            self._began_unix_ms.pop(minute, None)

    def _write(self, minutes: Sequence[Minute], marked_unix_ms: int, *, cleared: bool) -> None:
        if not minutes:
            return
        count = len(minutes)
        self._store.append(
            "dirty",
            {
                "cluster": [cluster for cluster, _ in minutes],
                "minute_unix_ms": [start for _, start in minutes],
                "marked_unix_ms": [marked_unix_ms] * count,
                "cleared": [cleared] * count,
                "version": [2 * marked_unix_ms + int(cleared)] * count,
                "stored_unix_ms": [marked_unix_ms] * count,
            },
        )


def dirty_minutes(reader: Reader, cluster: str | None = None) -> list[Minute]:
    """Return the dirty minutes in order of time, of one cluster or of all."""
    where = "AND cluster = {cluster:String}" if cluster is not None else ""
    table = reader.query(
        "SELECT cluster, minute_unix_ms FROM dirty FINAL "
        f"WHERE NOT cleared {where} ORDER BY minute_unix_ms, cluster",
        {"cluster": cluster} if cluster is not None else {},
    )
    return list(zip(table["cluster"].to_pylist(), table["minute_unix_ms"].to_pylist(), strict=True))


def clear(
    store: TelemetryStore, cluster: str, minutes: Iterable[int], marked_before: int
) -> list[int]:
    """Clear the marks of minutes that a recompute begun at ``marked_before`` (unix ms) covered."""
    return store.marks.clear(cluster, minutes, marked_before)

"""The group commit: what many streams sent, stored in one go, one commit at a time.

A commit takes what arrived within ``COMMIT_SECONDS_MAX`` of its first arrival, or ``COMMIT_ROWS_MAX`` rows if
they come sooner. A store that fails gets the same arrivals again until it takes them. An arrival that the
tables cannot hold is exchanged for the record that it was refused, so that it never blocks the others.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, Protocol, TypeVar

import structlog

from flopwatch_collector.telemetry.arrival import (
    Arrival,
    Origin,
    Unopened,
    commit,
    of_refusal,
    unfit,
)
from flopwatch_collector.telemetry.schema import DAY_MS
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.telemetry.stored_rows import StoredRows
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb

log = structlog.get_logger()

COMMIT_SECONDS_MAX: Final = 0.5
COMMIT_ROWS_MAX: Final = 50_000
UNACKED_BYTES_MAX: Final = 256 * 1024**2
RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0)
QUARANTINE_PAYLOADS_PER_DAY: Final = 10_000
QUARANTINE_BYTES_PER_DAY: Final = 64 * 1024**2
QUARANTINE_BYTES_MAX: Final = 512 * 1024

From = TypeVar("From")
FromWhom = TypeVar("FromWhom", contravariant=True)


class Outcome(Protocol[FromWhom]):
    """Who learns how a commit ended; called on the event loop."""

    def rows(self, rows: StoredRows, stored_unix_ms: int) -> None:
        """Take the interval rows of one cluster that a commit stored, in a thread; `stored` follows."""

    def stored(self, group: Sequence[tuple[FromWhom, Arrival]], stored_unix_ms: int) -> None:
        """Take note that all of the group is on disk."""

    def failed(self, retry_after_seconds: float) -> None:
        """Take note that the store does not take the group now."""

    def committed(self, seconds: float) -> None:
        """Take note that the store serves, and how long this commit took."""


class GroupCommit(Generic[From]):
    """Collects arrivals and commits them. Attributes: unacked_bytes: payload that waits."""

    def __init__(
        self, store: TelemetryStore, outcome: Outcome[From], *, now_unix_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._outcome = outcome
        self._now_unix_ms = now_unix_ms
        self._pending: list[tuple[From, Arrival | Unopened]] = []
        self._first_seconds = 0.0
        self._pending_rows = 0
        self.unacked_bytes = 0
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._stopping = False
        self._quarantine = Allowance()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._task = asyncio.create_task(self._run())

    @property
    def crowded(self) -> bool:
        """Whether agents should hold what they have."""
        return self.unacked_bytes >= UNACKED_BYTES_MAX // 2

    async def put(self, sender: From, arrival: Arrival | Unopened) -> None:
        """Queue an arrival; waits where agents ignore that they have no credit."""
        await self._room.wait()
        if not self._pending:
            self._first_seconds = asyncio.get_running_loop().time()
        self._pending.append((sender, arrival))
        self._pending_rows += arrival.interval_rows
        self._add_bytes(arrival.size_bytes)
        self._arrived.set()
        if self._pending_rows >= COMMIT_ROWS_MAX:
            self._full.set()

    def refusal(self, origin: Origin, batch: pb.Batch, code: str, message: str) -> Arrival:
        """Return the record that a batch is refused for ever, with its payload while there is allowance."""
        keep = self._quarantine.take(len(batch.payload), self._now_unix_ms())
        payload = base64.b64encode(batch.payload).decode() if keep else None
        return of_refusal(origin, batch, code=code, message=message, payload=payload)

    async def ended(self) -> None:
        """Return when it was stopped. Raises: what ended it otherwise; nothing is committed after that."""
        await asyncio.shield(self._task)

    async def stop(self, seconds_max: float) -> bool:
        """Commit what is queued and end; return whether all of it is stored."""
        self._stopping = True
        self._full.set()
        self._arrived.set()
        done, _ = await asyncio.wait({self._task}, timeout=seconds_max)
        self._task.cancel()
        self._thread.shutdown(wait=False)
        return bool(done)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._pending and self._stopping:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._first_seconds + COMMIT_SECONDS_MAX):
                    await self._full.wait()
            group = self._taken()
            self._arrived.clear()
            self._full.clear()
            if self._stopping or self._pending:
                self._arrived.set()
            if self._stopping or self._pending_rows >= COMMIT_ROWS_MAX:
                self._full.set()
            if group:
                await self._commit(group)

    def _taken(self) -> list[tuple[From, Arrival | Unopened]]:
        """Take the arrivals of one commit: what came meanwhile may be more than one should hold."""
        rows = count = 0
        for _, arrival in self._pending:
            if count and rows + arrival.interval_rows > COMMIT_ROWS_MAX:
                break
            rows, count = rows + arrival.interval_rows, count + 1
        group, self._pending = self._pending[:count], self._pending[count:]
        self._pending_rows -= rows
        return group

    async def _commit(self, came: list[tuple[From, Arrival | Unopened]]) -> None:
        size_bytes = sum(arrival.size_bytes for _, arrival in came)
        failures = 0
        group = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._open, came, self._now_unix_ms()
        )
        while True:
            began = time.monotonic()
            now_unix_ms = self._now_unix_ms()
            try:
                stored = await asyncio.get_running_loop().run_in_executor(
                    self._thread, commit, self._store, [a for _, a in group], now_unix_ms
                )
                break
            except PermanentError as exc:
                if not self._exchange_unfit(group, now_unix_ms):
                    # Every arrival fits by itself: ours to repair, and not the agents' to lose.
                    failures = await self._wait(failures, exc)
            except Exception as exc:  # whatever it is, the rows stay until the store takes them
                failures = await self._wait(failures, exc)
        if failures:
            log.info("store_serves", after_failures=failures)
        self._add_bytes(-size_bytes)
        self._outcome.committed(time.monotonic() - began)
        for rows in stored:
            await asyncio.get_running_loop().run_in_executor(
                self._thread, self._outcome.rows, rows, now_unix_ms
            )
        self._outcome.stored(group, now_unix_ms)

    def _open(
        self, came: list[tuple[From, Arrival | Unopened]], now_unix_ms: int
    ) -> list[tuple[From, Arrival]]:
        """Open what came, in the thread that commits: streams are read meanwhile."""
        return [
            (sender, self._opened(one, now_unix_ms) if isinstance(one, Unopened) else one)
            for sender, one in came
        ]

    def _opened(self, one: Unopened, now_unix_ms: int) -> Arrival:
        try:
            return one.opened(now_unix_ms, self._store.oldest_unix_ms(now_unix_ms))
        except PermanentError as exc:
            code, _, message = str(exc).partition(": ")
        except Exception as exc:  # ours to repair; set aside, it does not block the others
            log.exception("batch_unreadable", node=one.origin.node, seq=one.batch.seq)
            code, message = "unreadable", repr(exc)
        return self.refusal(one.origin, one.batch, code, message)

    async def _wait(self, failures: int, why: Exception) -> int:
        seconds = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
        if failures == 0:
            log.error("store_failed", error=str(why))
        self._outcome.failed(seconds)
        await asyncio.sleep(seconds)
        return failures + 1

    def _exchange_unfit(self, group: list[tuple[From, Arrival]], now_unix_ms: int) -> bool:
        exchanged = False
        for i, (sender, arrival) in enumerate(group):
            why = unfit(arrival, now_unix_ms, self._store.oldest_unix_ms(now_unix_ms))
            if why is not None and arrival.batch is not None:
                code, _, message = why.partition(": ")
                refusal = self.refusal(arrival.origin, arrival.batch, code, message)
                group[i] = (sender, refusal)
                exchanged = True
        return exchanged

    def _add_bytes(self, size_bytes: int) -> None:
        self.unacked_bytes += size_bytes
        if self.unacked_bytes > UNACKED_BYTES_MAX:
            self._room.clear()
        else:
            self._room.set()


class Allowance:
    """How much refused payload is kept: so many batches and bytes a day, and no giant."""

    def __init__(self) -> None:
        self._day = 0
        self._payloads = 0
        self._bytes = 0

    def take(self, size_bytes: int, now_unix_ms: int) -> bool:
        """Return whether a payload of this size is kept, and count it."""
        day = now_unix_ms // DAY_MS
        if day != self._day:
            self._day, self._payloads, self._bytes = day, 0, 0
        if (
            size_bytes > QUARANTINE_BYTES_MAX
            or self._payloads >= QUARANTINE_PAYLOADS_PER_DAY
            or self._bytes + size_bytes > QUARANTINE_BYTES_PER_DAY
        ):
            return False
        self._payloads += 1
        self._bytes += size_bytes
        return True

"""The sender: takes pages from the outbox until a receiver accepted each of them.

Lines per (rule, cluster, route) are independent, strictly in order within, retried for ever with full
jitter from 1 to 60 s. A page counts as sent when its 2xx answer is on disk: a crash between the two sends it
again with the same ``Idempotency-Key`` and dedup key, which receivers fold into one.

A page that its receiver refuses (400), or has not taken within 2 minutes, also goes to the fallback route;
a refused one leaves its line, so that it cannot block the resolve behind it.

Whether this collector may send at all is asked before the outbox is read and again before each try
(`paging.turn`). The store is spoken to in a thread of its own: the event loop never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.operations import maintenances, silences
from flopwatch_collector.control.outbox import OutboxRow, row_id
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.paging.channel import Channel, RetryLater
from flopwatch_collector.paging.pace import Pace
from flopwatch_collector.paging.suppression import held_because
from flopwatch_collector.paging.turn import AlwaysTurn, Turn
from flopwatch_proto.errors import PermanentError, RetryableError

BACKOFF_MS_MIN: Final = 1_000
BACKOFF_MS_MAX: Final = 60_000
RESOLVE_TRIES_MIN: Final = 3
"""An alert that stays open for ever is worse than two requests that are refused once more."""
FALLBACK_AFTER_MS: Final = 2 * 60_000
HELD_RECHECK_MS: Final = 10_000
POLL_S: Final = 1.0
SENDS_MAX: Final = 32

Line = tuple[str, str, str]
log = structlog.get_logger()


@dataclass(slots=True)
class SenderCounters:
    """What happened since the start. Attributes: self_alerts: pages that needed the fallback, or had
    none; unrouted: pages for a route that is configured no longer; waits: tries that were left to
    another collector."""

    sent: int = 0
    failed: int = 0
    refused: int = 0
    held: int = 0
    self_alerts: int = 0
    unrouted: int = 0
    waits: int = 0
    store_errors: int = 0


class Sender:
    """Sends what is due over the channels.

    Args:
        control: the store that holds the outbox.
        channels: by route name.
        fallback: name of the fallback route.
        clock: Unix ms now.
        jitter: where the backoff draws from.
        turn: whether this collector may send now.
        try_seconds_max: a try that takes longer has failed; None: the routes' own limits.
        paces: how fast routes may be sent to, by name; one that is not there is not limited.
    """

    def __init__(
        self,
        control: ControlStore,
        channels: Mapping[str, Channel],
        *,
        clock: Callable[[], int],
        fallback: str | None = None,
        jitter: random.Random | None = None,
        turn: Turn | None = None,
        try_seconds_max: float | None = None,
        paces: Mapping[str, Pace] | None = None,
    ) -> None:
        self.counters = SenderCounters()
        self._control = control
        self._channels = channels
        self._fallback = fallback
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._turn = turn or AlwaysTurn()
        self._try_seconds_max = try_seconds_max
        self._paces = paces or {}
        self._aside = Aside("outbox")
        self._waits_because: str | None = None
        self._busy: dict[Line, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._failing: set[Line] = set()

    def wake(self) -> None:
        """Look now: there is something new to send."""
        self._wake.set()

    async def run(self) -> None:
        """Send for ever; ends when cancelled, with tries under way cancelled too."""
        try:
            while True:
                self._wake.clear()
                await self._start_due()
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes with a wake.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
        finally:
            tries = list(self._busy.values())
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def once(self) -> None:
        """Send what is due now and wait for these tries."""
        await self._start_due()
        await asyncio.gather(*self._busy.values())

    async def close(self) -> None:
        """Close every channel; what the store was told is on disk afterwards."""
        await self._aside.end()
        for channel in self._channels.values():
            await channel.close()

    async def _start_due(self) -> None:
        """Start a try for every line that is due and not busy."""
        if not await self._may_send():
            return
        # A line that is busy now may be done when the answer comes: what the answer says of it is old.
        busy = frozenset(self._busy)
        try:
            due = await self._aside(self._due, self._clock(), busy)
        except RetryableError as exc:
            self.counters.store_errors += 1
            log.warning("outbox_unreadable", reason=str(exc))
            return
        for row in due:
            if len(self._busy) >= SENDS_MAX:
                break
            if (pace := self._paces.get(row.route)) and not pace.take(self._clock()):
                continue  # it stays due
            line = (row.rule, row.cluster, row.route)
            task = asyncio.create_task(self._try(row))
            self._busy[line] = task
            task.add_done_callback(partial(self._done, line))

    async def _may_send(self) -> bool:
        """Return whether it is this collector's turn; a change is logged."""
        reason = await self._turn.refusal(self._clock())
        if reason != self._waits_because:
            self._waits_because = reason
            log.info("pages_turn", waits_because=reason)
        self.counters.waits += reason is not None
        return reason is None

    def _done(self, line: Line, _task: asyncio.Task[None]) -> None:
        del self._busy[line]
        self._wake.set()

    def _due(self, now_unix_ms: int, busy: Collection[Line]) -> list[OutboxRow]:
        """The rows to try, after those that wait for a reason were put back."""
        due = [
            row
            for row in self._control.due(now_unix_ms)
            if (row.rule, row.cluster, row.route) not in busy
        ]
        if not due:
            return []
        quiet = silences(self._control, now_unix_ms)
        windows = maintenances(self._control, now_unix_ms)
        incidents = self._control.incidents()
        free: list[OutboxRow] = []
        for row in due:
            reason = held_because(row, quiet, windows, incidents)
            if reason is None:
                free.append(row)
                continue
            self.counters.held += 1
            self._control.held(row, reason, now_unix_ms, now_unix_ms + HELD_RECHECK_MS)
        return free

    async def _try(self, row: OutboxRow) -> None:
        try:
            await self._deliver(row)
        except RetryableError as exc:
            # The store did not take the outcome: the row is still due and is tried again.
            self.counters.store_errors += 1
            log.warning("outbox_unwritable", page=row.id, reason=str(exc))
            await asyncio.sleep(POLL_S)

    async def _deliver(self, row: OutboxRow) -> None:
        channel = self._channels.get(row.route)
        if channel is None:
            self.counters.unrouted += 1
            await self._aside(self._refused, row, "the route is not configured")
            return
        if not await self._may_send():
            return
        if row.action != "trigger":
            row = replace(row, provider_ref=await self._aside(self._control.reference, row))
        try:
            async with asyncio.timeout(self._try_seconds_max):
                reference = await channel.send(row, self._clock())
        except PermanentError as exc:
            if row.action == "resolve" and row.attempts < RESOLVE_TRIES_MIN:
                await self._aside(self._failed, row, str(exc))
                return
            self.counters.refused += 1
            await self._aside(self._refused, row, str(exc))
        except RetryLater as exc:
            await self._aside(self._failed, row, str(exc), exc.after_ms)
        except RetryableError as exc:
            await self._aside(self._failed, row, str(exc))
        except TimeoutError:
            await self._aside(self._failed, row, "no answer in time")
        else:
            await self._aside(self._accepted, row, reference)

    def _failed(self, row: OutboxRow, error: str, wait_ms: int = 0) -> None:
        now_unix_ms = self._clock()
        self.counters.failed += 1
        line = (row.rule, row.cluster, row.route)
        if line not in self._failing:
            self._failing.add(line)
            log.warning("page_route_failing", route=row.route, cluster=row.cluster, reason=error)
        # Time in a silence is not the receiver's: what counts is whether it was tried before.
        late = row.attempts > 0 and now_unix_ms - row.created_unix_ms >= FALLBACK_AFTER_MS
        if late:
            self._hand_over(row, now_unix_ms)
        wait_ms = max(wait_ms, self._backoff_ms(row.attempts))
        self._control.failed(row.id, error, now_unix_ms + wait_ms)

    def _hand_over(self, row: OutboxRow, now_unix_ms: int) -> None:
        """Put a line that does not move on the fallback's line, the resolve that waits in it too."""
        line = (row.rule, row.cluster, row.route)
        copies = [
            copy
            for waiting in self._control.outbox_open()
            if (waiting.rule, waiting.cluster, waiting.route) == line
            for copy in self._copies(waiting, now_unix_ms)
        ]
        if not copies:
            return
        if not self._control.told(row, copies[0].route):
            self.counters.self_alerts += 1
        self._control.enqueue(copies)

    def _accepted(self, row: OutboxRow, reference: str | None) -> None:
        now_unix_ms = self._clock()
        if self._fallback is not None and self._control.told(row, self._fallback):
            # The fallback heard of this outage, so it hears how it goes on.
            self._control.enqueue(self._copies(row, now_unix_ms))
        self._control.sent(row.id, now_unix_ms, reference)
        self.counters.sent += 1
        if (line := (row.rule, row.cluster, row.route)) in self._failing:
            self._failing.discard(line)
            log.info("page_route_recovered", route=row.route, cluster=row.cluster)

    def _refused(self, row: OutboxRow, error: str) -> None:
        now_unix_ms = self._clock()
        log.error("page_refused", route=row.route, cluster=row.cluster, reason=error)
        self.counters.self_alerts += 1
        self._control.refused(row.id, error, now_unix_ms, self._copies(row, now_unix_ms))

    def _copies(self, row: OutboxRow, now_unix_ms: int) -> list[OutboxRow]:
        if self._fallback is None or row.route == self._fallback:
            return []
        return [
            replace(
                row,
                id=row_id(row.dedup_key, self._fallback, row.action, row.repeat_no),
                route=self._fallback,
                attempts=0,
                last_error=None,
                held_reason=None,
                created_unix_ms=now_unix_ms,
                next_try_unix_ms=now_unix_ms,
            )
        ]

    def _backoff_ms(self, attempts: int) -> int:
        """Full jitter: anything from 1 s up to 1 s doubled per try, at most 60 s."""
        ceiling = min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** min(attempts + 1, 16))
        return round(self._jitter.uniform(BACKOFF_MS_MIN, ceiling))

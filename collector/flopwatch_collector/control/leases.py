"""Leases: what only one of several collectors does at a time.

A lease is one row of the control store, taken and renewed in one statement by the store's own clock, so
that collectors whose clocks differ agree on when it ran out. Its fence grows with every change of hands. A
holder counts its time from before it asked, on a clock of its own that never jumps: it stops before the
store would give the lease to anybody else. What it writes into the control store names its fence in the
same transaction (`check_fence`), so that even a holder that was frozen for minutes changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy import BigInteger, Connection, bindparam, case, cast, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.schema import LEASE
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_proto.errors import RetryableError

if TYPE_CHECKING:
    from flopwatch_collector.control.store import ControlStore

PAGER: Final = "pager"
ROLLUP: Final = "rollup"
LEASE_MS: Final = 15_000
RENEW_S: Final = 5.0
LOOK_S: Final = 0.5

_STORE_CLOCKS: Final = {
    "postgresql": "floor(extract(epoch FROM clock_timestamp()) * 1000)",
    "sqlite": "(julianday('now') - 2440587.5) * 86400000",
}

Job = Callable[[int], Coroutine[Any, Any, None]]
"""What runs while a lease is held; it gets the fence."""

log = structlog.get_logger()


def this_collector() -> str:
    """Return a name that no other process has, nor this one after a restart."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"


def boot_clock_ms() -> int:
    """Return milliseconds of a clock that only goes forward, also while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def take(
    store: ControlStore, name: str, holder: str, ttl_ms: int, now_unix_ms: int | None = None
) -> int | None:
    """Take or renew a lease: its fence, or None while somebody else holds it.

    Args:
        now_unix_ms: None: what the store's clock says.
    """
    dialect = store.engine.dialect.name
    now: Any = (
        cast(text(_STORE_CLOCKS[dialect]), BigInteger)
        if now_unix_ms is None
        else bindparam(None, now_unix_ms, BigInteger)
    )
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(LEASE)
    fresh = insert.values(name=name, holder=holder, fence=1, expires_unix_ms=now + ttl_ms)
    changes_hands = case((LEASE.c.holder == fresh.excluded.holder, 0), else_=1)
    taken = fresh.on_conflict_do_update(
        index_elements=[LEASE.c.name],
        set_={
            "holder": fresh.excluded.holder,
            "fence": LEASE.c.fence + changes_hands,
            "expires_unix_ms": fresh.excluded.expires_unix_ms,
        },
        where=or_(LEASE.c.holder == fresh.excluded.holder, LEASE.c.expires_unix_ms <= now),
    ).returning(LEASE.c.fence)
    with store.writing() as connection:
        fence = connection.execute(taken).scalar()
    return None if fence is None else int(fence)


def give_up(store: ControlStore, name: str, holder: str) -> None:
    """End a lease now, where it is still this holder's: the next one need not wait."""
    ended = update(LEASE).where(LEASE.c.name == name, LEASE.c.holder == holder)
    with store.writing() as connection:
        connection.execute(ended.values(expires_unix_ms=0))


def holder_of(store: ControlStore, name: str) -> tuple[str, int] | None:
    """Return who took a lease last, and its fence; None before anybody did."""
    with store.reading() as connection:
        found = connection.execute(select(LEASE).where(LEASE.c.name == name)).first()
    return None if found is None else (str(found.holder), int(found.fence))


def check_fence(connection: Connection, name: str, fence: int) -> None:
    """Hold a lease still for the length of a transaction.

    Raises:
        RetryableError: somebody else has had it since.
    """
    query = select(LEASE.c.fence).where(LEASE.c.name == name).with_for_update(read=True)
    newest = connection.execute(query).scalar()
    if newest != fence:
        raise RetryableError(f"the lease {name} went to another collector ({fence}, now {newest})")


class Alone:
    """What stands in a lease's place where nobody could take it."""

    fence = 0

    async def while_held(self, job: Job) -> None:
        """Run a job."""
        await job(0)


class Lease:
    """One lease, asked for every 5 s and held while the answers come. Attributes: name: of the lease."""

    def __init__(
        self,
        store: ControlStore,
        name: str,
        holder: str,
        metrics: SharedMetrics,
        clock_ms: Callable[[], int] = boot_clock_ms,
    ) -> None:
        """clock_ms: one that never jumps."""
        self.name = name
        metrics.lease_held.labels(name).set_function(lambda: float(self.fence is not None))
        self._failures = metrics.lease_failures.labels(name)
        self._store = store
        self._holder = holder
        self._clock_ms = clock_ms
        self._fence: int | None = None
        self._ends_ms = 0
        self._aside = Aside(f"lease {name}")

    @property
    def fence(self) -> int | None:
        """The fence while the lease is surely held, else None."""
        return self._fence if self.left_ms() > 0 else None

    def left_ms(self) -> int:
        """Return how long it is surely held without another answer."""
        return max(0, self._ends_ms - self._clock_ms()) if self._fence is not None else 0

    async def run(self) -> None:
        """Ask for ever; a lease that is held when this is cancelled is given up."""
        try:
            while True:
                await self.renew()
                await asyncio.sleep(RENEW_S)
        finally:
            if self._fence is not None:
                self._fence = None
                with contextlib.suppress(RetryableError):
                    await self._aside(give_up, self._store, self.name, self._holder)
            await self._aside.end()

    async def renew(self) -> None:
        """Ask once; a store that does not answer changes nothing."""
        asked_ms = self._clock_ms()
        try:
            fence = await self._aside(take, self._store, self.name, self._holder, LEASE_MS)
        except RetryableError as exc:
            self._failures.inc()
            log.warning("lease_not_renewed", lease=self.name, reason=str(exc))
            return
        if fence != self._fence:
            log.info("lease", lease=self.name, held=fence is not None, fence=fence)
        self._fence, self._ends_ms = fence, asked_ms + LEASE_MS

    async def while_held(self, job: Job) -> None:
        """Run a job whenever the lease is held, from its beginning each time; ends with the job's failure."""
        while True:
            fence = self.fence
            if fence is None:
                await asyncio.sleep(LOOK_S)
                continue
            task = asyncio.create_task(job(fence))
            try:
                while self.fence == fence and not task.done():
                    await asyncio.wait({task}, timeout=LOOK_S)
                if task.done():
                    return task.result()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            log.warning("lease_lost", lease=self.name, fence=fence)

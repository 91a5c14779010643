"""The warm standby: a second collector with stores of its own, to which the same agents ship.

    primary   evaluates ─► outbox ─► pages          /api/v1/turn: alive, and which pages are settled
                                                          ▲ every 5 s
    standby   evaluates ─► outbox   … waits while the primary answers, settles what it has settled
                              └───► pages           once the primary was silent for 15 s (× rank)

Both judge the same rows at the same ticks, so both decide the same pages under the same ids and dedup keys:
one that both send is one at its receiver. Whatever is in doubt is sent: an answer that is late, odd or not
of today's ticks is none. Silences and acknowledgements are each collector's own.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx
import msgspec
import structlog
from sqlalchemy import func, select

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.schema import OUTBOX
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.standby_settings import StandbyConfig
from flopwatch_proto.errors import FlopwatchError, RetryableError

LOOK_S: Final = 5.0
ASK_S_MAX: Final = 3.0
SILENT_MS: Final = 15_000
TICK_MS_MAX: Final = 60_000
SETTLED_MS: Final = 24 * 3_600_000
SETTLED_MAX: Final = 10_000
ANSWER_BYTES_MAX: Final = 2 * 1024 * 1024

log = structlog.get_logger()


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a primary says of itself: the answer of `/api/v1/turn`.

    Attributes:
        now_unix_ms: by its clock.
        tick_unix_ms: the newest tick that it evaluated; None: not said.
        settled: ids of the pages of the last day that it sent or gave up.
    """

    now_unix_ms: int
    settled: list[str]
    tick_unix_ms: int | None = None

    def is_alive(self) -> bool:
        """Whether it evaluates, as far as it says."""
        return self.tick_unix_ms is None or self.now_unix_ms - self.tick_unix_ms <= TICK_MS_MAX


class Primary(Protocol):
    """Who is asked."""

    async def word(self) -> Word:
        """Return what it says. Raises: RetryableError: nothing that counts."""

    async def close(self) -> None:
        """Give connections back."""


class HttpPrimary:
    """A primary behind its URL, asked with certificates where the section names them."""

    def __init__(self, config: StandbyConfig) -> None:
        self._config = config
        self._url = config.primary.rstrip("/") + "/api/v1/turn"
        self._client: httpx.AsyncClient | None = None

    async def word(self) -> Word:
        """Ask it. Raises: RetryableError: no answer in time, or none that says it is alive."""
        try:
            return await self._ask()
        except RetryableError:
            await (
                self.close()
            )  # certificates may have been renewed: the next question reads them again
            raise

    async def _ask(self) -> Word:
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=ASK_S_MAX,
                follow_redirects=False,
                trust_env=False,
                verify=_trust(self._config),
            )
        try:
            async with (
                asyncio.timeout(ASK_S_MAX),
                self._client.stream("GET", self._url) as response,
            ):
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        raise RetryableError("an answer without end")
        except (httpx.HTTPError, TimeoutError) as exc:
            raise RetryableError(type(exc).__name__) from exc
        if response.status_code != httpx.codes.OK:
            raise RetryableError(f"HTTP {response.status_code}")
        try:
            word = msgspec.json.decode(body, type=Word)
        except msgspec.MsgspecError as exc:
            raise RetryableError(f"not an answer of a collector: {exc}") from exc
        if not word.is_alive():
            raise RetryableError("it evaluates no more")
        return word

    async def close(self) -> None:
        """Give connections back."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _trust(config: StandbyConfig) -> ssl.SSLContext | bool:
    if not config.certificate:
        return True
    try:
        context = ssl.create_default_context(cafile=config.authority)
        context.load_cert_chain(config.certificate, config.key)
    except (OSError, ssl.SSLError) as exc:
        raise RetryableError(
            f"standby.certificate, standby.key or standby.authority: {exc}; write PEM files that this"
            " process can read"
        ) from exc
    return context


@dataclass(slots=True, kw_only=True)
class StandbyTurn:
    """Whose turn it is, as a `paging.turn.Turn`.

    Attributes:
        started_unix_ms: a primary that was never heard is silent from here on.
        heard_unix_ms: when it last answered; None: never.
        settled_rows: pages of ours that the primary had settled.
        looks_failed: questions without an answer that counts.
    """

    name: str
    primary: Primary
    control: ControlStore
    clock: Callable[[], int]
    started_unix_ms: int
    rank: int = 1
    heard_unix_ms: int | None = None
    settled_rows: int = 0
    looks_failed: int = 0
    _error: str | None = None
    _aside: Aside = field(default_factory=lambda: Aside("standby"))

    async def refusal(self, now_ms: int) -> str | None:
        """Return that the primary sends; None: it is gone, or may be."""
        since = self.started_unix_ms if self.heard_unix_ms is None else self.heard_unix_ms
        # A clock that was set back says nothing about the primary.
        if 0 <= now_ms - since < self.rank * SILENT_MS:
            return f"the primary {self.name} is there"
        return None

    async def run(self) -> None:
        """Look after the primary for ever; ends when cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_S)
        finally:
            self._aside.close()
            await self.primary.close()

    async def look(self) -> None:
        """Ask once; what the primary has settled is settled here too."""
        try:
            word = await self.primary.word()
            await self._aside(self._settle, frozenset(word.settled))
        except FlopwatchError as exc:
            self.looks_failed += 1
            if str(exc) != self._error:
                self._error = str(exc)
                log.warning("primary_silent", primary=self.name, reason=str(exc))
            return
        if self._error is not None:
            self._error = None
            log.info("primary_heard", primary=self.name)
        # Only now: were its pages not taken over first, they would be sent again at its next silence.
        self.heard_unix_ms = self.clock()

    def told(self) -> dict[str, Any]:
        """What `/healthz` says of it."""
        return {"primary": self.name, "heard_unix_ms": self.heard_unix_ms, "rank": self.rank}

    def _settle(self, settled: frozenset[str]) -> None:
        now_unix_ms = self.clock()
        reason = f"the primary {self.name} is there"
        waiting = self.control.outbox_open()
        resolving = {
            (r.rule, r.cluster, r.route, r.episode) for r in waiting if r.action == "resolve"
        }
        for row in waiting:
            if row.id in settled:
                self.control.sent(row.id, now_unix_ms, "primary")
                self.settled_rows += 1
            elif row.held_reason != reason or (
                row.action != "resolve"
                and (row.rule, row.cluster, row.route, row.episode) in resolving
            ):
                # An outage that came and went here, and that the primary never paged, is dropped by that.
                self.control.held(row, reason, now_unix_ms, now_unix_ms)


def settled_ids(control: ControlStore, now_unix_ms: int) -> list[str]:
    """Return the ids of the pages that were sent or given up in the last day, newest first.

    Raises:
        RetryableError: the store does not answer.
    """
    closed = func.coalesce(OUTBOX.c.sent_unix_ms, OUTBOX.c.dropped_unix_ms)
    query = (
        select(OUTBOX.c.id)
        .where(closed > now_unix_ms - SETTLED_MS)
        .order_by(closed.desc())
        .limit(SETTLED_MAX)
    )
    with control.reading() as connection:
        return list(connection.execute(query).scalars())


def turn_of(
    config: StandbyConfig, control: ControlStore, clock: Callable[[], int], started_unix_ms: int
) -> StandbyTurn | None:
    """Return the turn of a standby; None: this collector is nobody's."""
    if not config.primary:
        return None
    return StandbyTurn(
        name=config.primary,
        primary=HttpPrimary(config),
        control=control,
        clock=clock,
        started_unix_ms=started_unix_ms,
        rank=config.rank,
    )


def shown_name(deployment: str, config: StandbyConfig) -> str:
    """Return the name that the dashboard shows beside flopwatch."""
    if not config.primary:
        return deployment
    return f"{deployment} standby of {config.primary}, pages only when it is gone".strip()

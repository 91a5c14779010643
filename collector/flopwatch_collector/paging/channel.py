"""A way to a receiver of pages, and what every way has in common: one careful HTTP client.

Success is a 2xx answer. 400 will not pass on a second try; everything else may. Redirects are not followed,
proxies of the environment not used, and of an answer only a bounded part is read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.paging.address import check_resolved, check_url
from flopwatch_collector.paging.settings import RouteConfig
from flopwatch_proto.errors import PermanentError, RetryableError, UsageError

ANSWER_BYTES_MAX: Final = 64 * 1024
LIST_BYTES_MAX: Final = 8 * 1024 * 1024
REFERENCE_CHARACTERS_MAX: Final = 200
RETRY_AFTER_S_MAX: Final = 300.0


class Channel(Protocol):
    """A way to one receiver."""

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        """Deliver one page; the receiver's reference.

        Args:
            row: its ``provider_ref`` is the reference of the outage's page before it here, where there
                is one.

        Raises:
            RetryableError: no answer, or one that may change.
            PermanentError: the receiver refuses the page itself.
        """

    async def close(self) -> None:
        """Give connections back."""


class RetryLater(RetryableError):
    """The receiver is busy and said for how long. Attributes: after_ms: not to be tried before."""

    def __init__(self, text: str, after_ms: int) -> None:
        super().__init__(text)
        self.after_ms = after_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a receiver said. Attributes: body: its beginning."""

    headers: Mapping[str, str]
    body: bytes


class Poster:
    """An HTTP client for one route."""

    def __init__(self, route: RouteConfig) -> None:
        self._name = route.name
        self._timeout_s = route.timeout_s
        self._client = httpx.AsyncClient(
            timeout=route.timeout_s, follow_redirects=False, trust_env=False
        )

    def url(self, text: str) -> httpx.URL:
        """Return a URL that pages may go to. Raises: UsageError naming the route, not the URL."""
        return check_url(text, f"paging route {self._name}: url")

    async def get(self, url: httpx.URL, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of a bounded answer. Raises: RetryableError: there is none."""
        await check_resolved(url)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", url, headers=headers) as response,
            ):
                known = await _beginning(response, LIST_BYTES_MAX)
                if response.status_code != httpx.codes.OK:
                    raise RetryableError(f"HTTP {response.status_code}")
            return json.loads(known)
        except (httpx.HTTPError, TimeoutError, ValueError) as exc:
            raise RetryableError(type(exc).__name__) from exc

    async def delete(self, url: httpx.URL, headers: Mapping[str, str] | None = None) -> None:
        """Delete what is there. Raises: RetryableError: it could not be."""
        await check_resolved(url)
        try:
            response = await self._client.delete(url, headers=headers)
        except httpx.HTTPError as exc:
            raise RetryableError(type(exc).__name__) from exc
        if response.status_code not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
            raise RetryableError(f"HTTP {response.status_code}")

    async def post(
        self,
        url: httpx.URL,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        reads: bool = False,
    ) -> Answer:
        """Post JSON.

        Args:
            reads: whether the answer's body says anything; one that does not may be endless.

        Raises:
            RetryableError: no answer, or one that may change.
            PermanentError: the receiver refuses what was posted.
        """
        await check_resolved(url)
        sent = {"Content-Type": "application/json", "User-Agent": "flopwatch", **(headers or {})}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", url, content=body, headers=sent) as response,
            ):
                status, said = response.status_code, dict(response.headers)
                known = await _beginning(response) if reads else b""
        except (httpx.TimeoutException, TimeoutError) as exc:
            raise RetryableError("no answer in time") from exc
        except httpx.HTTPError as exc:
            # The text of these errors may carry the URL.
            raise RetryableError(type(exc).__name__) from exc
        if 200 <= status < 300:
            return Answer(headers=said, body=known)
        if status == httpx.codes.BAD_REQUEST:
            raise PermanentError(f"HTTP {status}")
        if status == httpx.codes.TOO_MANY_REQUESTS and (after_s := _seconds(said)) is not None:
            raise RetryLater(f"HTTP {status}", round(after_s * 1000))
        raise RetryableError(f"HTTP {status}")

    async def close(self) -> None:
        """Give connections back."""
        await self._client.aclose()


async def _beginning(response: httpx.Response, bytes_max: int = ANSWER_BYTES_MAX) -> bytes:
    """Read an answer that may be endless."""
    known = b""
    async for part in response.aiter_bytes():
        known += part
        if len(known) >= bytes_max:
            break
    return known[:bytes_max]


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long a receiver asks to wait, where it says so in seconds."""
    try:
        after_s = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(after_s, RETRY_AFTER_S_MAX) if after_s >= 0 else None


def secret_of(route: RouteConfig, environment: Mapping[str, str]) -> bytes | None:
    """The secret of a route: a signing secret, a routing key or a token; None where it needs none.

    Raises: UsageError naming the key; never the secret.
    """
    if route.secret_env is None and route.secret_file is None:
        return None
    if route.secret_env is not None:
        value = environment.get(route.secret_env, "")
        source = f"secret_env {route.secret_env}"
    else:
        source = f"secret_file {route.secret_file}"
        try:
            value = Path(route.secret_file or "").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(
                f"paging route {route.name}: {source} cannot be read ({type(exc).__name__})"
            ) from exc
    if not value:
        raise UsageError(f"paging route {route.name}: {source} is empty")
    return value.encode()

"""Signed webhooks: an HTTP POST of the page's JSON.

Headers::

    Idempotency-Key: <outbox id>                  the same on every try: a receiver may drop repeats
    X-Flopwatch-Timestamp: <Unix seconds>         of this try: a receiver may refuse old ones
    X-Flopwatch-Signature: v1=<hex>               HMAC-SHA256(secret, timestamp + "." + body)

Success is a 2xx answer. 400 will not pass on a second try; everything else may. Redirects are not followed,
proxies of the environment not used, and addresses that only the host itself should reach (link-local,
cloud metadata) refused, also when a name resolves to one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import httpx

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.paging.settings import RouteConfig
from flopwatch_proto.errors import PermanentError, RetryableError, UsageError

REFUSED_NETWORKS: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32", "0.0.0.0/32")
)
REFUSED_HOSTS: Final = ("metadata", "metadata.google.internal", "instance-data")


class Channel(Protocol):
    """A way to a receiver."""

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        """Deliver one page; the receiver's reference. Raises: RetryableError, PermanentError."""

    async def close(self) -> None:
        """Give connections back."""


def secret_of(route: RouteConfig, environment: Mapping[str, str]) -> bytes:
    """The signing secret of a route. Raises: UsageError naming the key; never the secret."""
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


def check_url(url: str, where: str = "url") -> httpx.URL:
    """A URL that pages may go to. Raises: UsageError; the text names the key, not the URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise UsageError(f"{where}: not a URL") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{where}: must begin with https:// or http:// and name a host")
    if parsed.userinfo:
        raise UsageError(f"{where}: must carry no password; the signature proves who sends")
    if parsed.host.lower().rstrip(".") in REFUSED_HOSTS or _is_refused_literal(parsed.host):
        raise UsageError(f"{where}: link-local and metadata addresses are refused")
    return parsed


def _is_refused_literal(host: str) -> bool:
    try:
        return is_refused(host)
    except ValueError:
        pass
    try:
        # The forms that resolvers take for addresses as well: 2852039166, 0xa9fea9fe, 169.254.1.
        return is_refused(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return False


def is_refused(address: str) -> bool:
    """Whether an address is link-local or a metadata service. Raises: ValueError: no address."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in REFUSED_NETWORKS)


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """``v1=`` and the hex HMAC-SHA256 of timestamp, a dot and the body."""
    message = timestamp.encode() + b"." + body
    return f"v1={hmac.new(secret, message, hashlib.sha256).hexdigest()}"


class Webhook:
    """A channel to one receiver."""

    def __init__(self, route: RouteConfig, secret: bytes) -> None:
        self._url = check_url(route.url, f"paging route {route.name}: url")
        self._secret = secret
        self._client = httpx.AsyncClient(
            timeout=route.timeout_s, follow_redirects=False, trust_env=False
        )

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        """Deliver one page; the receiver's request id where it names one.

        Raises:
            RetryableError: no answer, or one that may change.
            PermanentError: the receiver refuses the page itself.
        """
        await self._check_addresses()
        body = row.body.encode()
        timestamp = str(now_unix_ms // 1000)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "flopwatch",
            "Idempotency-Key": row.id,
            "X-Flopwatch-Timestamp": timestamp,
            "X-Flopwatch-Signature": signature(self._secret, timestamp, body),
        }
        try:
            # The answer's body is of no use and may be endless: only its head is read.
            async with self._client.stream(
                "POST", self._url, content=body, headers=headers
            ) as response:
                status = response.status_code
                reference = response.headers.get("X-Request-Id")
        except httpx.HTTPError as exc:
            # The text of these errors may carry the URL.
            raise RetryableError(type(exc).__name__) from exc
        if 200 <= status < 300:
            return None if reference is None else str(reference)[:200]
        if status == httpx.codes.BAD_REQUEST:
            raise PermanentError(f"HTTP {status}")
        raise RetryableError(f"HTTP {status}")

    async def close(self) -> None:
        """Give connections back."""
        await self._client.aclose()

    async def _check_addresses(self) -> None:
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self._url.host, port, type=socket.SOCK_STREAM
            )
        except OSError as exc:
            raise RetryableError("the host's name does not resolve") from exc
        if any(is_refused(str(entry[4][0])) for entry in found):
            raise RetryableError("the host's name resolves to a refused address")

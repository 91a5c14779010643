"""Signed webhooks: an HTTP POST of the page's JSON.

Headers::

    Idempotency-Key: <outbox id>                  the same on every try: a receiver may drop repeats
    X-Flopwatch-Timestamp: <Unix seconds>         of this try: a receiver may refuse old ones
    X-Flopwatch-Signature: v1=<hex>               HMAC-SHA256(secret, timestamp + "." + body)
"""

from __future__ import annotations

import hashlib
import hmac

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.paging.channel import REFERENCE_CHARACTERS_MAX, Poster
from flopwatch_collector.paging.settings import RouteConfig


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """``v1=`` and the hex HMAC-SHA256 of timestamp, a dot and the body."""
    message = timestamp.encode() + b"." + body
    return f"v1={hmac.new(secret, message, hashlib.sha256).hexdigest()}"


class Webhook:
    """A channel to one receiver."""

    def __init__(self, route: RouteConfig, secret: bytes) -> None:
        self._poster = Poster(route)
        self._url = self._poster.url(route.url)
        self._secret = secret

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        """Deliver one page; the receiver's request id where it names one. Raises: as `Channel`."""
        body = row.body.encode()
        timestamp = str(now_unix_ms // 1000)
        headers = {
            "Idempotency-Key": row.id,
            "X-Flopwatch-Timestamp": timestamp,
            "X-Flopwatch-Signature": signature(self._secret, timestamp, body),
        }
        answer = await self._poster.post(self._url, body, headers)
        reference = answer.headers.get("x-request-id")
        return None if reference is None else reference[:REFERENCE_CHARACTERS_MAX]

    async def close(self) -> None:
        """Give connections back."""
        await self._poster.close()

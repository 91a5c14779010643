"""Slack: one message per outage that tells how it stands, and a thread below it of what happened.

Slack knows no key by which a message that comes twice is one: after a crash between its answer and our mark
a message may stand there twice. https://docs.slack.dev/reference/methods/chat.postMessage
"""

from __future__ import annotations

import json
from typing import Any, Final

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.paging.channel import Poster
from flopwatch_collector.paging.settings import URLS, RouteConfig
from flopwatch_proto.errors import PermanentError, RetryableError

PASSING: Final = ("ratelimited", "internal_error", "fatal_error", "service_unavailable")
"""Errors of a 200 answer that may be gone next time; with any other the token or the channel is wrong."""
COLORS: Final = {"critical": "#c0362c", "warning": "#b97a00", "info": "#5b6770"}
RESOLVED_COLOR: Final = "#2e7d4f"


class Slack:
    """A channel to one channel of one workspace."""

    def __init__(self, route: RouteConfig, secret: bytes) -> None:
        self._poster = Poster(route)
        base = (route.url or URLS["slack"]).rstrip("/")
        self._posts = self._poster.url(f"{base}/api/chat.postMessage")
        self._updates = self._poster.url(f"{base}/api/chat.update")
        self._channel = route.channel
        self._headers = {"Authorization": f"Bearer {secret.decode()}"}

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        """Post, or update and tell below; return ``channel/ts`` of the outage's message.

        Raises: as `Channel`.
        """
        said = message(json.loads(row.body))
        channel, _, stamp = (row.provider_ref or "").partition("/")
        if not stamp:
            answer = await self._call(self._posts, {"channel": self._channel, **said})
            return f"{answer.get('channel', self._channel)}/{answer.get('ts', '')}"
        if row.action != "notice":
            await self._call(self._updates, {"channel": channel, "ts": stamp, **said})
        loud = row.action == "escalate"
        await self._call(
            self._posts, {"channel": channel, "thread_ts": stamp, "reply_broadcast": loud, **said}
        )
        return row.provider_ref

    async def close(self) -> None:
        """Give connections back."""
        await self._poster.close()

    async def _call(self, url: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(arguments, ensure_ascii=False).encode()
        answer = await self._poster.post(url, content, self._headers, reads=True)
        try:
            said = json.loads(answer.body)
        except ValueError as exc:
            raise RetryableError("the answer is not JSON") from exc
        if isinstance(said, dict) and said.get("ok") is True:
            return said
        error = str(said.get("error", "unknown") if isinstance(said, dict) else "unknown")[:80]
        raise RetryableError(error) if error in PASSING else PermanentError(f"Slack: {error}")


def message(body: dict[str, Any]) -> dict[str, Any]:
    """Return a message: the summary, and below it what was lost, behind whom, and what to type."""
    color = RESOLVED_COLOR if body["state"] == "resolved" else COLORS[body["severity"]]
    lines = [
        *(escaped(line) for line in body.get("lines", ())),
        *(escaped(line) for line in body.get("text", "").split("\n")),
        f"`{escaped(body['command'])}`",
    ]
    text = escaped(body["summary"])
    below = {"color": color, "text": "\n".join(line for line in lines if line), "fallback": text}
    return {"text": text, "attachments": [below], "unfurl_links": False}


def escaped(text: str) -> str:
    """Return text in which no name can mention a channel or make a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'")

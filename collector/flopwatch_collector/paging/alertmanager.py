"""Alertmanager's API v2: an alert per outage, told again while it holds.

An alert ends by itself four minutes after it was last told, so that one whose collector is dead does not
stay for ever; `Reminder` (`paging.reminder`) tells it every minute. Labels are the identity: severity, owner
and the number of escalations are among them, so that what is worse than before is a new alert and pages
again, and the one before it is ended in the same post: its labels were kept as the page's reference. All
members of an Alertmanager cluster are told, as Prometheus does; a page is sent when one of them took it, and
the next reminder reaches the others.
https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.incident_state import rfc3339
from flopwatch_collector.paging.channel import Poster
from flopwatch_collector.paging.settings import RouteConfig
from flopwatch_proto.errors import FlopwatchError, RetryableError

HOLDS_MS: Final = 4 * 60_000
NOTICE_HOLDS_MS: Final = 15 * 60_000
LABELS_KEPT: Final = 8


class Alertmanager:
    """A channel to all members of one Alertmanager cluster."""

    def __init__(self, route: RouteConfig, secret: bytes | None) -> None:
        self._poster = Poster(route)
        self._members = [url.rstrip("/") for url in (route.url, *route.peers)]
        self._urls = [self._poster.url(f"{url}/api/v2/alerts") for url in self._members]
        self._headers = {"Authorization": f"Bearer {secret.decode()}"} if secret else {}

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        """Tell one page; return the labels it goes by. Raises: as `Channel`, where no member took it."""
        body, before = json.loads(row.body), row.provider_ref
        if row.action == "acknowledge":
            return before  # it knows none: who works on it is not its to say
        if row.action == "notice":
            await self._tell([notice(body, now_unix_ms)])
            return before
        known = labels_of(before)
        if row.action == "resolve":
            await self._tell([ending(body, labels, now_unix_ms) for labels in known])
            return before
        told = alert(body, now_unix_ms)
        # One that was sent before a crash, and is sent again, is not ended by itself.
        over = [labels for labels in known if labels != told["labels"]]
        await self._tell([*(ending(body, labels, now_unix_ms) for labels in over), told])
        return json.dumps([told["labels"], *over][:LABELS_KEPT])

    async def remind(self, rows: Iterable[OutboxRow], now_unix_ms: int) -> None:
        """Tell again what holds: the last page of each outage. Raises: as `Channel`.

        A member that did not hear of an escalation holds what was before it, until it is told.
        """
        told: list[dict[str, Any]] = []
        for row in rows:
            body = json.loads(row.body)
            since = row.sent_unix_ms or 0
            if now_unix_ms - since < HOLDS_MS:
                told.extend(ending(body, over, since) for over in labels_of(row.provider_ref)[1:])
            told.append(alert(body, now_unix_ms))
        await self._tell(told)

    async def read(self, path: str) -> Any:
        """Return what the first member that answers has below its API. Raises: as `Channel`."""
        return await self._first(
            lambda url: self._poster.get(self._poster.url(url + path), self._headers)
        )

    async def write(self, path: str, content: Mapping[str, Any]) -> None:
        """Post to the first member that takes it; the others hear of it. Raises: as `Channel`."""
        await self._first(
            lambda url: self._poster.post(
                self._poster.url(url + path), json.dumps(content).encode(), self._headers
            )
        )

    async def remove(self, path: str) -> None:
        """Delete at the first member that answers. Raises: as `Channel`."""
        await self._first(
            lambda url: self._poster.delete(self._poster.url(url + path), self._headers)
        )

    async def close(self) -> None:
        """Give connections back."""
        await self._poster.close()

    async def _first(self, asked: Callable[[str], Awaitable[Any]]) -> Any:
        for url in self._members[:-1]:
            with contextlib.suppress(RetryableError):
                return await asked(url)
        return await asked(self._members[-1])

    async def _tell(self, told: Sequence[dict[str, Any]]) -> None:
        if not told:
            return
        content = json.dumps(told, ensure_ascii=False).encode()
        tries = (self._poster.post(url, content, self._headers) for url in self._urls)
        answers = await asyncio.gather(*tries, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in errors:
            if not isinstance(error, FlopwatchError):
                raise error
        if len(errors) == len(answers):
            # A page is refused where every member refuses it.
            raise next((e for e in errors if isinstance(e, RetryableError)), errors[0])


def labels_of(reference: str | None) -> list[dict[str, str]]:
    """Return the labels that an outage went by, the newest first."""
    known = [] if reference is None else json.loads(reference)
    return known if isinstance(known, list) else [known]


def alert(body: dict[str, Any], now_unix_ms: int) -> dict[str, Any]:
    """Return a page as an alert that holds for a while."""
    escalated = body["repeat_no"] if body["action"] == "escalate" else 0
    labels = {
        "alertname": f"Flopwatch{body['rule'].title().replace('_', '')}",
        "cluster": body["cluster"],
        "rule": body["rule"],
        "owner": body["owner"],
        "severity": body["severity"],
        "deployment": body["deployment"],
        "episode": body["episode"],
        "escalation": str(escalated),
    }
    return {
        "labels": {name: text for name, text in labels.items() if text},
        "annotations": {
            "summary": body["summary"],
            "description": body.get("text", ""),
            "command": body["command"],
            **body["links"],
        },
        "startsAt": body["since"] or rfc3339(now_unix_ms),
        "endsAt": rfc3339(now_unix_ms + HOLDS_MS),
        "generatorURL": body["links"].get("dashboard", ""),
    }


def ending(body: dict[str, Any], labels: dict[str, str], now_unix_ms: int) -> dict[str, Any]:
    """Return the end of the alert that goes by some labels."""
    return alert(body, now_unix_ms) | {"labels": labels, "endsAt": rfc3339(now_unix_ms)}


def notice(body: dict[str, Any], now_unix_ms: int) -> dict[str, Any]:
    """Return a notice: an alert of no urgency that goes by itself."""
    told = alert({**body, "severity": "info"}, now_unix_ms)
    told["labels"] |= {"alertname": "FlopwatchNotice", "reason": body["reason"] or "notice"}
    return told | {"endsAt": rfc3339(now_unix_ms + NOTICE_HOLDS_MS)}

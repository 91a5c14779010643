"""PagerDuty's Events API v2: one alert per outage, under its dedup key.

A trigger under a key that is open is folded into its alert and wakes nobody. So what is worse than the last
page said closes the alert and opens it again: it pages though it was acknowledged, and one alert is open.
Notices wake nobody: they are change events of the service.
https://developer.pagerduty.com/docs/events-api-v2-overview
"""

from __future__ import annotations

import json
from typing import Any, Final

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.paging.channel import Poster
from flopwatch_collector.paging.settings import URLS, RouteConfig

SUMMARY_CHARACTERS_MAX: Final = 1024


class PagerDuty:
    """A channel to one service, by its routing key."""

    def __init__(self, route: RouteConfig, secret: bytes) -> None:
        self._poster = Poster(route)
        base = (route.url or URLS["pagerduty"]).rstrip("/")
        self._alerts = self._poster.url(f"{base}/v2/enqueue")
        self._changes = self._poster.url(f"{base}/v2/change/enqueue")
        self._routing_key = secret.decode()

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        """Deliver one page under its dedup key. Raises: as `Channel`."""
        body = json.loads(row.body)
        if row.action == "notice":
            await self._post(self._changes, {"payload": change(body), "links": links(body)})
            return None
        if row.action == "acknowledge":
            event = {"event_action": "acknowledge", "dedup_key": row.dedup_key}
            await self._post(self._alerts, event)
            return row.dedup_key
        if row.action in ("escalate", "resolve"):
            await self._post(self._alerts, {"event_action": "resolve", "dedup_key": row.dedup_key})
        if row.action != "resolve":
            event = {"event_action": "trigger", "dedup_key": row.dedup_key}
            await self._post(self._alerts, {**event, "payload": alert(body), "links": links(body)})
        return row.dedup_key

    async def close(self) -> None:
        """Give connections back."""
        await self._poster.close()

    async def _post(self, url: Any, event: dict[str, Any]) -> None:
        content = json.dumps({"routing_key": self._routing_key, **event}, ensure_ascii=False)
        await self._poster.post(url, content.encode())


def alert(body: dict[str, Any]) -> dict[str, Any]:
    """Return the payload of an alert: PagerDuty's common event format."""
    return {
        **change(body),
        "severity": body["severity"],
        "component": body["rule"],
        "group": body["cluster"],
        "class": body["owner"],
    }


def change(body: dict[str, Any]) -> dict[str, Any]:
    """Return the payload of a change event."""
    return {
        "summary": body["summary"][:SUMMARY_CHARACTERS_MAX],
        "source": body["cluster"],
        "timestamp": body["at"],
        "custom_details": body,
    }


def links(body: dict[str, Any]) -> list[dict[str, str]]:
    """Return the links below an alert."""
    return [{"href": href, "text": name} for name, href in body["links"].items()]

"""The heartbeat: says every minute that pages would come; where it stops, somebody outside must page.

A collector that is dead cannot say so. A healthcheck service or a Watchdog route of an Alertmanager pages
when this stops. It also stops while rules are not evaluated: a collector that judges nothing is no better
than one that is dead.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from flopwatch_collector.incident_state import rfc3339
from flopwatch_collector.paging.alertmanager import HOLDS_MS
from flopwatch_collector.paging.channel import Poster
from flopwatch_collector.paging.settings import HeartbeatConfig, RouteConfig
from flopwatch_proto.errors import FlopwatchError

log = structlog.get_logger()


@dataclass(slots=True)
class HeartbeatCounters:
    """What happened since the start. Attributes: withheld: beats left out because nothing was judged."""

    sent: int = 0
    failed: int = 0
    withheld: int = 0


class Heartbeat:
    """Beats to every watcher.

    Args:
        deployment: names this installation.
        judged_unix_ms: when rules were last evaluated.
        clock: Unix ms now.
    """

    def __init__(
        self,
        watchers: Sequence[HeartbeatConfig],
        deployment: str,
        judged_unix_ms: Callable[[], int],
        clock: Callable[[], int],
    ) -> None:
        self.counters = HeartbeatCounters()
        self._watchers = watchers
        self._deployment = deployment
        self._judged_unix_ms = judged_unix_ms
        self._clock = clock

    async def run(self) -> None:
        """Beat for ever; ends when cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for watcher in self._watchers:
                tasks.create_task(self._keep(watcher))

    async def _keep(self, watcher: HeartbeatConfig) -> None:
        poster = Poster(RouteConfig(name=f"heartbeat {watcher.name}", url=watcher.url))
        try:
            while True:
                await self.beat(watcher, poster)
                await asyncio.sleep(watcher.every_s)
        finally:
            await poster.close()

    async def beat(self, watcher: HeartbeatConfig, poster: Poster) -> None:
        """Beat once, unless rules stand still."""
        now_unix_ms = self._clock()
        if now_unix_ms - self._judged_unix_ms() > watcher.still_s * 1000:
            self.counters.withheld += 1
            return
        try:
            url, body = self._said(watcher, now_unix_ms)
            await poster.post(poster.url(url), json.dumps(body).encode())
        except FlopwatchError as exc:
            self.counters.failed += 1
            log.warning("heartbeat_failed", watcher=watcher.name, reason=str(exc))
        else:
            self.counters.sent += 1

    def _said(self, watcher: HeartbeatConfig, now_unix_ms: int) -> tuple[str, object]:
        if watcher.kind == "healthcheck":
            return watcher.url, {"deployment": self._deployment, "at": rfc3339(now_unix_ms)}
        labels = {
            "alertname": "FlopwatchWatchdog",
            "deployment": self._deployment,
            "severity": "none",
        }
        return f"{watcher.url.rstrip('/')}/api/v2/alerts", [
            {
                "labels": labels,
                "annotations": {"summary": "flopwatch is alive; page when this stops"},
                "startsAt": rfc3339(now_unix_ms),
                "endsAt": rfc3339(now_unix_ms + HOLDS_MS),
            }
        ]

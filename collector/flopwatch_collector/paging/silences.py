"""One truth about silences: those of Alertmanager hold here, and ours there.

Every minute, by the collector whose turn it is. What Alertmanager says of our alerts is taken, not how its
matchers read: an alert of ours that it silences is silenced here, of that rule and cluster, until that
silence ends. A silence of ours stands there under its number; one that was ended here is ended there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import structlog

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.operations import Silence, add_silence, end_window, silences
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import rfc3339
from flopwatch_collector.paging.alertmanager import Alertmanager
from flopwatch_collector.paging.channel import Channel
from flopwatch_collector.paging.turn import Turn
from flopwatch_proto.errors import FlopwatchError

EVERY_S: Final = 60.0
LATER_MS: Final = 2_000
"""Alertmanager refuses what ends in its past, and its clock is another."""
_OURS: Final = re.compile(r"flopwatch (?P<deployment>\S+) silence (?P<number>\d+): ")

log = structlog.get_logger()


@dataclass(slots=True)
class Counters:
    """What happened since the start. Attributes: taken, ended: of Alertmanager's; told, withdrawn: ours."""

    taken: int = 0
    ended: int = 0
    told: int = 0
    withdrawn: int = 0
    failed: int = 0


class Silences:
    """Keeps the silences of every Alertmanager and ours in step.

    Args:
        channels: by route name; those of other kinds are left alone.
        deployment: names this installation's alerts, and its silences there.
        turn: whether this collector may speak now.
    """

    def __init__(
        self,
        control: ControlStore,
        channels: Mapping[str, Channel],
        deployment: str,
        turn: Turn,
        clock: Callable[[], int],
    ) -> None:
        self.counters = Counters()
        self._control = control
        self._alertmanagers = {n: c for n, c in channels.items() if isinstance(c, Alertmanager)}
        self._deployment = deployment
        self._turn = turn
        self._clock = clock

    async def run(self) -> None:
        """Compare for ever; ends when cancelled."""
        aside = Aside("silences")
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                await self.once(aside)
        finally:
            await aside.end()

    async def once(self, aside: Aside) -> None:
        """Compare with each Alertmanager, where it is this collector's turn."""
        if not self._alertmanagers or await self._turn.refusal(self._clock()) is not None:
            return
        for route, channel in self._alertmanagers.items():
            try:
                await self._compared(aside, route, channel)
            except FlopwatchError as exc:
                self.counters.failed += 1
                log.warning("silences_not_compared", route=route, reason=str(exc))

    async def _compared(self, aside: Aside, route: str, channel: Alertmanager) -> None:
        now_unix_ms = self._clock()
        filtered = quote(f'deployment="{self._deployment}"', safe="")
        alerts = await channel.read(f"/api/v2/alerts?filter={filtered}")
        there = await channel.read("/api/v2/silences")
        ours = await aside(silences, self._control, now_unix_ms)
        wanted = taken(route, alerts, there, now_unix_ms)
        changes = partial(self._taken, [s for s in ours if _is_of(s, route)], wanted, now_unix_ms)
        await aside(changes)
        await self._told(channel, [s for s in ours if not s.origin], there, now_unix_ms)

    def _taken(self, held: Sequence[Silence], wanted: Sequence[Silence], now_unix_ms: int) -> None:
        """Store what Alertmanager silences, and end what it does no more."""
        names = {_name(silence): silence for silence in held}
        for silence in wanted:
            known = names.pop(_name(silence), None)
            if known is None or known.ends_unix_ms != silence.ends_unix_ms:
                add_silence(self._control, silence)
                self.counters.taken += 1
                if known is not None:
                    end_window(self._control, "silence", known.id, now_unix_ms)
        for silence in names.values():
            end_window(self._control, "silence", silence.id, now_unix_ms)
            self.counters.ended += 1

    async def _told(
        self,
        channel: Alertmanager,
        ours: Sequence[Silence],
        there: Iterable[Mapping[str, Any]],
        now_unix_ms: int,
    ) -> None:
        """Tell Alertmanager of our silences, and withdraw those that are over."""
        known: dict[int, str] = {}
        for silence in there:
            number = self._number(silence)
            if number is not None and _holds(silence):
                known[number] = silence["id"]
        for one in ours:
            if known.pop(one.id, None) is None and one.ends_unix_ms > now_unix_ms + LATER_MS:
                await channel.write("/api/v2/silences", posted(one, self._deployment))
                self.counters.told += 1
        for there_id in known.values():
            await channel.remove(f"/api/v2/silence/{quote(there_id, safe='')}")
            self.counters.withdrawn += 1

    def _number(self, silence: Mapping[str, Any]) -> int | None:
        """Return the number of a silence that we put there; None: somebody else did."""
        match = _OURS.match(str(silence.get("comment", "")))
        if match is None or match["deployment"] != self._deployment:
            return None
        return int(match["number"])


def taken(
    route: str,
    alerts: Iterable[Mapping[str, Any]],
    there: Iterable[Mapping[str, Any]],
    now_unix_ms: int,
) -> list[Silence]:
    """Return what an Alertmanager's silences mean for our outages; those that we put there are left out."""
    by_id = {
        silence["id"]: silence
        for silence in there
        if _holds(silence) and not _OURS.match(str(silence.get("comment", "")))
    }
    found: dict[tuple[str, str, str], Silence] = {}
    for alert in alerts:
        labels = alert.get("labels", {})
        for there_id in alert.get("status", {}).get("silencedBy", ()):
            silence = by_id.get(there_id)
            if silence is None or not labels.get("rule"):
                continue
            one = Silence(
                matchers={"cluster": labels["cluster"], "rule": labels["rule"]},
                starts_unix_ms=now_unix_ms,
                ends_unix_ms=max(_unix_ms(silence["endsAt"]), now_unix_ms + 1),
                by=str(silence.get("createdBy", ""))[:200],
                why=str(silence.get("comment", ""))[:500],
                origin=f"alertmanager/{route}/{there_id}",
            )
            found[_name(one)] = one
    return list(found.values())


def posted(silence: Silence, deployment: str) -> dict[str, Any]:
    """Return a silence of ours as Alertmanager takes it."""
    patterns = [
        {"name": name, "value": as_regex(pattern), "isRegex": True, "isEqual": True}
        for name, pattern in silence.matchers.items()
        if pattern != "*"
    ]
    own = {"name": "deployment", "value": deployment, "isRegex": False, "isEqual": True}
    return {
        "matchers": [own, *patterns],
        "startsAt": rfc3339(silence.starts_unix_ms),
        "endsAt": rfc3339(silence.ends_unix_ms),
        "createdBy": silence.by,
        "comment": f"flopwatch {deployment} silence {silence.id}: {silence.why}",
    }


def as_regex(pattern: str) -> str:
    """Return a shell pattern as a regular expression of Go (RE2), which Alertmanager anchors itself."""
    text = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.sub(r"\\\[(!?)(.*?)\\\]", _as_class, text)


def _as_class(match: re.Match[str]) -> str:
    inside = match[2].replace("\\-", "-")
    return f"[{'^' if match[1] else ''}{inside}]"


def _is_of(silence: Silence, route: str) -> bool:
    return silence.origin.startswith(f"alertmanager/{route}/")


def _name(silence: Silence) -> tuple[str, str, str]:
    return silence.origin, silence.matchers["cluster"], silence.matchers["rule"]


def _holds(silence: Mapping[str, Any]) -> bool:
    return bool(silence.get("status", {}).get("state") == "active")


def _unix_ms(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)

"""The daily digest: one line per standing outage, to the routes that want it.

An outage that stands pages no more; once a day it is said that it does. A day without one says nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.outbox import OutboxRow, row_id
from flopwatch_collector.control.store import DAY_MS, ControlStore
from flopwatch_collector.incident_state import (
    IncidentState,
    State,
    figure_of,
    minute_of,
    rfc3339,
)
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.paging.turn import Turn
from flopwatch_proto.errors import FlopwatchError

EVERY_S: Final = 60.0
SUMMARY_CHARACTERS_MAX: Final = 90
LINES_MAX: Final = 40
RULE: Final = "digest"
EVERYWHERE: Final = "*"

log = structlog.get_logger()


class Digest:
    """Puts the digest into the outbox once a day.

    Args:
        turn: whether this collector may speak now; twice the same digest is one.
        wake: called when there is something to send.
    """

    def __init__(
        self,
        control: ControlStore,
        config: PagingConfig,
        turn: Turn,
        clock: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self._control = control
        self._config = config
        self._turn = turn
        self._clock = clock
        self._wake = wake
        self._told_unix_ms = 0

    async def run(self) -> None:
        """Look every minute; ends when cancelled."""
        aside = Aside("digest")
        try:
            while True:
                await self.once(aside)
                await asyncio.sleep(EVERY_S)
        finally:
            await aside.end()

    async def once(self, aside: Aside) -> None:
        """Put today's digest, where it is due and not there yet."""
        now_unix_ms = self._clock()
        due_unix_ms = due(self._config.digest_at, now_unix_ms)
        if due_unix_ms <= self._told_unix_ms or await self._turn.refusal(now_unix_ms) is not None:
            return
        try:
            standing = await aside(self._control.incidents, [State.STANDING])
            await aside(
                self._control.enqueue, rows(standing, self._config, due_unix_ms, now_unix_ms)
            )
        except FlopwatchError as exc:
            log.warning("digest_failed", reason=str(exc))
            return
        self._told_unix_ms = due_unix_ms
        self._wake()


def due(at: str, now_unix_ms: int) -> int:
    """Return the newest moment at which a digest was due. Args: at: HH:MM, UTC."""
    hours, minutes = (int(part) for part in at.split(":"))
    offset_ms = (hours * 60 + minutes) * 60_000
    return (now_unix_ms - offset_ms) // DAY_MS * DAY_MS + offset_ms


def rows(
    standing: Sequence[IncidentState], config: PagingConfig, due_unix_ms: int, now_unix_ms: int
) -> list[OutboxRow]:
    """Return a page per route that wants the digest; none where nothing stands."""
    made = []
    for route in config.route:
        shown = [
            state
            for state in standing
            if route.digest and (route.send_simulated or not state.simulated)
        ]
        if not shown:
            continue
        episode = minute_of(due_unix_ms)
        key = f"fw:{config.deployment}:{RULE}:{EVERYWHERE}:{episode}"
        made.append(
            OutboxRow(
                id=row_id(key, route.name, "notice", 0),
                rule=RULE,
                cluster=EVERYWHERE,
                episode=episode,
                route=route.name,
                action="notice",
                repeat_no=0,
                dedup_key=key,
                body=json.dumps(body(shown, config, key, due_unix_ms), ensure_ascii=False),
                created_unix_ms=now_unix_ms,
            )
        )
    return made


def body(
    standing: Sequence[IncidentState], config: PagingConfig, key: str, at_unix_ms: int
) -> dict[str, Any]:
    """Return the digest, with the keys of any page; ``lines`` has a line per outage, the oldest first."""
    ordered = sorted(
        standing, key=lambda state: (state.began_unix_ms or 0, state.cluster, state.rule)
    )
    lines = [line(state, at_unix_ms) for state in ordered]
    count = f"{len(lines)} standing outage{'s' if len(lines) > 1 else ''}: "
    summary = count + "; ".join(lines)
    if len(summary) > SUMMARY_CHARACTERS_MAX:
        summary = summary[: SUMMARY_CHARACTERS_MAX - 1] + "…"
    more = [f"and {len(lines) - LINES_MAX} more"] if len(lines) > LINES_MAX else []
    base_url = config.base_url
    return {
        "version": 1,
        "summary": summary,
        "lines": [*lines[:LINES_MAX], *more],
        "deployment": config.deployment,
        "rule": RULE,
        "cluster": EVERYWHERE,
        "simulated": all(state.simulated for state in standing),
        "state": State.STANDING.value,
        "action": "notice",
        "reason": "digest",
        "repeat_no": 0,
        "severity": "info",
        "owner": "",
        "episode": minute_of(at_unix_ms),
        "dedup_key": key,
        "since": None,
        "at": rfc3339(at_unix_ms),
        "largest_losses": [],
        "causes": [],
        "command": "flopwatch outages --state standing",
        "links": {} if base_url is None else {"dashboard": base_url},
    }


def line(state: IncidentState, at_unix_ms: int) -> str:
    """Return one outage in a few words."""
    figure = figure_of(state)
    shown = "" if figure is None or state.subjects is not None else f" {100 * figure:.1f}%"
    days = (at_unix_ms - (state.began_unix_ms or at_unix_ms)) // DAY_MS
    sim = "SIM " if state.simulated else ""
    return f"{sim}{state.cluster} {state.rule}{shown} for {max(1, days)}d"

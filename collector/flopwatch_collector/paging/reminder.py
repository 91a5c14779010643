"""The reminder: tells receivers that forget (Alertmanager) what still holds, every minute.

Where several collectors share a store, the one whose turn it is reminds. A reminder that fails is not tried
again: the next is a minute away, and what was told holds for four.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.paging.alertmanager import Alertmanager
from flopwatch_collector.paging.channel import Channel
from flopwatch_collector.paging.turn import Turn
from flopwatch_proto.errors import FlopwatchError

EVERY_S: Final = 60.0

log = structlog.get_logger()


@dataclass(slots=True)
class ReminderCounters:
    """What happened since the start."""

    told: int = 0
    failed: int = 0


class Reminder:
    """Reminds every receiver that forgets.

    Args:
        channels: by route name; those of other kinds are left alone.
        turn: whether this collector may send now.
    """

    def __init__(
        self,
        control: ControlStore,
        channels: Mapping[str, Channel],
        turn: Turn,
        clock: Callable[[], int],
    ) -> None:
        self.counters = ReminderCounters()
        self._control = control
        self._forgetful = {n: c for n, c in channels.items() if isinstance(c, Alertmanager)}
        self._turn = turn
        self._clock = clock

    async def run(self) -> None:
        """Remind for ever; ends when cancelled."""
        aside = Aside("reminder")
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                await self.once(aside)
        finally:
            await aside.end()

    async def once(self, aside: Aside) -> None:
        """Tell each receiver what it took and still holds, where it is this collector's turn."""
        if await self._turn.refusal(self._clock()) is not None:
            return
        for route, channel in self._forgetful.items():
            try:
                rows = await aside(self._control.holding, route)
                await channel.remind(rows, self._clock())
            except FlopwatchError as exc:
                self.counters.failed += 1
                log.warning("reminder_failed", route=route, reason=str(exc))
            else:
                self.counters.told += len(rows)

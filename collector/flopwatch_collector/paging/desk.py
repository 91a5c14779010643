"""The desk: everything that goes out, of one collector."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.paging.channels import channels_of
from flopwatch_collector.paging.digest import Digest
from flopwatch_collector.paging.heartbeat import Heartbeat
from flopwatch_collector.paging.outbox import Sender
from flopwatch_collector.paging.pace import Pace
from flopwatch_collector.paging.reminder import Reminder
from flopwatch_collector.paging.settings import PER_MINUTE, PagingConfig
from flopwatch_collector.paging.silences import Silences
from flopwatch_collector.paging.turn import AlwaysTurn, Turn


class Desk:
    """Sends pages, reminds, and beats.

    Args:
        environment: where secrets may be.
        turn: whether this collector may send now; None: it is alone.
        try_seconds_max: as of `Sender`.
        judged_unix_ms: when rules were last evaluated.

    Raises:
        UsageError: a URL or a secret is of no use.
    """

    def __init__(
        self,
        control: ControlStore,
        config: PagingConfig,
        environment: Mapping[str, str],
        *,
        clock: Callable[[], int],
        judged_unix_ms: Callable[[], int],
        turn: Turn | None = None,
        try_seconds_max: float | None = None,
    ) -> None:
        channels = channels_of(config, environment)
        turn = turn or AlwaysTurn()
        self.sender = Sender(
            control,
            channels,
            clock=clock,
            fallback=config.fallback,
            jitter=random.Random(),
            turn=turn,
            try_seconds_max=try_seconds_max,
            paces={
                route.name: Pace(route.per_minute or PER_MINUTE[route.kind])
                for route in config.route
            },
        )
        self.reminder = Reminder(control, channels, turn, clock)
        self.silences = Silences(control, channels, config.deployment, turn, clock)
        self.digest = Digest(control, config, turn, clock, self.sender.wake)
        self.heartbeat = Heartbeat(config.heartbeat, config.deployment, judged_unix_ms, clock)

    async def run(self) -> None:
        """Send for ever; ends when cancelled."""
        jobs = (self.sender, self.reminder, self.silences, self.digest, self.heartbeat)
        await asyncio.gather(*(job.run() for job in jobs))

    async def close(self) -> None:
        """Give connections back; what the store was told is on disk afterwards."""
        await self.sender.close()

"""An outage as the watch tells of it, and a desk that sends over real channels to real sockets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Act, Action, IncidentState, State
from flopwatch_collector.paging import page
from flopwatch_collector.paging.channels import channels_of
from flopwatch_collector.paging.outbox import Sender
from flopwatch_collector.paging.reminder import Reminder
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.paging.turn import AlwaysTurn
from flopwatch_collector.rules import Cause

SECRETS = {"KEY": "canary-key"}


class Outage:
    """One outage of allocation, and its pages. Attributes: now_ms: the clock of everything here."""

    def __init__(self, control: ControlStore, paging: PagingConfig, now_ms: int) -> None:
        self.control, self.paging, self.now_ms = control, paging, now_ms
        channels = channels_of(paging, SECRETS)
        self.sender = Sender(
            control,
            channels,
            clock=lambda: self.now_ms,
            fallback=paging.fallback,
            jitter=random.Random(1),
        )
        self.reminder = Reminder(control, channels, AlwaysTurn(), lambda: self.now_ms)
        self.state = IncidentState(
            rule="allocation",
            cluster="atlas",
            state=State.FIRING,
            episode="2027-01-15T07:37Z",
            began_unix_ms=now_ms - 23 * 60_000,
            fired_unix_ms=now_ms,
            last_eval_unix_ms=now_ms,
            lo=0.912,
            hi=0.912,
            value=0.912,
            line=0.96,
            lost_points={"MISSING": 8.8},
            leading_cause="MISSING",
            causes=(Cause(kind="node", name="r17-<n1>", cards=8, points=1.6),),
        )

    def decide(self, act: Act, repeat_no: int = 0, reason: str = "", **changes: object) -> None:
        """Store a state with a page, as the watch does."""
        if changes:
            self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        action = Action(act=act, episode=self.state.episode, repeat_no=repeat_no, reason=reason)
        rows = page.rows(self.state, [action], self.now_ms, self.paging)
        self.control.save(states=[self.state], pages=rows)
        self.state = replace(self.state, version=self.state.version + 1)

    async def send(self, times: int = 1) -> None:
        """Send what is due, some times a minute after each other."""
        for number in range(times):
            await self.sender.once()
            if number + 1 < times:
                self.now_ms += 61_000


def config(*routes: RouteConfig, fallback: str | None = None) -> PagingConfig:
    return PagingConfig(
        deployment="lab", base_url="https://flopwatch.example", route=routes, fallback=fallback
    )


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    yield opened
    opened.close()

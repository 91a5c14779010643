"""A test page over each route: opened, and resolved at once. Nothing of it is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.incident_state import Act, Action, IncidentState, State, minute_of
from flopwatch_collector.paging import page
from flopwatch_collector.paging.channel import Channel
from flopwatch_collector.paging.channels import channels_of
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_proto.errors import FlopwatchError, UsageError

CLUSTER: Final = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a route did. Attributes: error: empty: it took the page and its end."""

    route: str
    kind: str
    error: str = ""


async def try_routes(
    config: PagingConfig,
    environment: Mapping[str, str],
    only: str | None,
    clock: Callable[[], int],
) -> list[Result]:
    """Send a test page over each route, or over one.

    Raises:
        UsageError: there is no such route, or none at all.
    """
    routes = [route for route in config.route if only in (None, route.name)]
    if not routes:
        known = ", ".join(route.name for route in config.route) or "none"
        raise UsageError(f"paging.route: no route {only or 'is configured'}; known are {known}")
    channels = channels_of(with_routes(config, routes), environment)
    try:
        return [await _tried(route, channels[route.name], config, clock) for route in routes]
    finally:
        for channel in channels.values():
            await channel.close()


def with_routes(config: PagingConfig, routes: list[RouteConfig]) -> PagingConfig:
    """Return what pages of a test need of the configuration, with other routes."""
    return PagingConfig(deployment=config.deployment, base_url=config.base_url, route=tuple(routes))


async def _tried(
    route: RouteConfig, channel: Channel, config: PagingConfig, clock: Callable[[], int]
) -> Result:
    reference: str | None = None
    try:
        for act in (Act.TRIGGER, Act.RESOLVE):
            row = replace(_row(route, act, config, clock()), provider_ref=reference)
            reference = await channel.send(row, clock())
    except FlopwatchError as exc:
        return Result(route=route.name, kind=route.kind, error=f"did not take it: {exc}")
    return Result(route=route.name, kind=route.kind)


def _row(route: RouteConfig, act: Act, config: PagingConfig, now_unix_ms: int) -> OutboxRow:
    state = IncidentState(
        rule="allocation",
        cluster=CLUSTER,
        state=State.FIRING,
        episode=minute_of(now_unix_ms),
        began_unix_ms=now_unix_ms,
        severity="info",
    )
    action = Action(act=act, episode=state.episode)
    open_route = RouteConfig(name=route.name, kind=route.kind)
    (row,) = page.rows(state, [action], now_unix_ms, with_routes(config, [open_route]))
    body = json.loads(row.body)
    end = " is over" if act is Act.RESOLVE else ""
    body["summary"] = f"TEST of route {route.name[:40]}{end}: nothing is wrong, no action needed"
    return replace(row, body=json.dumps(body, ensure_ascii=False))

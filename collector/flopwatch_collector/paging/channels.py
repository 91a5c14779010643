"""The channel of each kind of route."""

from __future__ import annotations

from collections.abc import Mapping

from flopwatch_collector.paging.alertmanager import Alertmanager
from flopwatch_collector.paging.channel import Channel, secret_of
from flopwatch_collector.paging.pagerduty import PagerDuty
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.paging.slack import Slack
from flopwatch_collector.paging.webhook import Webhook


def channels_of(config: PagingConfig, environment: Mapping[str, str]) -> dict[str, Channel]:
    """Return a channel per route. Raises: UsageError where a URL or a secret is of no use."""
    return {route.name: _channel(route, secret_of(route, environment)) for route in config.route}


def _channel(route: RouteConfig, secret: bytes | None) -> Channel:
    match route.kind:
        case "alertmanager":
            return Alertmanager(route, secret)
        case "pagerduty":
            return PagerDuty(route, secret or b"")
        case "slack":
            return Slack(route, secret or b"")
        case _:
            return Webhook(route, secret or b"")

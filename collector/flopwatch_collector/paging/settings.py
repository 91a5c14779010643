"""Settings of paging: who gets which pages, and how this deployment is called."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from flopwatch_proto.errors import UsageError

URLS: Final = {
    "webhook": "",
    "pagerduty": "https://events.pagerduty.com",
    "slack": "https://slack.com",
    "alertmanager": "",
}
"""Kinds of routes, and where each goes by itself."""
_TIME: Final = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
WATCHERS: Final = ("healthcheck", "alertmanager")
PER_MINUTE: Final = {"webhook": 600, "pagerduty": 60, "slack": 50, "alertmanager": 600}
"""PagerDuty's limit is dynamic, 120 a minute for a key at best; Slack takes about one message a second."""


class RouteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[paging.route]]``.

    Attributes:
        name: as in logs and in the outbox; changing it starts a new line.
        kind: ``webhook``, ``pagerduty``, ``slack`` or ``alertmanager``.
        url: https or http; never logged. Of PagerDuty and Slack only where it is not their own.
        peers: the other members of an Alertmanager cluster: each is told everything.
        channel: where Slack posts: an id or a name.
        secret_file, secret_env: where the signing secret, routing key or token is read from; one of them.
        clusters, rules, owners, severities, teams: shell patterns; a page must match one of each. Its team
            is that of the largest loss; a page that knows of none matches ``*`` alone.
        send_simulated: False keeps pages of simulated clusters off this route.
        timeout_s: seconds for one try.
        digest: whether the daily line about standing outages goes here.
        per_minute: pages that are sent a minute at most; None: what the kind allows.
    """

    name: str
    kind: str = "webhook"
    url: str = ""
    peers: tuple[str, ...] = ()
    channel: str | None = None
    secret_file: str | None = None
    secret_env: str | None = None
    clusters: tuple[str, ...] = ("*",)
    rules: tuple[str, ...] = ("*",)
    owners: tuple[str, ...] = ("*",)
    severities: tuple[str, ...] = ("*",)
    teams: tuple[str, ...] = ("*",)
    send_simulated: bool = True
    timeout_s: float = 10.0
    digest: bool = False
    per_minute: int | None = None

    def takes(
        self,
        *,
        rule: str,
        cluster: str,
        simulated: bool,
        severity: str,
        owner: str,
        team: str = "",
    ) -> bool:
        """Whether pages of an outage go to this route. owner: who can act (`paging.owner`)."""
        asked = (
            (cluster, self.clusters),
            (rule, self.rules),
            (owner, self.owners),
            (severity, self.severities),
            (team, self.teams),
        )
        return (self.send_simulated or not simulated) and all(
            any(fnmatchcase(name, pattern) for pattern in patterns) for name, patterns in asked
        )


class HeartbeatConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[paging.heartbeat]]``: who outside is told that pages would come.

    Attributes:
        name: as in logs.
        url: https or http; never logged.
        kind: ``healthcheck`` (a POST) or ``alertmanager`` (the alert FlopwatchWatchdog).
        every_s: seconds between two.
        still_s: seconds without an evaluated rule after which none is sent.
    """

    name: str
    url: str
    kind: str = "healthcheck"
    every_s: float = 60.0
    still_s: float = 60.0


class PagingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[paging]``.

    Attributes:
        deployment: names this installation in dedup keys; two that page the same receiver differ.
        base_url: where people reach the dashboard; None leaves links out of pages.
        fallback: name of the route that also gets what another route refused or did not take in time.
        digest_at: when the daily digest is sent, HH:MM in UTC.
        pagerduty_secret_file: with what PagerDuty signs the webhooks that tell who acknowledged and resolved;
            None: none is taken.
        route: where pages go; none: outages are shown and sent nowhere.
        heartbeat: who is told every minute that pages would come, and pages when that stops.
    """

    deployment: str = "flopwatch"
    base_url: str | None = None
    fallback: str | None = None
    digest_at: str = "08:00"
    pagerduty_secret_file: str | None = None
    route: tuple[RouteConfig, ...] = ()
    heartbeat: tuple[HeartbeatConfig, ...] = ()


def validate(config: PagingConfig) -> None:
    """Check the routes' relations. Raises: UsageError naming the key and the fix."""
    if not config.deployment or ":" in config.deployment:
        raise UsageError("paging.deployment must be a name without a colon")
    if not _TIME.fullmatch(config.digest_at):
        raise UsageError(f"paging.digest_at is {config.digest_at!r}; write HH:MM, in UTC: 08:00")
    names = [route.name for route in config.route]
    for number, route in enumerate(config.route):
        key = f"paging.route[{number}]"
        if not route.name or names.count(route.name) > 1:
            raise UsageError(f"{key}.name must be given and unlike every other route's")
        _validate_route(route, key)
    for number, watcher in enumerate(config.heartbeat):
        _validate_heartbeat(watcher, f"paging.heartbeat[{number}]")
    if config.fallback is not None and config.fallback not in names:
        raise UsageError(f"paging.fallback names no route; known are {', '.join(names) or 'none'}")


def _validate_heartbeat(watcher: HeartbeatConfig, key: str) -> None:
    if watcher.kind not in WATCHERS:
        raise UsageError(f"{key}.kind is {watcher.kind!r}; known are {', '.join(WATCHERS)}")
    if watcher.every_s < 1 or watcher.still_s < 1:
        raise UsageError(f"{key}: every_s and still_s must be at least 1 second")


def _validate_route(route: RouteConfig, key: str) -> None:
    if route.kind not in URLS:
        raise UsageError(f"{key}.kind is {route.kind!r}; known are {', '.join(URLS)}")
    if not (route.url or URLS[route.kind]):
        raise UsageError(f"{key}.url must be given for a route of the kind {route.kind}")
    if route.peers and route.kind != "alertmanager":
        raise UsageError(f"{key}.peers are of an Alertmanager; a {route.kind} has one url")
    if (route.channel is None) == (route.kind == "slack"):
        raise UsageError(f"{key}.channel must be given for Slack, and for nothing else")
    secrets = (route.secret_file, route.secret_env)
    if None not in secrets or (secrets == (None, None) and route.kind != "alertmanager"):
        raise UsageError(f"{key}: set one of secret_file and secret_env")
    if route.timeout_s <= 0:
        raise UsageError(f"{key}.timeout_s must be more than 0 seconds")
    if route.per_minute is not None and route.per_minute <= 0:
        raise UsageError(f"{key}.per_minute must be more than 0")

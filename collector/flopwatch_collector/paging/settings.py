"""Settings of paging: who gets which pages, and how this deployment is called."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

import msgspec

from flopwatch_proto.errors import UsageError

KINDS: Final = ("webhook",)


class RouteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[paging.route]]``.

    Attributes:
        name: as in logs and in the outbox; changing it starts a new line.
        kind: ``webhook``.
        url: https or http; never logged.
        secret_file, secret_env: where the signing secret is read from; exactly one of them.
        clusters, rules: shell patterns; a page must match one of each.
        send_simulated: False keeps pages of simulated clusters off this route.
        timeout_s: seconds for one try.
    """

    name: str
    url: str
    kind: str = "webhook"
    secret_file: str | None = None
    secret_env: str | None = None
    clusters: tuple[str, ...] = ("*",)
    rules: tuple[str, ...] = ("*",)
    send_simulated: bool = True
    timeout_s: float = 10.0

    def takes(self, *, rule: str, cluster: str, simulated: bool) -> bool:
        """Whether pages of a rule and cluster go to this route."""
        return (
            (self.send_simulated or not simulated)
            and any(fnmatchcase(cluster, pattern) for pattern in self.clusters)
            and any(fnmatchcase(rule, pattern) for pattern in self.rules)
        )


class PagingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[paging]``.

    Attributes:
        deployment: names this installation in dedup keys; two that page the same receiver differ.
        base_url: where people reach the dashboard; None leaves links out of pages.
        fallback: name of the route that also gets what another route refused or did not take in time.
        route: where pages go; none: outages are shown and sent nowhere.
    """

    deployment: str = "flopwatch"
    base_url: str | None = None
    fallback: str | None = None
    route: tuple[RouteConfig, ...] = ()


def validate(config: PagingConfig) -> None:
    """Check the routes' relations. Raises: UsageError naming the key and the fix."""
    if not config.deployment or ":" in config.deployment:
        raise UsageError("paging.deployment must be a name without a colon")
    names = [route.name for route in config.route]
    for number, route in enumerate(config.route):
        key = f"paging.route[{number}]"
        if not route.name or names.count(route.name) > 1:
            raise UsageError(f"{key}.name must be given and unlike every other route's")
        if route.kind not in KINDS:
            raise UsageError(f"{key}.kind is {route.kind!r}; known are {', '.join(KINDS)}")
        if (route.secret_file is None) == (route.secret_env is None):
            raise UsageError(f"{key}: set one of secret_file and secret_env, for the signature")
        if route.timeout_s <= 0:
            raise UsageError(f"{key}.timeout_s must be more than 0 seconds")
    if config.fallback is not None and config.fallback not in names:
        raise UsageError(f"paging.fallback names no route; known are {', '.join(names) or 'none'}")

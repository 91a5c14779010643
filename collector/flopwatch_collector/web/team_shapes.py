"""The shapes of answers about teams, for the OpenAPI document; as `shapes`."""

from __future__ import annotations

from typing import Literal

from flopwatch_collector.web.shapes import (
    Cards,
    Hfu,
    Mfu,
    MfuBounds,
    Shape,
    Step,
    Value,
    WindowUsed,
)


class TeamFigures(Shape):
    """Card-time that was held, and what became of it. ``card_seconds`` is the sum of ``buckets``."""

    status: Literal["final", "provisional"]
    card_seconds: float
    buckets: dict[str, float]
    cards: Cards
    hfu: Hfu
    mfu: Mfu
    hfu_achievable: Value
    mfu_achievable: MfuBounds


class Team(TeamFigures):
    """A team in a list; null: held time without a word about its team. share: of what all teams held."""

    name: str | None
    simulated: bool
    device_kind: Literal["gpu", "cpu"]
    share: float | None


class TeamsAnswer(WindowUsed):
    """Teams, of each kind of cluster those with most card-time first."""

    teams: list[Team]


class TeamInCluster(TeamFigures):
    """A team's part of a cluster."""

    name: str


class TeamAnswer(WindowUsed, TeamFigures):
    """One team, over all clusters of one kind."""

    name: str
    simulated: bool
    device_kind: Literal["gpu", "cpu"]
    waterfall: list[Step]
    clusters: list[TeamInCluster]

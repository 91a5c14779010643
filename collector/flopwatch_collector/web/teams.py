"""Teams over HTTP: who held the cards, and what became of that time."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response

from flopwatch_collector import teams
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.web import team_shapes
from flopwatch_collector.web.api import (
    PROBLEMS,
    ClusterText,
    EndText,
    StartText,
    WindowText,
    answered,
    asked,
    sources_of,
    strict,
)
from flopwatch_collector.web.problems import Problem

router: Final = APIRouter(
    prefix="/api/v1/teams", dependencies=[Depends(strict)], responses=PROBLEMS
)


@router.get("", response_model=team_shapes.TeamsAnswer)
async def team_list(
    request: Request,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """The teams that held cards, those with most card-time first; the last 15 min by default."""
    used, kept_s = asked(request, window, start, end)
    sources = sources_of(request)
    listed = await sources.answers.get(
        ("teams", cluster, used.start, used.end),
        lambda: teams.teams(sources.collector, used, sources.now_unix_ms(), cluster),
        kept_s,
    )
    return answered(_window(used) | {"teams": listed})


@router.get("/{team:path}", response_model=team_shapes.TeamAnswer)
async def team(
    request: Request,
    team: str,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """One team: card-time by bucket, HFU, bounds of MFU, its waterfall, and its part of every cluster."""
    used, kept_s = asked(request, window, start, end)
    sources = sources_of(request)
    found = await sources.answers.get(
        ("team", team, cluster, used.start, used.end),
        lambda: teams.team(
            sources.collector,
            team,
            used,
            sources.now_unix_ms(),
            cluster,
            sources.reference_dtypes,
        ),
        kept_s,
    )
    if found is None:
        where = f" of cluster {cluster!r}" if cluster is not None else ""
        raise Problem(404, f"team {team[:64]!r} held no card{where} in this window")
    return answered(_window(used) | found)


def _window(used: Window) -> dict[str, Any]:
    return {
        "start": rfc3339(used.start),
        "end": rfc3339(used.end),
        "window_s": (used.end - used.start) / 1000,
    }

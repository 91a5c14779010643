"""Pages of teams: who held the cards, and one team's waterfall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from flopwatch_collector import teams
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.web import api, staircase, wording
from flopwatch_collector.web.pages import refused, rendered
from flopwatch_collector.web.problems import Problem
from flopwatch_proto.errors import FlopwatchError

WINDOWS: Final = ("15m", "24h", "7d", "30d", "90d")
DEFAULT: Final = "24h"
Json = Mapping[str, Any]

router: Final = APIRouter(include_in_schema=False)


@router.get("/teams")
async def team_list(request: Request, window: str = DEFAULT) -> Response:
    """Every team, those with most card-time first."""
    try:
        used, kept_s = api.asked(request, window, None, None)
        sources = api.sources_of(request)
        listed = await sources.answers.get(
            ("teams", None, used.start, used.end),
            lambda: teams.teams(sources.collector, used, sources.now_unix_ms(), None),
            kept_s,
        )
    except Problem as problem:
        return refused(problem)
    except FlopwatchError as exc:
        return refused(Problem(503, str(exc)))
    shown = [_figures(one) for one in listed]
    values = {"teams": shown, "window": window, "windows": WINDOWS, "end": rfc3339(used.end)}
    return rendered("teams.html", values | {"window_s": (used.end - used.start) / 1000})


@router.get("/teams/{name:path}")
async def team(request: Request, name: str, window: str = DEFAULT) -> Response:
    """One team: where the FLOPs of its card-time went, and in which clusters."""
    try:
        used, kept_s = api.asked(request, window, None, None)
        sources = api.sources_of(request)
        found = await sources.answers.get(
            ("team", name, None, used.start, used.end),
            lambda: teams.team(
                sources.collector, name, used, sources.now_unix_ms(), None, sources.reference_dtypes
            ),
            kept_s,
        )
    except Problem as problem:
        return refused(problem)
    except FlopwatchError as exc:
        return refused(Problem(503, str(exc)))
    if found is None:
        return refused(Problem(404, f"team {name[:64]!r} held no card in this window"))
    window_s = (used.end - used.start) / 1000
    values = {
        "team": found | {"end": rfc3339(used.end), "window_s": window_s},
        "heads": _heads(found),
        "parts_of": [_figures(part) for part in found["clusters"]],
        "waterfall": staircase.drawn(found, window_s),
        "simulated": found["simulated"],
        "window": window,
    }
    return rendered("team.html", values)


def _heads(found: Json) -> list[tuple[str, str, str, str]]:
    figures = _figures(found)
    return [
        ("Card-hours", figures["held"], "", f"active {figures['active']} %"),
        ("HFU", figures["hfu"], "%", "of allocated card-time"),
        ("MFU", figures["mfu"], "%", "bounds where FLOPs are estimated"),
    ]


def _figures(of: Json) -> dict[str, Any]:
    held, mfu = of["card_seconds"], of["mfu"]
    active = of["buckets"].get("ACTIVE", 0.0)
    return {
        "name": of["name"],
        "simulated": of.get("simulated", False),
        "held": wording.amount(held / 3600),
        "share": wording.percent(of.get("share")),
        "active": wording.percent(active / held if held else None),
        "hfu": wording.percent(of["hfu"]["value"]),
        "mfu": wording.span(mfu["lo"], mfu["hi"], mfu["value"], None),
    }

"""The web application: API, pages, metrics and health around one set of sources."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles

from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.web import (
    api,
    audit,
    books,
    captures,
    ceilings,
    exposition,
    health,
    jobs,
    outage_page,
    pages,
    problems,
    responses,
    rule_gauges,
    team_page,
    teams,
    turn,
    windows,
)
from flopwatch_collector.web.answers import LIVE_KEPT_S
from flopwatch_collector.web.asked import DEFAULT_WINDOW, window_of
from flopwatch_collector.web.headers import SecureHeaders
from flopwatch_collector.web.outages import OPEN_STATES
from flopwatch_collector.web.sources import Sources
from flopwatch_proto.errors import FlopwatchError

STATIC: Final = Path(__file__).parent / "static"


def create_app(sources: Sources, stopping: asyncio.Event) -> FastAPI:
    """Return the application. ``stopping`` ends the streams that would keep the process alive."""
    app = FastAPI(
        title="flopwatch",
        version="1",
        description="Where every FLOP of a GPU fleet goes. Unknown is null, never 0.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.sources = sources
    app.state.stopping = stopping
    app.state.last_pages = pages.LastPages()
    problems.install(app)
    app.include_router(api.router)
    app.include_router(audit.router)
    app.include_router(books.router)
    app.include_router(captures.router)
    app.include_router(ceilings.router)
    app.include_router(jobs.router)
    app.include_router(outage_page.router)
    app.include_router(pages.router)
    app.include_router(responses.router)
    app.include_router(team_page.router)
    app.include_router(teams.router)
    app.include_router(turn.router)
    app.include_router(windows.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_api_route("/metrics", _metrics, include_in_schema=False)
    app.add_api_route("/healthz", _healthz, include_in_schema=False)
    app.add_api_route("/readyz", _readyz, include_in_schema=False)
    app.add_middleware(SecureHeaders)
    return app


async def _metrics(request: Request) -> Response:
    """The collector's metrics and the clusters' figures; what does not answer is said to be down."""
    sources: Sources = request.app.state.sources
    window = window_of(sources.now_unix_ms(), DEFAULT_WINDOW, None, None)
    texts: str | None = None
    fleet: dict[str, Any] | None = None
    try:
        texts = await asyncio.to_thread(sources.collector.metrics)
        fleet, _ = await api.fleet_of(sources, window, LIVE_KEPT_S)
    except FlopwatchError:
        pass  # the two gauges of this process say so
    judged, incidents = await _ruled(sources)
    text = exposition.exposition(texts, fleet, sources.books.newest(), judged, incidents)
    return Response(text, media_type=exposition.MEDIA_TYPE)


async def _ruled(
    sources: Sources,
) -> tuple[list[rule_gauges.Judgement], list[IncidentState]]:
    """What rules say now, and the outages that hold; nothing where the control store does not answer."""

    def read() -> tuple[list[rule_gauges.Judgement], list[IncidentState]]:
        store = sources.control.store()
        observed = rule_gauges.newest(store, sources.now_unix_ms())
        return rule_gauges.judgements(observed, sources.rules), store.incidents(OPEN_STATES)

    try:
        return await asyncio.to_thread(read)
    except FlopwatchError:
        return [], []


async def _healthz(request: Request) -> Response:
    """This process is alive; with what the collector says of itself, or why it does not."""
    sources: Sources = request.app.state.sources
    try:
        said = await asyncio.to_thread(sources.collector.status)
    except FlopwatchError as exc:
        return api.answered({"status": "degraded", "reason": str(exc)})
    return api.answered({"status": "ok", **said})


async def _readyz(request: Request) -> Response:
    """200 only when ingest, the stores and this process all serve."""
    verdict = await health.ready(request.app.state.sources)
    return Response(
        msgspec.json.encode(verdict),
        200 if verdict["ready"] else 503,
        media_type="application/json",
    )

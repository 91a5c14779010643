"""Pages for people: rendered here, whole on first paint, the same without JavaScript."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import jinja2
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from flopwatch_collector.audit.books import AUDITED_MS
from flopwatch_collector.audit.losses import LOOKED_BACK_MS
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.web import (
    agents,
    api,
    audit,
    data_view,
    fleet_page,
    nodes,
    records,
    series,
    trouble,
    wording,
)
from flopwatch_collector.web.answers import LIVE_KEPT_S
from flopwatch_collector.web.asked import DAY_MS, DEFAULT_WINDOW, window_of
from flopwatch_collector.web.problems import RETRY_AFTER_S, Problem
from flopwatch_collector.web.sources import Sources
from flopwatch_proto.errors import FlopwatchError

SPARK_METRICS: Final = ("allocation", "hfu", "mfu_lo", "mfu_hi", "yield")
SPARK_KEPT_S: Final = 60.0
SPARK_SPAN_MS: Final = 7 * DAY_MS
MAPS_MAX: Final = 16
"""Clusters with a block on the map; one query each."""
LAST_PAGES_MAX: Final = 16
DATA_KEPT_S: Final = 60.0
"""How long the audit of a node is shared: its spool speaks of itself every minute."""

T = TypeVar("T")

router: Final = APIRouter(include_in_schema=False)
templates: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.globals["wording"] = wording


class LastPages:
    """The last known page per view, for when the collector does not answer. Bounded."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str | None], fleet_page.Page] = OrderedDict()

    def keep(self, page: fleet_page.Page) -> None:
        """Keep a page in place of the one before it."""
        self._kept[page.window, page.cluster] = page
        self._kept.move_to_end((page.window, page.cluster))
        while len(self._kept) > LAST_PAGES_MAX:
            self._kept.popitem(last=False)

    def of(self, window: str, cluster: str | None) -> fleet_page.Page | None:
        """Return the last page of a view."""
        return self._kept.get((window, cluster))


def rendered(template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Return a template as a response."""
    return HTMLResponse(templates.get_template(template).render(values), status)


@router.get("/")
async def fleet(
    request: Request, window: str = DEFAULT_WINDOW, cluster: str | None = None
) -> Response:
    """The fleet page; with the last known figures where the collector does not answer now."""
    sources = api.sources_of(request)
    last: LastPages = request.app.state.last_pages
    try:
        page = await _fleet_page(sources, window, cluster)
    except Problem as problem:
        return refused(problem)
    except FlopwatchError as exc:
        kept = last.of(window, cluster)
        if kept is None:
            return refused(Problem(503, str(exc)))
        stale = replace(kept, now_unix_ms=sources.now_unix_ms(), stale_reason=str(exc))
        return rendered("fleet.html", fleet_page.view(stale))
    last.keep(page)
    return rendered("fleet.html", fleet_page.view(page))


async def _fleet_page(sources: Sources, window: str, cluster: str | None) -> fleet_page.Page:
    now = sources.now_unix_ms()
    used = window_of(now, window, None, None)
    data, _ = await api.fleet_of(sources, used, LIVE_KEPT_S)
    names = [e["name"] for e in data["clusters"]]
    if cluster is not None and cluster not in names:
        raise Problem(404, f"cluster {cluster!r} had no slot in service in this window")
    maps = {
        name: await _or(_map(sources, name, used.end), [])
        for name in ([cluster] if cluster is not None else names[:MAPS_MAX])
    }
    sparks, spark_span = await _or(_sparks(sources, used, cluster), ({}, ""))
    gaps = await _or(
        sources.answers.get(
            ("gap_count", used.start, used.end),
            lambda: records.gap_count(sources.collector, used),
            LIVE_KEPT_S,
        ),
        None,
    )
    rosters = await _or(
        sources.answers.get(
            ("rosters", used.end),
            lambda: records.newest_rosters(sources.collector, used),
            LIVE_KEPT_S,
        ),
        [],
    )
    books = sources.books.newest()
    return fleet_page.Page(
        fleet=data,
        maps=maps,
        sparks=sparks,
        spark_span=spark_span,
        gaps=gaps,
        rosters=rosters,
        books=books,
        trouble=await _or(_trouble(sources), []) + trouble.of_books(books or ()),
        now_unix_ms=now,
        window=window,
        cluster=cluster,
        deployment=sources.deployment,
    )


async def _or(answer: Awaitable[T], otherwise: T) -> T:
    """Return an answer that the page can do without, or what stands in for it."""
    try:
        return await answer
    except FlopwatchError:
        return otherwise


async def _trouble(sources: Sources) -> list[dict[str, str]]:
    return await sources.answers.get(
        "trouble", lambda: trouble.seen(sources, agents.everywhere(sources)), trouble.KEPT_S
    )


async def _map(sources: Sources, cluster: str, end: int) -> list[dict[str, Any]]:
    return await sources.answers.get(
        ("map", cluster, end),
        lambda: nodes.cluster_map(sources.collector, cluster, end, sources.now_unix_ms()),
        LIVE_KEPT_S,
    )


async def _sparks(
    sources: Sources, used: Window, cluster: str | None
) -> tuple[Mapping[str, list[float | None]], str]:
    """Return the sparklines over seven days, or since the first account where that is younger."""

    def compute() -> tuple[Mapping[str, list[float | None]], str]:
        first = series.first_minute(sources.collector)
        if first is None:
            return {}, ""
        start = max(first, used.end - SPARK_SPAN_MS)
        steps = series.steps_of(Window(start=start, end=max(used.end, start + 60_000)), None)
        sums = series.sums_by_step(sources.collector, steps, cluster is not None)
        points = sums.get(cluster) if cluster is not None else None
        points = points or sums.get("real") or sums.get("simulated") or {}
        lines = {m: series.values_of(points, steps, m) for m in SPARK_METRICS}
        return lines, wording.length((used.end - start) / 1000)

    return await sources.answers.get(("sparks", cluster), compute, SPARK_KEPT_S)


@router.get("/nodes/{node:path}")
async def node(
    request: Request, node: str, cluster: str | None = None, window: str = DEFAULT_WINDOW
) -> Response:
    """A node and its cards."""
    sources = api.sources_of(request)
    try:
        used = window_of(sources.now_unix_ms(), window, None, None)
        found = await api.node_of(sources, node, cluster, used, LIVE_KEPT_S)
    except Problem as problem:
        return refused(problem)
    except FlopwatchError as exc:
        return refused(Problem(503, str(exc)))
    of = found["cluster"]
    audited = await _or(
        sources.answers.get(
            ("data", of, node),
            lambda: audit.audited(sources, AUDITED_MS, LOOKED_BACK_MS, of, node),
            DATA_KEPT_S,
        ),
        None,
    )
    head = fleet_page.subject_view(found)
    return rendered("node.html", {"node": found, "data": data_view.of_node(audited), **head})


@router.get("/api/docs")
async def docs(request: Request) -> Response:
    """The OpenAPI document as a page: what can be asked, and with which parameters."""
    return rendered("docs.html", {"openapi": request.app.openapi()})


def refused(problem: Problem) -> Response:
    """Return a problem as a page."""
    response = rendered("problem.html", {"problem": problem}, problem.status)
    if problem.status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response

"""The HTTP API: `/api/v1/…`. Every answer is JSON; every error is a problem document."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import cluster as cluster_answer
from flopwatch_collector.ledger.fleet import fleet as fleet_answer
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.web import nodes, outages, records, series, shapes, stream
from flopwatch_collector.web.agents import everywhere
from flopwatch_collector.web.answers import LIVE_KEPT_S, PAST_KEPT_S
from flopwatch_collector.web.asked import (
    DEFAULT_WINDOW,
    length_ms,
    one_of,
    only_known,
    window_of,
)
from flopwatch_collector.web.problems import Problem
from flopwatch_collector.web.sources import Sources

DAY: Final = "24h"

WindowText = Annotated[
    str | None, Query(description="Length: 90s, 15m, 2h, 7d. Default 15m; lists: 24h.")
]
StartText = Annotated[str | None, Query(description="First moment, RFC 3339.")]
EndText = Annotated[
    str | None,
    Query(
        description="First moment after the window, RFC 3339. Default: the newest that is known."
    ),
]
ClusterText = Annotated[str | None, Query(description="Only this cluster.")]


async def strict(request: Request) -> None:
    """Refuse query parameters that the route does not have."""
    route = request.scope["route"]
    if isinstance(route, APIRoute):
        only_known(request.query_params, (f.alias for f in route.dependant.query_params))


PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, "content": {"application/problem+json": {}}}
    for status, text in (
        (404, "No such subject."),
        (422, "A parameter is wrong; `detail` names it and the fix."),
        (503, "Busy or not ready; try again after `Retry-After` seconds."),
    )
}
router: Final = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)], responses=PROBLEMS)


def sources_of(request: Request) -> Sources:
    """Return what the application reads from."""
    sources: Sources = request.app.state.sources
    return sources


def asked(
    request: Request,
    window: str | None,
    start: str | None,
    end: str | None,
    default: str = DEFAULT_WINDOW,
) -> tuple[Window, float]:
    """Return the window asked for, and how long an answer for it may be shared."""
    if window is None and (start is None or end is None) and default != DEFAULT_WINDOW:
        window = default if start is None else None
    used = window_of(sources_of(request).now_unix_ms(), window, start, end)
    return used, LIVE_KEPT_S if end is None and start is None else PAST_KEPT_S


def answered(data: Any) -> Response:
    """Return data as JSON; NaN has no place in it and becomes null."""
    return Response(msgspec.json.encode(data), media_type="application/json")


async def fleet_of(sources: Sources, window: Window, kept_s: float) -> tuple[dict[str, Any], bytes]:
    """Return the fleet's answer and its JSON, shared by everyone who asks for this window."""

    def compute() -> tuple[dict[str, Any], bytes]:
        open_outages = outages.outages_by_cluster(sources.control.store())
        data = fleet_answer(
            sources.collector,
            window,
            sources.now_unix_ms(),
            open_outages,
            sources.reference_dtypes,
        )
        return data, msgspec.json.encode(data)

    return await sources.answers.get(("fleet", window.start, window.end), compute, kept_s)


@router.get("/fleet", response_model=shapes.Fleet)
async def fleet(
    request: Request, window: WindowText = None, start: StartText = None, end: EndText = None
) -> Response:
    """Every cluster and their sum: allocation, HFU, MFU bounds, yield, waterfall, outages."""
    used, kept_s = asked(request, window, start, end)
    _, body = await fleet_of(sources_of(request), used, kept_s)
    return Response(body, media_type="application/json")


@router.get("/clusters/{name:path}", response_model=shapes.ClusterAnswer)
async def cluster(
    request: Request,
    name: str,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """One cluster."""
    used, kept_s = asked(request, window, start, end)
    sources = sources_of(request)

    def compute() -> dict[str, Any] | None:
        open_outages = outages.outages_by_cluster(sources.control.store())
        return cluster_answer(
            sources.collector,
            name,
            used,
            sources.now_unix_ms(),
            open_outages,
            sources.reference_dtypes,
        )

    found = await sources.answers.get(("cluster", name, used.start, used.end), compute, kept_s)
    if found is None:
        raise Problem(404, f"cluster {name!r} had no slot in service in this window")
    return answered(found)


@router.get("/nodes", response_model=shapes.NodesAnswer)
async def node_list(
    request: Request,
    cluster: Annotated[str, Query(description="The cluster whose nodes to list.")],
    end: EndText = None,
) -> Response:
    """The nodes of a cluster in the last interval before the end: what the node map shows."""
    used, kept_s = asked(request, "10s", None, end)
    sources = sources_of(request)
    found = await sources.answers.get(
        ("map", cluster, used.end),
        lambda: nodes.cluster_map(sources.collector, cluster, used.end, sources.now_unix_ms()),
        kept_s,
    )
    if not found:
        raise Problem(404, f"cluster {cluster!r} has no slot in service at {rfc3339(used.end)}")
    return answered({"cluster": cluster, "end": rfc3339(used.end), "nodes": found})


@router.get("/nodes/{node:path}", response_model=shapes.NodeAnswer)
async def node(
    request: Request,
    node: str,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """One node, its cards, and the newest row of each with a reason for every null."""
    used, kept_s = asked(request, window, start, end)
    return answered(await node_of(sources_of(request), node, cluster, used, kept_s))


async def node_of(
    sources: Sources, name: str, cluster: str | None, window: Window, kept_s: float
) -> dict[str, Any]:
    """Return the answer about a node. Raises: Problem: 404 or 422."""
    return await sources.answers.get(
        ("node", name, cluster, window.start, window.end),
        lambda: nodes.node(
            sources.collector,
            name,
            cluster,
            window,
            sources.now_unix_ms(),
            sources.reference_dtypes,
        ),
        kept_s,
    )


@router.get("/outages", response_model=shapes.OutagesAnswer)
async def outage_list(
    request: Request,
    state: Annotated[
        str | None, Query(description="Only these: " + ", ".join(outages.STATES) + ".")
    ] = None,
) -> Response:
    """Open outages, or those of one state; resolved ones of the last seven days."""
    if state is not None:
        one_of("state", state, outages.STATES)
    sources = sources_of(request)
    now = sources.now_unix_ms()
    listed = await asyncio.to_thread(lambda: outages.outages(sources.control.store(), now, state))
    return answered({"outages": listed})


async def _records(
    request: Request,
    kind: str,
    window: tuple[str | None, str | None, str | None],
    cluster: str | None,
) -> Response:
    used, _ = asked(request, *window, default=DAY)
    sources = sources_of(request)
    if window[2] is None:
        # Lists are of what happened, not sums over whole minutes: the newest entries belong to them.
        used = Window(start=used.start, end=max(used.end, sources.now_unix_ms()))
    listed = await sources.answers.get(
        (kind, cluster, used.start, used.end),
        lambda: getattr(records, kind)(sources.collector, used, cluster),
        PAST_KEPT_S,
    )
    return answered(
        {
            "start": rfc3339(used.start),
            "end": rfc3339(used.end),
            kind: listed,
            "truncated": len(listed) == records.ROWS_MAX,
        }
    )


@router.get("/events", response_model=shapes.RecordsAnswer)
async def event_list(
    request: Request,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """Xids and other things that happened, newest first; the last 24 h by default."""
    return await _records(request, "events", (window, start, end), cluster)


@router.get("/probes", response_model=shapes.RecordsAnswer)
async def probe_list(
    request: Request,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """Measured ceilings, newest first; the last 24 h by default."""
    return await _records(request, "probes", (window, start, end), cluster)


@router.get("/gaps", response_model=shapes.RecordsAnswer)
async def gap_list(
    request: Request,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """Rows that agents could not keep, newest first; the last 24 h by default."""
    return await _records(request, "gaps", (window, start, end), cluster)


@router.get("/inventory", response_model=shapes.RecordsAnswer)
async def inventory(request: Request, cluster: ClusterText = None) -> Response:
    """Every declared slot with its state now."""
    sources = sources_of(request)
    now = sources.now_unix_ms()
    listed = await sources.answers.get(
        ("inventory", cluster),
        lambda: records.inventory(sources.collector, cluster, now),
        PAST_KEPT_S,
    )
    return answered({"slots": listed, "truncated": len(listed) == records.SLOTS_MAX})


@router.get("/reported", response_model=shapes.RecordsAnswer)
async def reported(
    request: Request, cluster: ClusterText = None, window: WindowText = None
) -> Response:
    """What reports: per slot the newest row's SKU, serial number and UUID; the last 15 min by default."""
    sources = sources_of(request)
    now = sources.now_unix_ms()
    since = now - length_ms("window", window or DEFAULT_WINDOW)
    listed = await sources.answers.get(
        ("reported", cluster, window),
        lambda: records.reported(sources.collector, cluster, since),
        PAST_KEPT_S,
    )
    return answered({"slots": listed, "truncated": len(listed) == records.SLOTS_MAX})


@router.get("/agents", response_model=shapes.RecordsAnswer)
async def agents(request: Request, cluster: ClusterText = None) -> Response:
    """Which agents report, to which collector: version, last word, backlog, clock skew; of the last week."""
    listed = await asyncio.to_thread(everywhere, sources_of(request))
    return answered(
        {"agents": [records.agent(a) for a in listed if cluster in (None, a["cluster"])]}
    )


@router.get("/series", response_model=shapes.SeriesAnswer)
async def series_of(
    request: Request,
    metric: Annotated[str, Query(description=", ".join(series.METRICS))] = "allocation",
    by: Annotated[str, Query(description="cluster or fleet")] = "cluster",
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
    step: Annotated[
        str | None, Query(description="Length of a step: 1m, 1h. Default: 120.")
    ] = None,
) -> Response:
    """A figure over time, from minutes, or from hours where the window is longer than 8 days."""
    one_of("metric", metric, series.METRICS)
    one_of("by", by, ("cluster", "fleet"))
    used, kept_s = asked(request, window, start, end, default=DAY)
    steps = series.steps_of(
        used, None if step is None else length_ms("step", step, least_ms=60_000)
    )
    sources = sources_of(request)
    found = await sources.answers.get(
        ("series", metric, by, used.start, used.end, steps.step_ms),
        lambda: series.series(sources.collector, metric, by, steps),
        kept_s,
    )
    return answered(found)


@router.get("/stream", response_class=StreamingResponse)
async def live(request: Request, window: WindowText = None) -> StreamingResponse:
    """Server-sent events named `fleet`: the answer of `/fleet` at every new interval."""
    asked(request, window, None, None)
    sources = sources_of(request)
    stream.admitted(sources)

    async def body() -> bytes:
        used, kept_s = asked(request, window, None, None)
        return (await fleet_of(sources, used, kept_s))[1]

    return StreamingResponse(
        stream.events(sources, body, request.app.state.stopping),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )

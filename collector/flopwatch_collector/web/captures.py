"""Captures over HTTP: ask nodes for readings at full resolution, see who answered, take the readings.

The only part of the API that writes: a request becomes rows of the control store, which the collector
sends to the nodes. Nothing here waits for a node.
"""

from __future__ import annotations

import asyncio
import csv
import io
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from flopwatch_collector.control import captures, operations
from flopwatch_collector.control.captures import CaptureAsk
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.telemetry import capture as held
from flopwatch_collector.web import shapes
from flopwatch_collector.web.api import PROBLEMS, ClusterText, answered, sources_of, strict
from flopwatch_collector.web.asked import DAY_MS, moment_ms
from flopwatch_collector.web.problems import Problem
from flopwatch_collector.web.sources import Sources

HELD_MS: Final = 15 * 60_000
"""How far back agents remember, and how far ahead they let themselves be asked."""
BEGINS_MS: Final = 3_000
"""A window from now on begins so much later: by then every node knows of it."""
SLOTS_MAX: Final = 4_096
NODES_MAX: Final = 256
OPEN_SLOTS_MAX: Final = 4 * SLOTS_MAX
VALUES_MAX: Final = 4_000_000
"""Of one JSON answer; larger ones are asked for node by node, or as CSV."""
LISTED_MS: Final = 35 * DAY_MS

router: Final = APIRouter(
    prefix="/api/v1/captures", dependencies=[Depends(strict)], responses=PROBLEMS
)
NodeText = Annotated[str | None, Query(description="Only this node.")]
Name = Annotated[str, Field(min_length=1, max_length=253)]


class Asked(BaseModel):
    """What to capture: the ranks of a job, or whole nodes; from … to, or so many seconds from now."""

    model_config = ConfigDict(extra="forbid")

    cluster: Name | None = Field(None, description="Needed with nodes, or where two have the job.")
    job: Name | None = Field(None, description="Every slot that it holds now.")
    nodes: list[Name] | None = Field(
        None, min_length=1, max_length=NODES_MAX, description="Every slot in service of these."
    )
    start: str | None = Field(None, alias="from", description="First moment, RFC 3339.")
    end: str | None = Field(None, alias="to", description="First moment after it, RFC 3339.")
    seconds: float | None = Field(None, ge=1, le=HELD_MS / 1000, description="From now on.")
    readings_per_second: int = Field(0, ge=0, le=10, description="0: as often as agents read.")
    by: str = Field("", max_length=253, description="Who asks.")


@router.post("", status_code=201, response_model=shapes.Capture)
async def ask(request: Request, asked: Asked) -> Response:
    """Ask every rank of a job, or nodes, for its readings of a window at full resolution."""
    sources = sources_of(request)
    origin = request.client.host if request.client is not None else ""
    response = answered(await asyncio.to_thread(_ask, sources, asked, origin))
    response.status_code = 201
    return response


@router.get("", response_model=shapes.RecordsAnswer)
async def capture_list(request: Request, cluster: ClusterText = None) -> Response:
    """Captures of the last 35 days, newest first, with how many slots answered."""
    sources = sources_of(request)
    since = sources.now_unix_ms() - LISTED_MS
    listed = await asyncio.to_thread(
        lambda: captures.summaries(sources.control.store(), cluster=cluster, since_unix_ms=since)
    )
    shown = [_shown(summary) for summary in listed]
    return answered({"captures": shown, "truncated": len(shown) == captures.LISTED_MAX})


@router.get("/{capture_id}.csv", response_class=StreamingResponse)
async def capture_csv(
    request: Request, capture_id: str, node: NodeText = None
) -> StreamingResponse:
    """The readings as CSV: one line per reading, the slots one after the other."""
    sources = sources_of(request)
    summary = await asyncio.to_thread(_summary, sources, capture_id)
    return StreamingResponse(_csv_lines(sources, summary, node), media_type="text/csv")


@router.get("/{capture_id}", response_model=shapes.Capture)
async def capture(
    request: Request,
    capture_id: str,
    node: NodeText = None,
    readings: Annotated[bool, Query(description="False: only who answered.")] = True,
) -> Response:
    """One capture: who answered, and every reading as columns; null where there is no value."""
    sources = sources_of(request)
    if not readings:
        return answered(await asyncio.to_thread(_capture, sources, capture_id, node, False))
    async with sources.readings:
        return answered(await asyncio.to_thread(_capture, sources, capture_id, node, True))


# ---- asking


def _ask(sources: Sources, asked: Asked, origin: str) -> dict[str, Any]:
    now = sources.now_unix_ms()
    start, end = _window(asked, now)
    store = sources.control.store()
    places = _places(sources, asked, now)
    if (waiting := captures.standing(store).slots) + len(places) > OPEN_SLOTS_MAX:
        raise Problem(429, f"{waiting} slots have not answered what was asked before; ask later")
    wanted = CaptureAsk(
        id=secrets.token_hex(8),
        cluster=places[0].cluster,
        slots=[(place.node, place.slot) for place in places],
        from_unix_ms=start,
        to_unix_ms=end,
        readings_per_second=asked.readings_per_second,
        asked_unix_ms=now,
        asked_by=asked.by or origin,
        job=asked.job or "",
    )
    captures.ask(store, wanted)
    what = {"job": asked.job, "nodes": asked.nodes, "from": rfc3339(start), "to": rfc3339(end)}
    operations.record(
        *(store, now, wanted.asked_by, "capture", f"{wanted.cluster}/{wanted.id}"),
        origin=origin,
        after=what,
    )
    return _capture(sources, wanted.id, None, readings=False)


def _window(asked: Asked, now: int) -> tuple[int, int]:
    """Return the window that is asked for, Unix ms. Raises: Problem: 422."""
    if asked.seconds is not None:
        if asked.start is not None or asked.end is not None:
            raise Problem(422, "seconds: from and to say it all; leave it out", parameter="seconds")
        start = now + BEGINS_MS
        return start, start + round(asked.seconds * 1000)
    if asked.start is None or asked.end is None:
        raise Problem(422, "seconds: name it, or both from and to", parameter="seconds")
    start, end = moment_ms("from", asked.start), moment_ms("to", asked.end)
    if start >= end:
        raise Problem(422, "to: it must come after from", parameter="to")
    minutes = HELD_MS // 60_000
    if end <= now - HELD_MS:
        raise Problem(422, f"to: agents remember {minutes} minutes", parameter="to")
    if end > now + HELD_MS:
        raise Problem(422, f"to: it may lie at most {minutes} minutes ahead", parameter="to")
    # What lies before anybody's memory would only make the window too long to be asked for.
    return max(start, now - HELD_MS), end


def _places(sources: Sources, asked: Asked, now: int) -> list[held.Place]:
    """Return the slots to ask, of one cluster. Raises: Problem: 404 or 422."""
    if (asked.job is None) == (asked.nodes is None):
        raise Problem(422, "job: name a job or nodes, and not both", parameter="job")
    if asked.job is not None:
        places = held.places_of_job(sources.collector, asked.job, asked.cluster, now)
        subject = f"job {asked.job!r} holds no card"
    else:
        if asked.cluster is None:
            raise Problem(422, "cluster: name the cluster of the nodes", parameter="cluster")
        nodes = asked.nodes or []
        places = held.places_of_nodes(sources.collector, asked.cluster, nodes, now)
        silent = sorted(set(nodes) - {place.node for place in places})
        subject = (
            f"node {(silent or nodes)[0]!r} of cluster {asked.cluster!r} has no slot in service"
        )
        places = [] if silent else places
    if not places:
        raise Problem(404, f"{subject} now")
    clusters = sorted({place.cluster for place in places})
    if len(clusters) > 1:
        names = ", ".join(clusters)
        raise Problem(422, f"cluster: several have this job: {names}", parameter="cluster")
    if any(place.simulated for place in places):
        raise Problem(422, "cluster: simulated nodes keep no readings", parameter="cluster")
    if len(places) > SLOTS_MAX:
        text = f"nodes: {len(places)} slots are more than {SLOTS_MAX}; name some of the nodes"
        raise Problem(422, text, parameter="nodes")
    return places


# ---- answering


def _summary(sources: Sources, capture_id: str) -> dict[str, Any]:
    found = captures.summaries(sources.control.store(), capture_id=capture_id)
    if not found:
        raise Problem(404, f"no capture {capture_id[:64]!r}; /api/v1/captures lists all there are")
    return found[0]


def _capture(sources: Sources, capture_id: str, node: str | None, readings: bool) -> dict[str, Any]:
    summary = _summary(sources, capture_id)
    places = captures.places(sources.control.store(), capture_id)
    shown = _shown(summary) | {
        "ranks": [
            {"node": at, "slot": slot, "state": state}
            for at, slot, state in places
            if node is None or at == node
        ]
    }
    if readings:
        cluster = summary["cluster"]
        values = held.values_held(sources.collector, cluster, capture_id, node)
        if values > VALUES_MAX:
            text = (
                f"node: {values} values are too many for one answer; name a node, or take the CSV"
            )
            raise Problem(422, text, parameter="node")
        shown["readings"] = held.readings_held(sources.collector, cluster, capture_id, node)
    return shown


def _shown(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the API says of a capture without its readings."""
    return {
        "id": summary["id"],
        "cluster": summary["cluster"],
        "job": summary["job"] or None,
        "from": rfc3339(summary["from_unix_ms"]),
        "to": rfc3339(summary["to_unix_ms"]),
        "readings_per_second": summary["readings_per_second"],
        "asked": rfc3339(summary["asked_unix_ms"]),
        "asked_by": summary["asked_by"],
        "state": _state(summary),
        "slots": summary["slots"],
        "answered": summary["answered"],
    }


def _state(summary: Mapping[str, Any]) -> str:
    if summary["answered"] == summary["slots"]:
        return captures.ANSWERED
    if summary["asked"] == summary["slots"]:
        return captures.ASKED
    return captures.SENT if summary["asked"] + summary["sent"] else captures.EXPIRED


async def _csv_lines(
    sources: Sources, summary: Mapping[str, Any], node: str | None
) -> AsyncIterator[str]:
    """Yield the header, then the readings of one node after the other."""
    of = (sources.collector, summary["cluster"], summary["id"])
    names = await asyncio.to_thread(held.names_held, *of, node)
    yield _csv([("node", "slot", "taken_unix_ms", *names)])
    places = await asyncio.to_thread(captures.places, sources.control.store(), summary["id"])
    for at in sorted({place[0] for place in places if node is None or place[0] == node}):
        async with sources.readings:
            slots = await asyncio.to_thread(held.readings_held, *of, at)
        for slot in slots:
            nothing = [None] * len(slot["taken_unix_ms"])
            columns = [slot["columns"].get(name, nothing) for name in names]
            values = zip(slot["taken_unix_ms"], *columns, strict=True)
            yield _csv([(at, slot["slot"], *reading) for reading in values])


def _csv(lines: list[tuple[Any, ...]]) -> str:
    """Return lines as CSV; what is not known is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()

"""Silences and maintenance windows over HTTP: listed, made, and ended before their time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from flopwatch_collector.control import operations
from flopwatch_collector.control.operations import Maintenance, Silence
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import rfc3339
from flopwatch_collector.web import shapes
from flopwatch_collector.web.api import PROBLEMS, answered, sources_of, strict
from flopwatch_collector.web.asked import length_ms, moment_ms
from flopwatch_collector.web.problems import Problem
from flopwatch_collector.web.sources import Sources
from flopwatch_proto.errors import UsageError

router: Final = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)], responses=PROBLEMS)
Pattern = Annotated[str, Field(min_length=1, max_length=253)]
Number = Annotated[int, Path(ge=1, le=2**53)]
By = Annotated[str, Query(min_length=1, max_length=200, description="Who.")]
All = Annotated[bool, Query(description="Those that are over, too.")]


class Window(BaseModel):
    """How long, by whom and why: from now on, or from a moment."""

    model_config = ConfigDict(extra="forbid")

    start: str | None = Field(None, description="RFC 3339; left out: now.")
    length: str = Field(alias="for", max_length=20, description="How long: 90m, 6h, 2d.")
    by: str = Field(min_length=1, max_length=200)
    why: str = Field(min_length=1, max_length=500)


class AskedSilence(Window):
    """Pages to hold: of clusters and rules, shell patterns."""

    cluster: Pattern = "*"
    rule: Pattern = "*"


class AskedMaintenance(Window):
    """Nodes that rules do not expect in use: shell patterns; ``*`` holds all pages of the cluster."""

    cluster: Pattern
    nodes: Pattern


@router.get("/silences", response_model=shapes.RecordsAnswer)
async def silences(request: Request, everything: All = False) -> Response:
    """Silences that hold now or will, here or in Alertmanager."""
    return await _listed(request, "silences", operations.silences, everything)


@router.post("/silences", status_code=201, response_model=shapes.RecordsAnswer)
async def silence(request: Request, asked: AskedSilence) -> Response:
    """Hold pages for a while: what still fires afterwards is sent then."""
    matchers = {"cluster": asked.cluster, "rule": asked.rule}
    if asked.cluster == asked.rule == "*":
        raise Problem(
            422, "cluster: name a cluster or a rule: nobody wants none at all", parameter="cluster"
        )
    start, end = _span(sources_of(request), asked)
    made = Silence(
        matchers=matchers, starts_unix_ms=start, ends_unix_ms=end, by=asked.by, why=asked.why
    )
    return await _made(request, "silence", made, operations.add_silence)


@router.delete("/silences/{number}", response_model=shapes.RecordsAnswer)
async def end_silence(request: Request, number: Number, by: By) -> Response:
    """End a silence now."""
    return await _ended(request, "silence", number, by)


@router.get("/maintenance", response_model=shapes.RecordsAnswer)
async def maintenances(request: Request, everything: All = False) -> Response:
    """Maintenance windows that hold now or will."""
    return await _listed(request, "maintenance", operations.maintenances, everything)


@router.post("/maintenance", status_code=201, response_model=shapes.RecordsAnswer)
async def maintenance(request: Request, asked: AskedMaintenance) -> Response:
    """Take nodes out of what rules expect; cards that are in use count all the same."""
    start, end = _span(sources_of(request), asked)
    made = Maintenance(
        cluster=asked.cluster,
        nodes=asked.nodes,
        starts_unix_ms=start,
        ends_unix_ms=end,
        by=asked.by,
        why=asked.why,
    )
    return await _made(request, "maintenance", made, operations.add_maintenance)


@router.delete("/maintenance/{number}", response_model=shapes.RecordsAnswer)
async def end_maintenance(request: Request, number: Number, by: By) -> Response:
    """End a maintenance window now."""
    return await _ended(request, "maintenance", number, by)


def _span(sources: Sources, asked: Window) -> tuple[int, int]:
    now = sources.now_unix_ms()
    start = now if asked.start is None else moment_ms("start", asked.start)
    return start, start + length_ms("for", asked.length)


async def _listed(
    request: Request,
    name: str,
    read: Callable[[ControlStore], list[Any]],
    everything: bool,
) -> Response:
    sources = sources_of(request)
    found = await asyncio.to_thread(lambda: read(sources.control.store()))
    now = sources.now_unix_ms()
    listed = [_shown(one, now) for one in found if everything or one.ends_unix_ms > now]
    return answered({name: listed})


async def _made(
    request: Request, kind: str, made: Any, add: Callable[[ControlStore, Any], int]
) -> Response:
    sources = sources_of(request)
    now = sources.now_unix_ms()

    def write() -> dict[str, Any]:
        store = sources.control.store()
        try:
            number = add(store, made)
        except UsageError as exc:
            raise Problem(422, str(exc)) from exc
        shown = _shown(made, now) | {"id": number}
        operations.record(
            *(store, now, made.by, kind, str(number)), origin=_origin(request), after=shown
        )
        return shown

    answer = answered({kind: await asyncio.to_thread(write)})
    answer.status_code = 201
    return answer


async def _ended(request: Request, kind: str, number: int, by: str) -> Response:
    sources = sources_of(request)
    now = sources.now_unix_ms()

    def write() -> None:
        store = sources.control.store()
        try:
            operations.end_window(store, kind, number, now)
        except UsageError as exc:
            raise Problem(404, str(exc)) from exc
        operations.record(*(store, now, by, f"{kind} ends", str(number)), origin=_origin(request))

    await asyncio.to_thread(write)
    return answered({kind: {"id": number, "ended": rfc3339(now)}})


def _shown(window: Silence | Maintenance, now_unix_ms: int) -> dict[str, Any]:
    if isinstance(window, Silence):
        of: dict[str, Any] = {**window.matchers, "origin": window.origin or None}
    else:
        of = {"cluster": window.cluster, "nodes": window.nodes}
    return {
        "id": window.id,
        **of,
        "start": rfc3339(window.starts_unix_ms),
        "end": rfc3339(window.ends_unix_ms),
        "holds": window.starts_unix_ms <= now_unix_ms < window.ends_unix_ms,
        "by": window.by,
        "why": window.why,
    }


def _origin(request: Request) -> str:
    return request.client.host if request.client is not None else ""

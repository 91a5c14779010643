"""What people do about outages, over HTTP: acknowledge, resolve by hand, note; also in PagerDuty."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from flopwatch_collector.control import response
from flopwatch_collector.control.response import Kind
from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.paging import heard
from flopwatch_collector.web import shapes
from flopwatch_collector.web.api import PROBLEMS, answered, sources_of, strict
from flopwatch_collector.web.outages import open_outage
from flopwatch_collector.web.problems import Problem
from flopwatch_collector.web.sources import Sources
from flopwatch_proto.errors import UsageError

router: Final = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)], responses=PROBLEMS)
Name = Annotated[str, Field(min_length=1, max_length=253)]


class Responded(BaseModel):
    """What somebody does about an outage."""

    model_config = ConfigDict(extra="forbid")

    cluster: Name
    rule: Name
    what: Kind = Field(description="acknowledge, take_back, close, reopen or note.")
    by: Name = Field(description="Who.")
    text: str = Field("", max_length=response.TEXT_CHARACTERS_MAX, description="Of a note.")


@router.post("/outages", response_model=shapes.OutageAnswer)
async def respond(request: Request, responded: Responded) -> Response:
    """Acknowledge an outage that holds, resolve it by hand for four hours, or note something."""
    if responded.what is Kind.NOTE and not responded.text.strip():
        raise Problem(422, "text: write the note", parameter="text")
    state = await asyncio.to_thread(
        _respond,
        sources_of(request),
        response.Response(
            rule=responded.rule,
            cluster=responded.cluster,
            kind=responded.what,
            by=responded.by,
            text=responded.text,
            origin=_origin(request),
        ),
    )
    return answered({"outage": open_outage(state)})


@router.get("/outages/{rule}/{cluster}/{episode}", response_model=shapes.RecordsAnswer)
async def one(request: Request, rule: str, cluster: str, episode: str) -> Response:
    """The timeline of an outage: pages, acknowledgements and notes, oldest first."""
    sources = sources_of(request)
    events = await asyncio.to_thread(
        lambda: response.timeline(sources.control.store(), rule, cluster, episode)
    )
    if not events:
        raise Problem(404, "nothing is known of this outage; /api/v1/outages lists those that are")
    return answered({"timeline": events})


@router.post("/pagerduty", status_code=204, include_in_schema=False)
async def pagerduty(request: Request) -> Response:
    """Take a webhook of PagerDuty: what people did there holds here."""
    sources = sources_of(request)
    body = await _body(request)
    header = request.headers.get(heard.SIGNATURE_HEADER, "")
    if not heard.is_signed(_secret(sources), body, header):
        raise Problem(404, "no such path; /api/docs lists all there are")
    try:
        said = heard.heard(body)
    except UsageError as exc:
        raise Problem(422, str(exc)) from exc
    if said is not None:
        await asyncio.to_thread(_hear, sources, said, _origin(request))
    return Response(status_code=204)


def _respond(sources: Sources, done: response.Response) -> IncidentState:
    try:
        return response.respond(sources.control.store(), done, sources.now_unix_ms())
    except UsageError as exc:
        raise Problem(404, str(exc)) from exc


def _hear(sources: Sources, said: heard.Heard, origin: str) -> None:
    """Do what was done there; an outage that is over needs nothing."""
    store = sources.control.store()
    found = response.of_page(store, said.dedup_key)
    if found is None:
        return
    rule, cluster = found
    done = response.Response(
        rule=rule, cluster=cluster, kind=said.kind, by=said.by, text=said.text, origin=origin
    )
    response.respond(store, done, sources.now_unix_ms())


def _secret(sources: Sources) -> bytes:
    """Return the signing secret, read anew each time: it may be replaced. Raises: Problem: 404, 503."""
    if not sources.pagerduty_secret_file:
        raise Problem(404, "no such path; /api/docs lists all there are")
    try:
        return Path(sources.pagerduty_secret_file).read_bytes().strip()
    except OSError as exc:
        raise Problem(503, f"paging.pagerduty_secret_file: {exc.strerror}") from exc


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > heard.BODY_BYTES_MAX:
            raise Problem(422, "the body is too long for a webhook")
    return body


def _origin(request: Request) -> str:
    return request.client.host if request.client is not None else ""

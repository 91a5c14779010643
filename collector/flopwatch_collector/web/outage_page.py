"""One outage on one small page: readable at 3 am on a phone, without JavaScript, and answered there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from flopwatch_collector.control import operations, response
from flopwatch_collector.control.operations import Silence
from flopwatch_collector.control.response import Kind
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.web import api, fleet_page, outages
from flopwatch_collector.web.pages import refused, rendered
from flopwatch_collector.web.problems import Problem
from flopwatch_collector.web.sources import Sources
from flopwatch_proto.errors import FlopwatchError, UsageError

FORM_BYTES_MAX: Final = 16 * 1024
SILENCE_MS: Final = 2 * 60 * 60_000
SILENCE: Final = "silence"
EVENTS_SHOWN: Final = 12
Json = Mapping[str, Any]

router: Final = APIRouter(include_in_schema=False)


@router.get("/outages/{rule}/{cluster:path}/{episode}")
async def outage(request: Request, rule: str, cluster: str, episode: str) -> Response:
    """What fell, why, what to do, what was said; and the forms to say something."""
    sources = api.sources_of(request)
    now = sources.now_unix_ms()
    try:
        found = await asyncio.to_thread(
            _found, sources.control.store(), rule, cluster, episode, now
        )
    except Problem as problem:
        return refused(problem)
    except FlopwatchError as exc:
        return refused(Problem(503, str(exc)))
    shown, events, paged = found
    return rendered(
        "outage.html",
        fleet_page.outage_view(shown, now)
        | {"events": list(reversed(events))[:EVENTS_SHOWN], "paged_body": paged},
    )


@router.post("/outages/{rule}/{cluster:path}/{episode}")
async def respond(request: Request, rule: str, cluster: str, episode: str) -> Response:
    """Take a form of the page, and show it again."""
    try:
        same_origin(request)
        form = await _form(request)
        by = form.get("by", "").strip()
        if not by:
            raise Problem(422, "by: write your name", parameter="by")
        sources = api.sources_of(request)
        await asyncio.to_thread(_respond, sources, rule, cluster, by, form, _origin(request))
    except Problem as problem:
        return refused(problem)
    except FlopwatchError as exc:
        return refused(Problem(503, str(exc)))
    path = "/".join(quote(part, safe="") for part in (rule, cluster, episode))
    return RedirectResponse(f"/outages/{path}", 303)


def same_origin(request: Request) -> None:
    """Refuse what another site made a browser send. Raises: Problem: 403."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if site not in (None, "same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != host
    ):
        raise Problem(403, "this form was sent from another site; open the outage's page here")


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES_MAX:
            raise Problem(422, "text: it is too long")
    try:
        fields = parse_qs(body.decode(), max_num_fields=8)
    except ValueError as exc:
        raise Problem(422, "the form cannot be read") from exc
    return {name: values[0] for name, values in fields.items()}


def _respond(
    sources: Sources, rule: str, cluster: str, by: str, form: Mapping[str, str], origin: str
) -> None:
    store, now = sources.control.store(), sources.now_unix_ms()
    what, text = form.get("what", ""), form.get("text", "").strip()
    if what == SILENCE:
        silence = Silence(
            matchers={"cluster": cluster, "rule": rule},
            starts_unix_ms=now,
            ends_unix_ms=now + SILENCE_MS,
            by=by,
            why=text or "from the outage's page",
        )
        number = operations.add_silence(store, silence)
        operations.record(*(store, now, by, SILENCE, str(number)), origin=origin)
        return
    if what not in set(Kind) or (what == Kind.NOTE and not text):
        raise Problem(422, "text: write the note", parameter="text")
    done = response.Response(
        rule=rule, cluster=cluster, kind=Kind(what), by=by, text=text, origin=origin
    )
    try:
        response.respond(store, done, now)
    except UsageError as exc:
        raise Problem(404, str(exc)) from exc


def _found(
    store: ControlStore, rule: str, cluster: str, episode: str, now: int
) -> tuple[Json, list[dict[str, Any]], Json | None]:
    """Return the outage, its timeline, and what the newest page of it said; None: nobody was paged."""
    wanted = f"{rule}/{cluster}/{episode}"
    listed = [*outages.outages(store, now, None), *outages.outages(store, now, "resolved")]
    shown = next((o for o in listed if o["id"] == wanted), None)
    if shown is None:
        raise Problem(404, f"no outage {wanted!r} is open or ended in the last 7 days")
    events = response.timeline(store, rule, cluster, episode)
    body = response.newest_body(store, rule, cluster, episode)
    return shown, events, None if body is None else json.loads(body)


def _origin(request: Request) -> str:
    return request.client.host if request.client is not None else ""

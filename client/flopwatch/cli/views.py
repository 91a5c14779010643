"""`fleet`, `cluster`, `node`, `team`, `outages`: what the collector knows, as tables or as it says it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from flopwatch.api import DEFAULT_URL, Answer, Api
from flopwatch.cli import table
from flopwatch.cli.options import ApiUrl, End, Json, Window


def fleet(
    window: Window = "15m", end: End = None, api: ApiUrl = DEFAULT_URL, json: Json = False
) -> int:
    """Every cluster: allocation, HFU, MFU, yield."""
    with Api(api) as asked:
        answer = asked.get("/api/v1/fleet", window=window, end=end)
    return _show(answer, json, _fleet(answer.data))


def cluster(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    window: Window = "15m",
    end: End = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """One cluster: its figures, its waterfall, its outages."""
    with Api(api) as asked:
        answer = asked.subject("clusters", name, window=window, end=end)
    return _show(answer, json, _subject(answer.data, name, "cluster"))


def node(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    window: Window = "15m",
    end: End = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """One node: its cards and where their time went."""
    with Api(api) as asked:
        answer = asked.subject("nodes", name, window=window, end=end)
    return _show(answer, json, _subject(answer.data, name, "node"))


def team(
    name: Annotated[str | None, typer.Argument(metavar="NAME")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="Only there.")] = None,
    window: Window = "15m",
    end: End = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Who held the cards and what became of them; with a name, one team and its waterfall."""
    if name is None:
        with Api(api) as asked:
            answer = asked.get("/api/v1/teams", window=window, end=end, cluster=cluster)
        return _show(answer, json, [table.teams_table(answer.data)])
    with Api(api) as asked:
        answer = asked.subject("teams", name, window=window, end=end, cluster=cluster)
    seconds = float(answer.data["window_s"])
    tables = [table.team_table(answer.data), table.waterfall_table(answer.data, seconds)]
    return _show(answer, json, tables)


def outages(
    state: Annotated[
        str | None, typer.Option(help="Only these: pending, firing, standing, clearing, resolved.")
    ] = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """What is below its line, since when, and what it loses."""
    with Api(api) as asked:
        answer = asked.get("/api/v1/outages", state=state)
    listed = answer.data.get("outages", []) if isinstance(answer.data, dict) else answer.data
    return _show(answer, json, _outages(listed))


def _fleet(data: dict[str, Any]) -> Iterable[RenderableType]:
    yield table.fleet_table(data)
    listed = [
        {"cluster": cluster.get("name"), **outage}
        for cluster in data.get("clusters") or []
        for outage in cluster.get("outages") or []
    ]
    if listed:
        yield from _outages(listed)
    if not data.get("clusters"):
        yield "no cluster has reported yet"


def _subject(data: dict[str, Any], name: str, kind: str) -> Iterable[RenderableType]:
    """A subject's answer holds its figures itself, or under the word for its kind."""
    inner = data.get(kind)
    subject = inner if isinstance(inner, dict) else data
    yield table.subject_table(f"{name} · {table.window(data)}", subject)
    for cards in _card_lists({**data, **subject}):
        yield table.cards_table("cards", cards)
    if subject.get("waterfall"):
        yield table.waterfall_table(subject, float(data.get("window_s") or 0.0))
    if free := table.free_cards(subject):
        yield free
    if subject.get("outages"):
        yield from _outages([{"cluster": name, **outage} for outage in subject["outages"]])


def _card_lists(subject: dict[str, Any]) -> Iterable[list[dict[str, Any]]]:
    """The lists of an answer whose entries are cards: each has its slot."""
    for value in subject.values():
        if isinstance(value, list) and value and isinstance(value[0], dict) and "slot" in value[0]:
            yield value


def _outages(listed: list[dict[str, Any]]) -> Iterable[RenderableType]:
    if not listed:
        yield "no outages"
        return
    yield table.outages_table(listed, datetime.now(UTC))


def _show(answer: Answer, json: bool, tables: Iterable[RenderableType]) -> int:
    if json:
        typer.echo(answer.text)
        return 0
    console = Console(highlight=False)
    for renderable in tables:
        console.print(renderable)
    return 0

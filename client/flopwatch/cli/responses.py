"""`acknowledge`, `close`, `note`, `timeline`, `silence`, `maintenance`: what people do about outages."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli.options import ApiUrl, Json

silence_app: Final = typer.Typer(
    help="Hold pages for a while.", no_args_is_help=True, rich_markup_mode=None
)
maintenance_app: Final = typer.Typer(
    help="Nodes that rules do not expect in use for a while.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Cluster = Annotated[str, typer.Argument(metavar="CLUSTER")]
Rule = Annotated[str, typer.Argument(metavar="RULE", help="allocation, mfu, blind, …")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who; left out: this user.")]
Length = Annotated[str, typer.Option("--for", metavar="DURATION", help="90m, 6h, 2d.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="The reason, as others will read it.")]
Start = Annotated[str | None, typer.Option(metavar="RFC3339", help="Left out: now.")]
Everything = Annotated[bool, typer.Option("--all", help="Those that are over, too.")]


def acknowledge(
    cluster: Cluster,
    rule: Rule = "allocation",
    by: By = None,
    back: Annotated[bool, typer.Option("--back", help="Take it back.")] = False,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """Put a name on an outage: everyone who was paged sees it."""
    outage = _respond(api, cluster, rule, "take_back" if back else "acknowledge", by)
    acked = outage.get("acked_by")
    typer.echo(
        f"{cluster}/{rule}: acknowledged by {acked}" if acked else f"{cluster}/{rule}: taken back"
    )
    return 0


def close(
    cluster: Cluster,
    rule: Rule = "allocation",
    by: By = None,
    back: Annotated[bool, typer.Option("--back", help="Take it back.")] = False,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """Resolve an outage by hand: it pages no more for 4 hours, unless it gets worse."""
    _respond(api, cluster, rule, "reopen" if back else "close", by)
    said = "pages again when there is news" if back else "no page for 4 hours unless it is worse"
    typer.echo(f"{cluster}/{rule}: {said}")
    return 0


def note(
    cluster: Cluster,
    rule: Rule,
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    by: By = None,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """Write something into an outage's timeline."""
    _respond(api, cluster, rule, "note", by, text)
    typer.echo(f"{cluster}/{rule}: noted")
    return 0


def timeline(
    cluster: Cluster, rule: Rule = "allocation", api: ApiUrl = DEFAULT_URL, json: Json = False
) -> int:
    """What was paged, acknowledged and noted of the outage that holds."""
    with Api(api) as asked:
        held = [
            outage
            for outage in asked.get("/api/v1/outages").data["outages"]
            if (outage["cluster"], outage["rule"]) == (cluster, rule)
        ]
        if not held:
            typer.echo(f"{cluster}/{rule}: no outage", err=True)
            return 1
        episode = held[0]["id"].rsplit("/", 1)[1]
        path = "/".join(quote(part, safe="") for part in (rule, cluster, episode))
        answer = asked.get(f"/api/v1/outages/{path}")
    if json:
        typer.echo(answer.text)
        return 0
    made = _table(f"{cluster}/{rule} since {held[0]['since']}", ("when", "what", "by", "text"))
    for event in answer.data["timeline"]:
        waits = f" (held: {event['held']})" if event.get("held") else ""
        made.add_row(
            str(event["at"])[5:19].replace("T", " "),
            event["what"],
            escape(event["by"]),
            escape(event["text"] + waits),
        )
    Console(highlight=False).print(made)
    return 0


@silence_app.command("add")
def silence_add(
    why: Why,
    length: Length,
    cluster: Annotated[str, typer.Option(metavar="PATTERN")] = "*",
    rule: Annotated[str, typer.Option(metavar="PATTERN")] = "*",
    start: Start = None,
    by: By = None,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """Hold pages: what still fires at the end is sent then."""
    asked = {"cluster": cluster, "rule": rule}
    return _add(api, "silences", "silence", asked, length=length, why=why, start=start, by=by)


@silence_app.command("list")
def silence_list(
    everything: Everything = False, api: ApiUrl = DEFAULT_URL, json: Json = False
) -> int:
    """Which pages are held, by whom and why."""
    return _list(api, "silences", ("cluster", "rule"), everything, json)


@silence_app.command("end")
def silence_end(
    number: Annotated[int, typer.Argument(metavar="ID")],
    by: By = None,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """End a silence now."""
    return _end(api, "silences", number, by)


@maintenance_app.command("add")
def maintenance_add(
    cluster: Annotated[str, typer.Option(metavar="NAME")],
    nodes: Annotated[
        str, typer.Option(metavar="PATTERN", help="n17, or r17-*; *: hold all pages, too.")
    ],
    length: Length,
    why: Why,
    start: Start = None,
    by: By = None,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """Expect nothing of some nodes; cards that are in use count all the same."""
    asked = {"cluster": cluster, "nodes": nodes}
    return _add(
        api, "maintenance", "maintenance", asked, length=length, why=why, start=start, by=by
    )


@maintenance_app.command("list")
def maintenance_list(
    everything: Everything = False, api: ApiUrl = DEFAULT_URL, json: Json = False
) -> int:
    """Which nodes are in maintenance, by whom and why."""
    return _list(api, "maintenance", ("cluster", "nodes"), everything, json)


@maintenance_app.command("end")
def maintenance_end(
    number: Annotated[int, typer.Argument(metavar="ID")],
    by: By = None,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """End a maintenance window now."""
    return _end(api, "maintenance", number, by)


def _respond(
    api: str, cluster: str, rule: str, what: str, by: str | None, text: str = ""
) -> dict[str, Any]:
    content = {"cluster": cluster, "rule": rule, "what": what, "by": _who(by), "text": text}
    with Api(api) as asked:
        outage: dict[str, Any] | None = asked.post("/api/v1/outages", content).data["outage"]
    return outage or {}


def _add(
    api: str,
    path: str,
    kind: str,
    asked: Mapping[str, str],
    *,
    length: str,
    why: str,
    start: str | None,
    by: str | None,
) -> int:
    content = {**asked, "for": length, "why": why, "start": start, "by": _who(by)}
    with Api(api) as wanted:
        made = wanted.post(f"/api/v1/{path}", content).data[kind]
    typer.echo(f"{kind} {made['id']}: until {made['end']}")
    return 0


def _list(api: str, path: str, of: Sequence[str], everything: bool, json: bool) -> int:
    with Api(api) as asked:
        answer = asked.get(f"/api/v1/{path}", everything="true" if everything else None)
    if json:
        typer.echo(answer.text)
        return 0
    if not answer.data[path]:
        typer.echo(f"no {path}")
        return 0
    made = _table(path, ("id", *of, "from", "to", "now", "by", "why"))
    for window in answer.data[path]:
        by = window["by"] + (f" ({window['origin'].split('/')[0]})" if window.get("origin") else "")
        made.add_row(
            str(window["id"]),
            *(escape(window[name]) for name in of),
            *(str(window[name])[5:16].replace("T", " ") for name in ("start", "end")),
            "holds" if window["holds"] else "",
            escape(by),
            escape(window["why"]),
        )
    Console(highlight=False).print(made)
    return 0


def _end(api: str, path: str, number: int, by: str | None) -> int:
    with Api(api) as asked:
        asked.delete(f"/api/v1/{path}/{number}", by=_who(by))
    typer.echo(f"{path} {number}: over")
    return 0


def _who(by: str | None) -> str:
    return by or getpass.getuser()


def _table(title: str, columns: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made

"""`trust`, `tokens`, `deny`: the operator's side of certificates, on a collector's host, beside its store."""

from __future__ import annotations

import getpass
import json as json_module
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flopwatch.cli.options import Json
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration

if TYPE_CHECKING:
    from flopwatch_collector.trust.operator import Operator

app: Final = typer.Typer(
    help="The authority that signs certificates of nodes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
tokens_app: Final = typer.Typer(
    help="Words by which nodes get their first certificate.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

REFUSALS_SHOWN_MAX: Final = 40
_FIXES: Final = (
    ("has expired", "enrol it anew: tokens create --replace; why did it not renew? doctor, there"),
    ("was enrolled again", "a second host has its old certificate: a clone? stop one, enrol it"),
    ("is denied", "if it may speak again: flopwatch deny NODE --cluster NAME --end"),
    ("of trust domain", "its certificate is of another deployment, or tls.domain is wrong here"),
    ("not for clients", "issue it with the extended key usage clientAuth"),
    ("URI name", "issue it with one URI name, spiffe://DOMAIN/flopwatch/cluster/C/node/N"),
    ("the certificate's name", "its URI name is spiffe://DOMAIN/flopwatch/cluster/C/node/N"),
)
"""What to do, by words of a refusal; the first that fits."""

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The collector's, if not the default file.")
]
Data = Annotated[str | None, typer.Option(metavar="DIR", help="The collector's data directory.")]
Now = Annotated[bool, typer.Option("--now", help="Do not wait until every node has renewed.")]


@app.command("init")
def init(config: Config = None, data: Data = None) -> int:
    """Make an authority; from its next start on the collector asks nodes for certificates."""
    operator = _operator(config, data)
    pin = operator.init(_now_unix_ms())
    typer.echo(f"{operator.authorities.directory}: authority 1, {pin}")
    typer.echo("start the collector anew; then: flopwatch tokens create")
    return 0


@app.command("show")
def show(config: Config = None, data: Data = None, json: Json = False) -> int:
    """Which authorities are believed, and which one signs."""
    listed = _operator(config, data).authorities.facts()
    if json:
        typer.echo(json_module.dumps(listed))
        return 0
    table = _table("authorities", ("authority", "now", "made", "expires", "pin"))
    for one in listed:
        does = "signs" if one["signs"] else "is believed"
        made, expires = _moment(one["made_unix_ms"]), _moment(one["expires_unix_ms"])
        table.add_row(str(one["authority"]), does, made, expires, str(one["pin"]))
    Console(highlight=False).print(table)
    return 0


@app.command("add")
def add(config: Config = None, data: Data = None) -> int:
    """Believe a new authority that does not sign yet: the first of three steps."""
    number = _operator(config, data).authorities.add(_now_unix_ms())
    typer.echo(
        f"authority {number} is believed; when every node has renewed: flopwatch trust switch"
    )
    return 0


@app.command("refused")
def refused(config: Config = None, data: Data = None, json: Json = False) -> int:
    """Which nodes were turned away lately, why, and what to do; newest first."""
    listed = [one | {"fix": fix_of(one["why"])} for one in _operator(config, data).refusals()]
    if json:
        typer.echo(json_module.dumps(listed))
        return 0
    if not listed:
        typer.echo("nobody was refused, as far as the audit log's newest thousand entries go")
        return 0
    table = _table("refused", ("when", "what", "node", "from", "why", "fix"))
    for one in listed[:REFUSALS_SHOWN_MAX]:
        when, what = _moment(one["at_unix_ms"]), one["what"].replace("_", " ")
        # What a node said of itself is text, and no markup.
        said = (escape(one[name]) for name in ("subject", "origin", "why"))
        table.add_row(when, what, *said, one["fix"])
    Console(highlight=False).print(table)
    if len(listed) > REFUSALS_SHOWN_MAX:
        typer.echo(f"{REFUSALS_SHOWN_MAX} of {len(listed)}; the rest with --json")
    return 0


def fix_of(why: str) -> str:
    """Return what an operator does about a refusal, by its text; empty: the text says it itself."""
    return next((fix for words, fix in _FIXES if words in why), "")


@app.command("switch")
def switch(config: Config = None, data: Data = None, now: Now = False) -> int:
    """Let the newest authority sign: the second step."""
    operator = _operator(config, data)
    wait_seconds = 0.0 if now else operator.leaf_life
    number = operator.authorities.switch(_now_unix_ms(), wait_seconds)
    typer.echo(f"authority {number} signs; when every node has renewed: flopwatch trust drop")
    return 0


@app.command("drop")
def drop(config: Config = None, data: Data = None, now: Now = False) -> int:
    """Believe the oldest authority no more: the last step."""
    operator = _operator(config, data)
    wait_seconds = 0.0 if now else operator.leaf_life
    number = operator.authorities.drop(_now_unix_ms(), wait_seconds)
    typer.echo(f"authority {number} is believed no more")
    return 0


@tokens_app.command("create")
def create(
    cluster: Annotated[str, typer.Option(metavar="NAME", help="The cluster of the nodes.")],
    nodes: Annotated[
        str, typer.Option(metavar="PATTERN", help="Which nodes may use it: n1, or gpu-*.")
    ],
    uses: Annotated[int, typer.Option(metavar="N", help="How many nodes may.")] = 1,
    length: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="How long it works.")
    ] = "1h",
    replace: Annotated[
        bool, typer.Option("--replace", help="Also nodes that are enrolled already.")
    ] = False,
    config: Config = None,
    data: Data = None,
) -> int:
    """Print a new token: it lets nodes enrol, and is kept nowhere."""
    word = _operator(config, data).create_token(
        cluster=cluster,
        nodes=nodes,
        uses=uses,
        life=_duration(length),
        replaces=replace,
        now_unix_ms=_now_unix_ms(),
    )
    typer.echo(word)
    return 0


@tokens_app.command("list")
def list_(config: Config = None, data: Data = None, json: Json = False) -> int:
    """Tokens of the last weeks, and what is left of them."""
    listed = _operator(config, data).tokens()
    if json:
        typer.echo(json_module.dumps(listed))
        return 0
    now = _now_unix_ms()
    table = _table("tokens", ("token", "cluster", "nodes", "replaces", "left", "until", "by"))
    for token in listed:
        until = _moment(token["expires_unix_ms"])
        if token["revoked_unix_ms"] is not None:
            until = "revoked"
        elif token["expires_unix_ms"] <= now:
            until = "expired"
        replaces, left = "yes" if token["replaces"] else "no", str(token["uses_left"])
        names = (token[name] for name in ("id", "cluster", "nodes"))
        table.add_row(*names, replaces, left, until, token["by"])
    Console(highlight=False).print(table)
    return 0


@tokens_app.command("revoke")
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `tokens list` shows it.")],
    config: Config = None,
    data: Data = None,
) -> int:
    """Let a token work no more; certificates that it gave stay."""
    _operator(config, data).revoke(id_, _now_unix_ms())
    typer.echo(f"token {id_} works no more")
    return 0


def deny(
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="Left out: shows who is denied.")
    ] = None,
    cluster: Annotated[str, typer.Option(metavar="NAME", help="Its cluster.")] = "default",
    why: Annotated[
        str, typer.Option(metavar="TEXT", help="For the audit log, and for the node.")
    ] = "by the operator",
    end: Annotated[bool, typer.Option("--end", help="Let it in again.")] = False,
    config: Config = None,
    data: Data = None,
) -> int:
    """Refuse a node, whatever certificate it shows; its stream ends within 70 s."""
    operator = _operator(config, data)
    if node is None:
        return _show_denied(operator.denied())
    if end:
        operator.admit(cluster, node, _now_unix_ms())
        typer.echo(f"{node} of {cluster} is let in again")
        return 0
    operator.deny(cluster, node, why, _now_unix_ms())
    typer.echo(f"{node} of {cluster} is denied; with --end it is let in again")
    return 0


def _show_denied(listed: Sequence[Mapping[str, Any]]) -> int:
    table = _table("denied", ("cluster", "node", "since", "certificates", "by", "why"))
    for one in listed:
        before = one["issued_before_unix_ms"]
        which = "all" if before is None else f"before {_moment(before)}"
        since = _moment(one["denied_unix_ms"])
        table.add_row(one["cluster"], one["node"], since, which, one["by"], one["why"])
    Console(highlight=False).print(table)
    return 0


def _operator(config: Path | None, data: str | None) -> Operator:
    """Loaded when asked for: the command line of a node has nothing of a collector's."""
    try:
        from flopwatch_collector.trust.operator import Operator
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.startswith("flopwatch"):
            raise
        raise UsageError(
            f"{exc.name} is not installed: this is for a collector's host: "
            "pip install 'flopwatch[collector]'"
        ) from exc
    return Operator(config, data, os.environ.get("SUDO_USER") or getpass.getuser())


def _duration(text: str) -> Duration:
    try:
        return Duration.parse(text)
    except ValueError as exc:
        raise UsageError(f"--for {exc}") from exc


def _now_unix_ms() -> int:
    return wall_unix_ms(SystemClock())


def _moment(unix_ms: Any) -> str:
    return datetime.fromtimestamp(int(unix_ms) / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table

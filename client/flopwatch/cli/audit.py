"""`audit`: whether every row that agents handed over is accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli import number
from flopwatch.cli.options import ApiUrl, Json

_ROWS: Final = ("produced", "before", "stored", "superseded", "gap", "quarantined", "waiting")
_ALWAYS: Final = ("produced", "stored", "waiting")
SHOWN_MAX: Final = 40

Record = Mapping[str, Any]


def audit(
    window: Annotated[
        str, typer.Option(metavar="LENGTH", help="How far back receipts count: 1h, 7d.")
    ] = "1h",
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="Only this cluster.")] = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Only this node.")] = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Per spool, in rows: produced = before + stored + superseded + gap + quarantined + waiting.

    Exit code 1 where that does not hold, with the spool and how many rows are missing.
    """
    answer = Api(api, timeout_seconds=60.0).get(
        "/api/v1/audit", cluster=cluster, node=node, window=window
    )
    spools: list[Record] = answer.data["spools"]
    if json:
        typer.echo(answer.text)
    elif spools:
        console = Console(highlight=False)
        console.print(_table(spools[:SHOWN_MAX], answer.data["total"]))
        if len(spools) > SHOWN_MAX or answer.data["truncated"]:
            typer.echo(
                f"{min(len(spools), SHOWN_MAX)} of {len(spools)} spools; the rest with --json"
            )
    else:
        typer.echo("no spool has said anything of itself yet: agents do when they connect")
    for loss in answer.data.get("losses", []):
        typer.echo(lost_words(loss))
    wrong = [spool for spool in spools if spool["verdict"] != "balanced"]
    for spool in wrong[:SHOWN_MAX]:
        typer.echo(said_of(spool), err=True)
    if answer.data["truncated"]:
        typer.echo("not all spools were compared: name --cluster or --node", err=True)
    return 0 if answer.data["balanced"] else 1


def lost_words(loss: Record) -> str:
    """Return what a cause took in the window, in one line."""
    what = "gaps" if loss["kind"] == "gap" else "batches set aside"
    return f"{loss['cluster']}: {loss['rows']} rows lost in {loss['times']} {what}: {loss['cause']}"


def said_of(spool: Record) -> str:
    """Return what is wrong with a spool that does not balance, in one line."""
    name = f"{spool['cluster']}/{spool['node']}, spool {spool['spool_id']}"
    if spool["verdict"] == "cloned":
        return (
            f"{name}: {spool['twice']} batches came with two contents: its disk was copied, or set back; "
            "nothing can be proven of it"
        )
    if spool["verdict"] == "unspoken":
        return (
            f"{name}: {spool['stored_rows']} rows came, and no word of the spool itself: nothing can be "
            "proven of it until its agent connects again"
        )
    return (
        f"{name}: {spool['missing_rows']} rows missing, {spool['missing_batches']} batches not accounted "
        f"for, up to seq {spool['acked_seq']}"
    )


def _table(spools: Sequence[Record], total: Record) -> Table:
    """Return a line per spool; what no spool has gets no column."""
    names = [n for n in _ROWS if n in _ALWAYS or total[f"{n}_rows"]]
    made = Table(title="audit, in rows", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("cluster", "node", "spool", "told"):
        made.add_column(column, no_wrap=column in ("spool", "told"), overflow="fold")
    for column in (*names, "missing"):
        made.add_column(column, justify="right", no_wrap=True)
    for spool in spools:
        made.add_row(
            spool["cluster"],
            spool["node"] + (" SIM" if spool["simulated"] else ""),
            spool["spool_id"][:8],
            str(spool["told"])[11:19],
            *_figures(spool, names, spool["verdict"] != "balanced"),
        )
    made.add_row("all", "", "", "", *_figures(total, names, total["missing_rows"] != 0))
    return made


def _figures(record: Record, names: Sequence[str], wrong: bool) -> list[str]:
    missing = f"▲ {record['missing_rows']}" if wrong else number.cards(record["missing_rows"])
    return [*(number.cards(record[f"{name}_rows"]) for name in names), missing]

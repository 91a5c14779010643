"""`inventory`: the file that says which cards are owned, and how it compares with what reports."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli.options import ApiUrl, Json, Window
from flopwatch_collector import inventory as record
from flopwatch_collector import inventory_diff, inventory_file, inventory_import
from flopwatch_proto.errors import UsageError

DEFAULT_FILE: Final = Path("/etc/flopwatch/inventory.toml")
_BAD_NEWS: Final = 1
_NAMED_MAX: Final = 3
_REREAD: Final = "a collector reads it when it starts"

app: Final = typer.Typer(
    help="The cards that are owned, and what reports.", no_args_is_help=True, rich_markup_mode=None
)

File = Annotated[
    Path,
    typer.Option(
        "--file",
        envvar="FLOPWATCH_COLLECTOR__INVENTORY",
        metavar="FILE",
        help="The inventory file.",
    ),
]
Cluster = Annotated[str | None, typer.Option(metavar="NAME", help="Only this cluster.")]
State = Literal["expected", "onboarding", "in_service", "retired"]


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file; -: standard input.")],
    from_: Annotated[
        Literal["csv", "slurm", "kubernetes"],
        typer.Option(
            "--from",
            help="csv: a table with a header; slurm: sinfo --json; kubernetes: kubectl get nodes -o json.",
        ),
    ],
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="The cluster of what names none.")
    ] = None,
    slots: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Slots of every node, such as 0-7; left out: as their agents call them.",
        ),
    ] = None,
    sku: Annotated[str, typer.Option(metavar="NAME", help="What the cards are.")] = "",
    state: Annotated[State, typer.Option(help="Of the slots that are added.")] = "in_service",
    file: File = DEFAULT_FILE,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """Add the cards that a table or a scheduler knows, and the inventory does not."""
    content = _content(source)
    if from_ == "csv":
        if slots or sku:
            raise UsageError("--slots and --sku are for slurm and kubernetes; a table has columns")
        imported = inventory_import.from_csv(_decoded(content, source), source, cluster)
    else:
        if cluster is None:
            raise UsageError(f"--cluster: name the cluster that {source} is of")
        read = {
            "slurm": inventory_import.from_slurm,
            "kubernetes": inventory_import.from_kubernetes,
        }[from_]
        imported = read(
            content,
            source,
            cluster=cluster,
            places=_Places(cluster, slots, api),
            sku=sku,
            state=record.STATES[state],
        )
    count, differ = inventory_file.added(file, imported)
    for line in differ:
        typer.echo(line)
    there = len(imported) - count
    typer.echo(f"{file}: {count} slots added, {there} were there; {_REREAD}")
    return _BAD_NEWS if differ else 0


@app.command("list")
def list_(file: File = DEFAULT_FILE, cluster: Cluster = None, json: Json = False) -> int:
    """What the inventory says, as it stands now."""
    slots = [s for s in record.load(file) if cluster in (None, s.cluster)]
    if json:
        typer.echo(json_module.dumps([asdict(s) | {"state": s.state.name.lower()} for s in slots]))
        return 0
    stands = inventory_diff.at(slots, _now_unix_ms())
    groups: dict[tuple[str, str, str], list[record.Slot]] = {}
    for slot in stands.values():
        name = slot.cluster, slot.state.name.lower(), slot.sku or "—"
        groups.setdefault(name, []).append(slot)
    table = _table(f"inventory · {file}", ("cluster", "state", "SKU", "nodes", "slots"))
    for (of, state, sku), members in sorted(groups.items()):
        nodes = {s.node for s in members}
        table.add_row(of, state, sku, str(len(nodes)), str(len(members)))
    Console(highlight=False).print(table)
    return 0


@app.command("diff")
def diff(
    file: File = DEFAULT_FILE,
    cluster: Cluster = None,
    window: Window = "15m",
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Compare the inventory with what reports; exit 1 when they differ."""
    slots = [s for s in record.load(file) if cluster in (None, s.cluster)]
    stands = inventory_diff.at(slots, _now_unix_ms())
    differences, counts = inventory_diff.diff(stands, _reported(api, cluster, window))
    if json:
        said = {
            "differences": [asdict(d) for d in differences],
            "counts": [asdict(c) for c in counts],
        }
        typer.echo(json_module.dumps(said))
    elif differences:
        Console(highlight=False).print(_diff_table(differences, counts))
    else:
        typer.echo(f"{len(stands)} slots, and everything that reports is as the inventory says")
    return _BAD_NEWS if differences else 0


@app.command("set")
def set_(
    nodes: Annotated[str, typer.Argument(metavar="NODES", help="A node, or a range: n[00-15].")],
    state: Annotated[State, typer.Option(help="The state that begins now.")],
    cluster: Annotated[str, typer.Option(metavar="NAME", help="The cluster of the nodes.")],
    slots: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these slots; left out: all.")
    ] = None,
    file: File = DEFAULT_FILE,
) -> int:
    """Let slots enter a state now; the file is written anew, without its comments."""
    names = set(record.names_in(nodes, "NODES"))
    only = None if slots is None else set(record.names_in(slots, "--slots", numbers=True))
    there = record.load(file)
    mine = [s for s in there if s.cluster == cluster and s.node in names]
    absent = names - {s.node for s in mine}
    if absent:
        raise UsageError(f"NODES: {min(absent)!r} is not in cluster {cluster!r} of {file}")
    wanted = {
        (cluster, s.node, name) for s in mine for name in (only if only is not None else (s.slot,))
    }
    made, changed = inventory_file.with_state(there, wanted, record.STATES[state], _now_unix_ms())
    if changed:
        inventory_file.rewritten(file, made)
    typer.echo(f"{file}: {changed} slots are {state} from now on; {_REREAD}")
    return 0


class _Places:
    """Names of the slots of a node: those that were given, else as its agent calls them."""

    def __init__(self, cluster: str, slots: str | None, api: str) -> None:
        self._given = None if slots is None else record.names_in(slots, "--slots", numbers=True)
        self._reported: dict[str, list[str]] = {}
        if self._given is None:
            for card in _reported(api, cluster, "24h"):
                self._reported.setdefault(card["node"], []).append(card["slot"])

    def __call__(self, node: str, count: int) -> Sequence[str]:
        names = self._given if self._given is not None else self._reported.get(node, [])
        if len(names) == count:
            return names
        if self._given is not None:
            raise UsageError(f"--slots: names {len(names)} slots, and {node} has {count} cards")
        raise UsageError(
            f"{node} has {count} cards and its agent reports {len(names)}: name its slots with --slots"
        )


def _reported(api: str, cluster: str | None, window: str) -> list[dict[str, Any]]:
    """Real cards that reported, from the API."""
    data = Api(api).get("/api/v1/reported", cluster=cluster, window=window).data
    if data["truncated"]:
        raise UsageError("--cluster: more cards report than one answer holds; ask for one cluster")
    return [c for c in data["slots"] if not c["simulated"] and c["device_kind"] != "cpu"]


def _diff_table(
    differences: Iterable[inventory_diff.Difference], counts: Iterable[inventory_diff.NodeCount]
) -> Table:
    """One line for the nodes that differ in the same way."""
    numbers = {(c.cluster, c.node): f"{c.reporting} of {c.owned}" for c in counts}
    by_node: dict[tuple[str, str, str], list[inventory_diff.Difference]] = {}
    for one in differences:
        by_node.setdefault((one.cluster, one.node, one.kind), []).append(one)
    lines: dict[tuple[str, ...], list[str]] = {}
    for (cluster, node, kind), found in by_node.items():
        named = " ".join(d.slot for d in found[:_NAMED_MAX])
        more = f" … {len(found)}" if len(found) > _NAMED_MAX else ""
        cards = numbers.get((cluster, node), "")
        lines.setdefault((cluster, cards, kind, named + more, found[0].text), []).append(node)
    table = _table("inventory and reports", ("cluster", "nodes", "cards", "what", "slots", "why"))
    for (cluster, *rest), nodes in lines.items():
        table.add_row(cluster, " ".join(inventory_file.compressed(nodes)), *rest)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in ("nodes",) else "left", overflow="fold"
        )
    return table


def _content(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as exc:
        raise UsageError(f"SOURCE: {source} cannot be read: {exc.strerror}") from exc


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(f"SOURCE: {source} is not UTF-8 text: {exc.reason}") from exc


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000

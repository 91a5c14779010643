"""`ceilings`: what cards reach when measured, by SKU; who is behind, and who computes wrongly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli import number
from flopwatch.cli.options import ApiUrl, Json

BLOCKS: Final = " ▁▂▃▄▅▆▇█"
SHOWN_MAX: Final = 20
_SCALES: Final[dict[str, tuple[float, str]]] = {
    "flop/s": (1e12, "TFLOP/s"),
    "bytes/s": (1e9, "GB/s"),
    "s": (1e-6, "µs"),
}
_BAD_NEWS: Final = 1


def ceilings(
    sku: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only cards of this full name.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="Only this cluster.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Only this dtype.")] = None,
    window: Annotated[str, typer.Option(metavar="DURATION", help="How far to look back.")] = "30d",
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Measured ceilings by SKU, kind, dtype and load; exit 1 where a card is slow, falling or corrupt."""
    answer = Api(api).get("/api/v1/ceilings", sku=sku, cluster=cluster, dtype=dtype, window=window)
    if json:
        typer.echo(answer.text)
    else:
        Console(highlight=False, markup=False).print(view(answer.data))
    return _BAD_NEWS if answer.data["suspects"] else 0


def view(data: Mapping[str, Any]) -> RenderableType:
    """Return the answer as tables of 80 columns."""
    if not data["fleets"] and not data["suspects"]:
        return "no results yet: flopwatch probe --save DIR, or [probing] enabled = true"
    parts: list[RenderableType] = []
    by_sku: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for fleet in data["fleets"]:
        by_sku.setdefault((fleet["sku"] or number.UNKNOWN, fleet["simulated"]), []).append(fleet)
    parts += (_fleets(sku, sim, fleets) for (sku, sim), fleets in by_sku.items())
    suspects = data["suspects"]
    if suspects:
        parts.append(_suspects(suspects))
        parts += (f"{what}: {action}" for what, action in _actions(suspects).items())
    else:
        parts.append("no card stands out")
    return Group(*parts)


def _fleets(sku: str, simulated: bool, fleets: Iterable[Mapping[str, Any]]) -> Table:
    table = _table(
        f"{sku}{' · simulated' if simulated else ''}",
        ("kind", "dtype", "load", "cards", "median", "p25–p75", "low … high"),
        left=("kind", "dtype", "load", "low … high"),
    )
    for fleet in fleets:
        scale, unit = _SCALES.get(fleet["unit"], (1.0, fleet["unit"]))
        table.add_row(
            fleet["kind"],
            fleet["dtype"] or number.UNKNOWN,
            "sustained" if fleet["sustained"] else "burst",
            str(fleet["cards"]),
            f"{number.quantity(fleet['median'], scale)} {unit}",
            "–".join(number.quantity(fleet[name], scale) for name in ("p25", "p75")),
            bars(fleet["histogram"]),
        )
    return table


def bars(counts: Sequence[int]) -> str:
    """Return a histogram of one line; a bin with a card is never blank."""
    most = max(counts, default=0)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[-(-count * top // most)] if count else BLOCKS[0] for count in counts)


def _suspects(suspects: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "cards to look at", ("what", "where", "card", "why"), left=("what", "where", "card")
    )
    table.columns[3].justify = "left"
    table.columns[3].no_wrap = False
    for one in suspects[:SHOWN_MAX]:
        name = one["serial"] or one["device_uuid"] or number.UNKNOWN
        where = f"{one['cluster']} {one['node']} {one['slot']}"
        table.add_row(one["what"], where, name[-13:], one["text"])
    if len(suspects) > SHOWN_MAX:
        table.add_row("…", f"{len(suspects) - SHOWN_MAX} more: --json", "", "")
    return table


def _actions(suspects: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {one["what"]: one["action"] for one in suspects}


def _table(title: str, columns: Sequence[str], *, left: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),  # seven columns fit into 80 characters
    )
    for column in columns:
        side = "left" if column in left else "right"
        table.add_column(column, justify=side, no_wrap=column != "where", overflow="fold")  # type: ignore[arg-type]
    return table

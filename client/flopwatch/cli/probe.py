"""`probe`: what a device reaches, against what its datasheet promises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

from flopwatch.cli import probe_hook, probe_plot, probe_run, probe_table
from flopwatch.cli.options import Json
from flopwatch_kernels.probe import PROBE_KINDS
from flopwatch_proto.errors import UsageError

_WALL_SECONDS: Final = 120.0
_CORRUPT: Final = 1
_KINDS: Final = ", ".join(kind.name for kind in PROBE_KINDS)


def probe(
    device: Annotated[str, typer.Option(metavar="cpu|cuda:N|UUID")] = "cpu",
    kind: Annotated[
        str, typer.Option(metavar="KIND,…", help=f"{_KINDS}; all: every one but calibrate.")
    ] = probe_run.ALL,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE,…", help="Or all. Left out: fp32 on a CPU, else bf16."),
    ] = None,
    peer: Annotated[
        str | None, typer.Option(metavar="cuda:N|UUID", help="The second card of p2p.")
    ] = None,
    sustained: Annotated[
        bool, typer.Option("--sustained", help="Load it for ten seconds: what training gets.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data directory of the agent that is to use the result."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the results.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="For a scheduler's hook: idle, prolog, epilog or hand; never fails it."),
    ] = None,
    wall: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Limit of each probe. Left out: 120, a hook's 20."),
    ] = None,
    json: Json = False,
) -> int:
    """Measure achieved against peak. Loads the device while it runs; exit 1: it computes wrong."""
    if policy is not None:
        return probe_hook.run_hook(
            policy,
            device,
            kinds=kind.split(","),
            dtype=dtype,
            sustained=sustained,
            wall_seconds=probe_hook.WALL_SECONDS if wall is None else wall,
            save=save,
        )
    if plot is not None and plot.suffix != ".svg":
        raise UsageError(f"--plot {plot}: it draws SVG; name it {plot.with_suffix('.svg')}")
    harvest = probe_run.run(
        probe_run.Wish(
            device=device,
            peer=peer,
            kinds=kind,
            dtypes=dtype,
            sustained=sustained,
            wall_seconds=_WALL_SECONDS if wall is None else wall,
            save=save,
        )
    )
    if plot is not None:
        _draw(plot, harvest)
    _print(harvest, json=json, one=kind in _KINDS.split(", ") and dtype != probe_run.ALL)
    corrupt = any(result.outcome == "corrupt" for result in harvest.results)
    return _CORRUPT if corrupt else 0


def _draw(path: Path, harvest: probe_run.Harvest) -> None:
    try:
        path.write_text(probe_plot.svg(harvest.results), encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"--plot {path}: cannot be written: {exc.strerror}") from exc


def _print(harvest: probe_run.Harvest, *, json: bool, one: bool) -> None:
    if not json:
        found = probe_table.shown(harvest.results, harvest.calibrations, harvest.left_out)
        Console(highlight=False, soft_wrap=False).print(found)
        return
    results = [*harvest.results, *harvest.calibrations]
    # One kind: its result; more: a list, also where only one of them could run.
    told = results[0] if one and len(results) == 1 else results
    typer.echo(msgspec.json.format(msgspec.json.encode(told)).decode())
    for line in probe_table.left_out_lines(harvest.left_out):
        typer.echo(line, err=True)

"""`probe`: what a device reaches, against what its datasheet promises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.cli import number
from flopwatch.cli.options import Json
from flopwatch_agent import ceilings
from flopwatch_kernels.messages import ProbeResult
from flopwatch_kernels.probe import PROBE_KINDS, ProbeError, run_probe
from flopwatch_proto.errors import UsageError

_TERA: Final = 1e12


def probe(
    device: Annotated[str, typer.Option(metavar="cpu|cuda:N|UUID")] = "cpu",
    kind: Annotated[
        str, typer.Option(help=f"{', '.join(k.name for k in PROBE_KINDS)}, or all.")
    ] = "all",
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="Left out: fp32 on a CPU, else bf16.")
    ] = None,
    sustained: Annotated[
        bool, typer.Option("--sustained", help="Load it for ten seconds: what training gets.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data directory of the agent that is to use the result."),
    ] = None,
    json: Json = False,
) -> int:
    """Measure achieved against peak. Loads the device while it runs."""
    kinds = [k.name for k in PROBE_KINDS] if kind == "all" else [kind]
    stderr = Console(stderr=True, highlight=False)
    results = []
    with stderr.status("probing") as status:
        for each in kinds:
            try:
                results.append(
                    run_probe(
                        kind=each,
                        device=device,
                        dtype=dtype,
                        sustained=sustained,
                        on_progress=status.update,
                    )
                )
            except ProbeError as exc:
                raise UsageError(str(exc)) from exc
    if save is not None:
        for result in results:
            ceilings.save(save, _ceiling(result))
    if json:
        # One kind: its result; all: a list, also while there is only one kind.
        shown = results[0] if kind != "all" else results
        typer.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return 0
    Console(highlight=False).print(_table(results))
    return 0


def _ceiling(result: ProbeResult) -> ceilings.Ceiling:
    return ceilings.Ceiling(
        device=result.device.removeprefix("cuda:"),
        dtype=result.dtype,
        flops=result.median_flops,
        sustained=result.sustained,
        taken_unix_ns=result.started_at_unix_ns,
    )


def _table(results: list[ProbeResult]) -> Table:
    first = results[0]
    table = Table(
        title=f"{first.sku or 'unknown device'} · {first.device}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("kind", "dtype", "TFLOP/s", "p10–p90", "of peak %", "MHz", "W", "load"):
        left = column in ("kind", "dtype", "load")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for result in results:
        low = number.quantity(result.p10_flops, _TERA)
        high = number.quantity(result.p90_flops, _TERA)
        table.add_row(
            result.kind,
            result.dtype,
            number.quantity(result.median_flops, _TERA),
            f"{low}–{high}",
            number.percent(result.of_datasheet),
            number.quantity(result.sm_clock_mhz),
            number.quantity(result.power_watts),
            "sustained" if result.sustained else "burst",
        )
    return table

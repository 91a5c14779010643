"""`peaks` and `mfu`: what the datasheets say, and what a run makes of it. Nothing is measured here."""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.cli import number
from flopwatch.cli.model_config import ModelConfig, read_config
from flopwatch.cli.options import Json
from flopwatch_kernels import flops
from flopwatch_kernels import peaks as peak_table
from flopwatch_proto.errors import UsageError

_TERA: Final = 1e12
_COUNT: Final = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMBT]?)", re.IGNORECASE)
_SCALES: Final = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def peaks(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A full device name or PCI id.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Only this dtype.")] = None,
    json: Json = False,
) -> int:
    """The peak table: dense datasheet FLOP/s, and the clock they are quoted at."""
    if dtype is not None and dtype not in peak_table.DTYPES:
        raise UsageError(f"--dtype: unknown dtype {dtype!r}; known: {', '.join(peak_table.DTYPES)}")
    found = peak_table.skus() if name is None else (peak_table.find(name),)
    listed = [
        peak
        for sku in found
        if sku is not None
        for peak in sku.peaks.values()
        if dtype in (None, peak.dtype)
    ]
    if not listed:
        return _unknown(name or "", dtype, json=json)
    if json:
        typer.echo(json_module.dumps({"peaks": [_peak(peak) for peak in listed]}, indent=2))
        return 0
    Console(highlight=False).print(_peak_table(listed))
    return 0


def mfu(
    sku: Annotated[str, typer.Option(metavar="NAME", help="Full device name or PCI id.")],
    cards: Annotated[int, typer.Option(metavar="N", min=1, help="Cards of the run.")],
    tokens_per_second: Annotated[
        float, typer.Option(metavar="X", min=0.0, help="Of all cards together.")
    ],
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="The dtype that ran.")] = "bf16",
    params: Annotated[
        str | None, typer.Option(metavar="N", help="Parameters: 175e9 or 175B.")
    ] = None,
    active_params: Annotated[
        str | None, typer.Option(metavar="N", help="Parameters one token passes through (MoE).")
    ] = None,
    layers: Annotated[int | None, typer.Option(metavar="L", min=1)] = None,
    hidden: Annotated[int | None, typer.Option(metavar="H", min=1)] = None,
    seq: Annotated[int | None, typer.Option(metavar="T", min=1, help="Context, tokens.")] = None,
    vocab: Annotated[
        int | None,
        typer.Option(metavar="V", min=1, help="Size of an input embedding inside --params."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A model's config.json.")
    ] = None,
    convention: Annotated[
        str, typer.Option(help=f"One of {', '.join(flops.CONVENTIONS)}.")
    ] = flops.DEFAULT_CONVENTION,
    json: Json = False,
) -> int:
    """Model FLOPs per token, TFLOP/s per card and MFU, by every convention side by side."""
    if convention not in flops.CONVENTIONS:
        raise UsageError(
            f"--convention: unknown {convention!r}; known: {', '.join(flops.CONVENTIONS)}"
        )
    found = peak_table.find(sku)
    if found is None:
        near = peak_table.nearest(sku)
        hint = f"; nearest known: {near}" if near else '; "flopwatch peaks" lists them'
        raise UsageError(f"--sku: unknown device {sku!r}{hint}")
    if dtype not in found.peaks:
        raise UsageError(
            f"--dtype: {found.name} has no peak for {dtype!r}; known: {', '.join(found.peaks)}"
        )
    model = _model(config, params, active_params, layers, hidden, seq, vocab)
    peak_flops = found.peaks[dtype].dense_flops
    rows = _by_convention(model, tokens_per_second, cards, peak_flops)
    chosen = next(row for row in rows if row["convention"] == convention)
    answer = {
        "sku": found.name,
        "dtype": dtype,
        "cards": cards,
        "tokens_per_second": tokens_per_second,
        "peak_flops": peak_flops,
        "peaks_version": peak_table.PEAKS_VERSION,
        "parameters": model.parameters,
        **chosen,
        "conventions": rows,
    }
    if json:
        typer.echo(json_module.dumps(answer, indent=2))
    else:
        Console(highlight=False).print(_mfu_table(answer))
    return 0


def _by_convention(
    model: flops.ModelShape, tokens_per_second: float, cards: int, peak_flops: float
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for convention in flops.CONVENTIONS:
        per_token = flops.train_flops_per_token(model, convention)
        mfu_ratio = flops.mfu(
            tokens_per_second=tokens_per_second,
            flops_per_token=per_token,
            peak_flops=peak_flops,
            cards=cards,
        )
        rows.append(
            {
                "convention": convention,
                "flops_per_token": per_token,
                "flops_per_second_per_card": per_token * tokens_per_second / cards,
                "mfu": mfu_ratio,
            }
        )
    return rows


def count(flag: str, text: str) -> float:
    """The number that ``175e9``, ``175B`` or ``8.03B`` says.

    Raises:
        UsageError: it is none of these.
    """
    match = _COUNT.fullmatch(text.strip().replace("_", ""))
    if match is None:
        raise UsageError(f"{flag}: {text!r} is no count; write 175e9 or 175B")
    return float(match[1]) * _SCALES[match[2].upper()]


def _model(
    config: Path | None,
    params: str | None,
    active_params: str | None,
    layers: int | None,
    hidden: int | None,
    seq: int | None,
    vocab: int | None,
) -> flops.ModelShape:
    """The model that the flags and the file describe; flags win."""
    known = ModelConfig() if config is None else read_config(config)
    all_parameters = known.parameters if params is None else count("--params", params)
    if active_params is not None:
        all_parameters = count("--active-params", active_params)
    elif params is None and known.active_parameters is not None:
        all_parameters = known.active_parameters
    needed = {
        "--params": all_parameters,
        "--layers": layers or known.layers,
        "--hidden": hidden or known.attention_width,
        "--seq": seq or known.sequence_tokens,
    }
    missing = [flag for flag, value in needed.items() if value is None]
    if missing:
        source = "or --config FILE" if config is None else f"{config} does not say"
        raise UsageError(f"missing {', '.join(missing)}; {source}")
    embedding = known.input_embedding_parameters
    if vocab is not None:
        embedding = float(vocab) * float(hidden or known.hidden or 0)
    parameters = float(needed["--params"] or 0.0)
    if embedding >= parameters:
        raise UsageError("--vocab: the input embedding alone is larger than --params")
    return flops.ModelShape(
        parameters=parameters,
        layers=int(needed["--layers"] or 0),
        attention_width=int(needed["--hidden"] or 0),
        sequence_tokens=int(needed["--seq"] or 0),
        input_embedding_parameters=embedding,
    )


def _unknown(name: str, dtype: str | None, *, json: bool) -> int:
    """An unknown device is said to be unknown, and no figure is given for it."""
    if json:
        typer.echo(json_module.dumps({"name": name, "dtype": dtype, "status": "unknown"}))
    else:
        typer.echo("unknown")
    known = peak_table.find(name) if name else None
    if known is not None:
        sys_hint = f"{known.name} has no peak for {dtype}; known: {', '.join(known.peaks)}"
    else:
        near = peak_table.nearest(name)
        sys_hint = f"no device is called {name!r}" + (f"; nearest known: {near}" if near else "")
    typer.echo(f"flopwatch: {sys_hint}", err=True)
    return 1


def _peak(peak: peak_table.Peak) -> dict[str, Any]:
    return {
        "sku": peak.sku,
        "dtype": peak.dtype,
        "dense_flops": peak.dense_flops,
        "ref_clock_mhz": peak.ref_clock_mhz,
        "clock_basis": peak.clock_basis,
        "sm_count": peak.sm_count,
        "memory_bytes_per_second": peak.memory_bytes_per_second,
        "tdp_watts": peak.tdp_watts,
        "formula_valid": peak.formula_valid,
        "source": peak.source,
        "note": peak.note,
        "peaks_version": peak_table.PEAKS_VERSION,
    }


def _peak_table(listed: list[peak_table.Peak]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("device", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    for column in ("TFLOP/s", "MHz", "TB/s", "W"):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for peak in listed:
        table.add_row(
            peak.sku if peak.sku != before else "",
            peak.dtype,
            number.quantity(peak.dense_flops, _TERA),
            number.cards(peak.ref_clock_mhz),
            number.quantity(peak.memory_bytes_per_second, _TERA),
            number.cards(peak.tdp_watts),
        )
        before = peak.sku
    return table


def _mfu_table(answer: dict[str, Any]) -> Table:
    title = (
        f"{answer['cards']:,} × {answer['sku']}, {answer['dtype']} peak "
        f"{number.quantity(answer['peak_flops'], _TERA)} TFLOP/s"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("convention", no_wrap=True)
    for column in ("GFLOP/token", "TFLOP/s per card", "MFU %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in answer["conventions"]:
        mark = " ◂" if row["convention"] == answer["convention"] else ""
        table.add_row(
            f"{row['convention']}{mark}",
            number.quantity(row["flops_per_token"], 1e9),
            number.quantity(row["flops_per_second_per_card"], _TERA),
            number.percent(row["mfu"]),
        )
    return table

"""`tail`: a trainer's log lines, passed through and understood."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Annotated

import typer

from flopwatch.cli.model_config import read_config
from flopwatch.sender import Sender
from flopwatch.tail import LogMeter, follow, pass_through, wrap
from flopwatch_kernels.flops import ModelShape
from flopwatch_proto.errors import UsageError


def tail(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND …]", show_default=False)
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="Its name; left out: FLOPWATCH_JOB, or Slurm's.")
    ] = None,
    team: Annotated[str | None, typer.Option(help="Left out: FLOPWATCH_TEAM, or Slurm's.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="What the cards run.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The model's config.json: FLOPs are converted to the causal half."),
    ] = None,
    seq: Annotated[int | None, typer.Option(help="Tokens per sequence, with --config.")] = None,
    file: Annotated[Path | None, typer.Option(help="Follow this file instead.")] = None,
) -> int:
    """Run a trainer, or read its output, and tell the agent what its log lines say.

    Knows the lines of torchtitan, Megatron-LM, MaxText, Composer and nanoGPT; passes everything through.
    """
    if command and file is not None:
        raise UsageError("tail: give a command or --file, not both")
    environment = dict(os.environ)
    name = job or environment.get("FLOPWATCH_JOB") or environment.get("SLURM_JOB_ID")
    if name is None:
        if not command:
            raise UsageError("tail: name the job: --job NAME")
        name = f"pid-{os.getpid()}"
    environment["FLOPWATCH_JOB"] = name
    labels = {
        "job": name,
        "team": team or environment.get("FLOPWATCH_TEAM") or environment.get("SLURM_JOB_ACCOUNT"),
        "dtype": dtype or environment.get("FLOPWATCH_DTYPE"),
        "workload_class": environment.get("FLOPWATCH_WORKLOAD_CLASS") or "training",
    }
    sender = Sender()
    meter = LogMeter(labels, _shape(config, seq), sender)
    sender.add(meter)
    try:
        if command:
            return wrap(command, environment, meter)
        with contextlib.suppress(KeyboardInterrupt):
            if file is not None:
                follow(file, meter, threading.Event())
            else:
                pass_through(0, 1, meter)
        return 0
    finally:
        sender.remove(meter)


def _shape(config: Path | None, seq: int | None) -> ModelShape | None:
    if config is None:
        if seq is not None:
            raise UsageError("tail: --seq needs --config FILE")
        return None
    known = read_config(config)
    tokens = seq or known.sequence_tokens
    parameters = known.active_parameters or known.parameters
    if tokens is None:
        raise UsageError(f"{config} does not say how long sequences are: --seq TOKENS")
    if parameters is None or known.layers is None or known.attention_width is None:
        raise UsageError(f"{config} does not say how large the model is")
    return ModelShape(
        parameters=parameters,
        layers=known.layers,
        attention_width=known.attention_width,
        sequence_tokens=tokens,
        input_embedding_parameters=known.input_embedding_parameters,
    )

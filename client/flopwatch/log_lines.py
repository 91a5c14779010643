"""What trainers print of their speed: the known lines, and by which convention each of them counts. Pure.

    torchtitan   step: 10 … tps: 7,123  tflops: 410.52  mfu: 41.51%
                 per card; full attention; input embedding only where tied
    Megatron-LM  iteration 10/ 500 | … elapsed time per iteration (ms): … throughput per GPU (TFLOP/s/GPU): …
                 per card; half of attention; input embedding not
    MaxText      completed step: 10, seconds: …, TFLOP/s/device: …, Tokens/s/device: …
                 per card; half of attention; input embedding not
    Composer     throughput/device/mfu: … and its neighbours, each on a line (llm-foundry too)
                 per card; full attention; every parameter
    nanoGPT      iter 10: loss …, time 512.34ms, mfu 41.23%
                 per card; full attention; input embedding as it is tied

None of them counts recompute. nanoGPT's MFU is of 312e12 FLOP/s, whatever the card.

Source: the trainers' own code (torchtitan `components/metrics.py`, Megatron-LM `training_log`, MaxText
`metric_logger.py`, Composer `speed_monitor.py`, nanoGPT `train.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from flopwatch_kernels.flops import (
    DEFAULT_CONVENTION,
    Convention,
    ModelShape,
    train_flops_per_token,
)

LINE_CHARACTERS_MAX: Final = 8_192
"""What follows in a line is not looked at: no trainer's figures stand there."""

NANOGPT_PEAK_FLOPS: Final = 312e12
_TERA: Final = 1e12
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """How a trainer counts.

    Attributes:
        convention: of its attention.
        counts_embedding: its N holds the input embedding, though that is only looked up.
    """

    name: str
    convention: Convention
    counts_embedding: bool = False

    def flops_per_token(self, shape: ModelShape) -> float:
        """Return model FLOPs per token of training as this trainer counts them."""
        if self.counts_embedding:
            shape = replace(shape, input_embedding_parameters=0)
        return train_flops_per_token(shape, self.convention)

    def factor(self, shape: ModelShape) -> float:
        """Return its count over ours: 1.125 for torchtitan and Llama-3-8B at 8k tokens."""
        return self.flops_per_token(shape) / train_flops_per_token(shape, DEFAULT_CONVENTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one line says; None: it does not.

    Attributes:
        trainer: who wrote it; None for lines that only say that a checkpoint begins or ends.
        flops_per_second: model FLOP/s of one card, by the trainer's convention.
        tokens_per_second: of one card.
        step_seconds: how long one step took.
        checkpoint: a checkpoint begins (True) or is over (False).
    """

    trainer: Trainer | None = None
    step: int | None = None
    flops_per_second: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    step_seconds: float | None = None
    checkpoint: bool | None = None


TORCHTITAN: Final = Trainer(name="torchtitan", convention="full")
MEGATRON: Final = Trainer(name="megatron", convention="causal_half")
MAXTEXT: Final = Trainer(name="maxtext", convention="causal_half")
COMPOSER: Final = Trainer(name="composer", convention="full", counts_embedding=True)
NANOGPT: Final = Trainer(name="nanogpt", convention="full")

_NUMBER: Final = r"([-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?)"


def _field(pattern: str) -> Callable[[str], float | None]:
    """Return what finds the number behind a pattern in a line."""
    compiled = re.compile(pattern + r"\s*" + _NUMBER)

    def find(line: str) -> float | None:
        found = compiled.search(line)
        return None if found is None else float(found[1].replace(",", ""))

    return find


_TITAN_STEP: Final = re.compile(r"\bstep:\s*(\d+)\b.*\btps:")
_TITAN_TPS: Final = _field(r"\btps:")
_TITAN_TFLOPS: Final = _field(r"\btflops:")
_TITAN_MFU: Final = _field(r"\bmfu:")
_MEGATRON_STEP: Final = re.compile(r"\biteration\s+(\d+)\s*/\s*\d+\s*\|")
_MEGATRON_MS: Final = _field(r"elapsed time per iteration \(ms\):")
_MEGATRON_TFLOPS: Final = _field(r"(?:throughput|compute) per GPU \(TFLOP/s/GPU\):")
_MEGATRON_TOKENS: Final = _field(r"(?i:tokens per (?:second per )?GPU \(tok(?:ens)?/s/GPU\)):")
_MAXTEXT_STEP: Final = re.compile(r"\bstep: (\d+), seconds: ([\d.]+), TFLOP/s/device:")
_MAXTEXT_TFLOPS: Final = _field(r"TFLOP/s/device:")
_MAXTEXT_TOKENS: Final = _field(r"Tokens/s/device:")
_COMPOSER_BATCH: Final = re.compile(r"\[batch=(\d+)/")
_COMPOSER: Final = re.compile(
    r"\bthroughput/device/(mfu|flops_per_sec|tokens_per_sec):\s*" + _NUMBER
)
_NANOGPT: Final = re.compile(
    r"\biter (\d+): loss \S+, time " + _NUMBER + r"ms, mfu " + _NUMBER + "%"
)
_CHECKPOINT_BEGINS: Final = re.compile(
    r"Saving the checkpoint|saving checkpoint at iteration|Saving full checkpoint"
)
_CHECKPOINT_OVER: Final = re.compile(
    r"Finished saving the checkpoint|successfully saved checkpoint"
)


def parse(line: str) -> Said | None:
    """Return what a line says; None where it is no line we know.

    Args:
        line: as printed, colours and rank prefixes included.
    """
    line = line[:LINE_CHARACTERS_MAX]
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    for read in _READERS:
        said = read(line)
        if said is not None:
            return said
    return None


def _torchtitan(line: str) -> Said | None:
    found = _TITAN_STEP.search(line)
    if found is None:
        return None
    percent, tflops = (
        _TITAN_MFU(line),
        _TITAN_TFLOPS(line),
    )  # both are "N/A" where its peak is not known
    return Said(
        trainer=TORCHTITAN,
        step=int(found[1]),
        tokens_per_second=_TITAN_TPS(line),
        flops_per_second=None if tflops is None else tflops * _TERA,
        mfu=None if percent is None else percent / 100,
    )


def _megatron(line: str) -> Said | None:
    found = _MEGATRON_STEP.search(line)
    ms = _MEGATRON_MS(line) if found is not None else None
    if found is None or ms is None:
        return None
    tflops = _MEGATRON_TFLOPS(line)
    return Said(
        trainer=MEGATRON,
        step=int(found[1]),
        step_seconds=ms / 1e3,
        tokens_per_second=_MEGATRON_TOKENS(line),
        flops_per_second=None if tflops is None else tflops * _TERA,
    )


def _maxtext(line: str) -> Said | None:
    found = _MAXTEXT_STEP.search(line)
    tflops = _MAXTEXT_TFLOPS(line) if found is not None else None
    if found is None or tflops is None:
        return None
    return Said(
        trainer=MAXTEXT,
        step=int(found[1]),
        step_seconds=float(found[2]),
        tokens_per_second=_MAXTEXT_TOKENS(line),
        flops_per_second=tflops * _TERA,
    )


def _composer(line: str) -> Said | None:
    batch, found = _COMPOSER_BATCH.search(line), _COMPOSER.search(line)
    if found is None:
        return None if batch is None else Said(trainer=COMPOSER, step=int(batch[1]))
    name, value = found[1], float(found[2].replace(",", ""))
    return Said(
        trainer=COMPOSER,
        step=None if batch is None else int(batch[1]),
        mfu=value if name == "mfu" else None,
        flops_per_second=value if name == "flops_per_sec" else None,
        tokens_per_second=value if name == "tokens_per_sec" else None,
    )


def _nanogpt(line: str) -> Said | None:
    found = _NANOGPT.search(line)
    if found is None:
        return None
    mfu = float(found[3]) / 100
    known = mfu > 0  # it prints -100 % until it has a mean
    return Said(
        trainer=NANOGPT,
        step=int(found[1]),
        step_seconds=float(found[2].replace(",", "")) / 1e3,
        mfu=mfu if known else None,
        flops_per_second=mfu * NANOGPT_PEAK_FLOPS if known else None,
    )


def _checkpoint(line: str) -> Said | None:
    if _CHECKPOINT_OVER.search(line):
        return Said(checkpoint=False)
    return Said(checkpoint=True) if _CHECKPOINT_BEGINS.search(line) else None


_READERS: Final = (_torchtitan, _megatron, _maxtext, _composer, _nanogpt, _checkpoint)

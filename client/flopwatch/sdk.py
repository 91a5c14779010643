"""`auto` and `meter`: what a training loop says of itself. Imports nothing heavy.

A step costs a few additions in the training thread; `sender` does the rest in its own. Each rank counts
its own share: a step's FLOPs of the whole job divided by the world size, on the card it holds.

Environment, each winning over the argument of the same name: FLOPWATCH_JOB, _TEAM, _DTYPE, _CONVENTION,
_WORKLOAD_CLASS, _PHASE, _DEVICE, _WORLD_SIZE, _MODEL_FLOPS_PER_TOKEN; FLOPWATCH_SOCKET is where the agent
listens, FLOPWATCH_DISABLED=1 turns reporting off.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from flopwatch.sender import Sender
from flopwatch_proto.errors import UsageError

_SENDER: Final = Sender()
_TORCH_DTYPES: Final = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float64": "fp64"}


class Meter:
    """Counts the steps of a training loop. Made by `auto` and `meter`; also a context manager.

    Attributes:
        flops_per_step: model FLOPs of one step, this rank's share; None where counted by tokens.
        flops_per_token: model FLOPs of one token; None where counted by steps.
        convention: how the FLOPs are counted: causal_half, full, params_only.
        model_flops_total: model FLOPs of this rank's share so far.
        tokens_total: tokens of this rank's share so far.
        phase: steady, startup, checkpoint, eval; set it when it changes.
        uncounted_steps: steps that said no tokens where tokens were needed.
    """

    def __init__(
        self,
        *,
        flops_per_step: float | None,
        flops_per_token: float | None,
        labels: Mapping[str, str | None],
        world_size: int,
        phase: str | None,
        sender: Sender | None,
    ) -> None:
        self.flops_per_step = flops_per_step
        self.flops_per_token = flops_per_token
        self.counts_flops = flops_per_step is not None or flops_per_token is not None
        self.world_size = world_size
        self.phase = phase
        self.model_flops_total = 0.0
        self.tokens_total = 0.0
        self.steps_total = 0
        self.uncounted_steps = 0
        self._labels = dict(labels)
        self._sender = sender
        if sender is not None:
            sender.add(self)

    @property
    def convention(self) -> str | None:
        return self._labels["convention"]

    def step(self, *, tokens: float | None = None, local_tokens: float | None = None) -> None:
        """Count one step.

        Args:
            tokens: tokens of the whole job in this step; this rank counts its share of them.
            local_tokens: instead, tokens that this rank alone worked on (data parallelism only).

        Both are plain numbers: a tensor on a card would make the loop wait for it.
        """
        self.steps_total += 1
        if self._labels["device"] is None:
            self._labels["device"] = _started_device()
        share = local_tokens if tokens is None else tokens / self.world_size
        if share is not None:
            self.tokens_total += share
        if self.flops_per_step is not None:
            self.model_flops_total += self.flops_per_step
        elif self.flops_per_token is not None:
            if share is None:
                self._uncounted()
            else:
                self.model_flops_total += share * self.flops_per_token

    def labels(self) -> Mapping[str, str | None]:
        """Return what this process is called in its datagrams."""
        return self._labels

    def close(self) -> None:
        """Send the last counters and stop; safe twice. Leaving the process does it too."""
        if self._sender is not None:
            self._sender.remove(self)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _uncounted(self) -> None:
        self.uncounted_steps += 1
        if self.uncounted_steps == 1:
            warnings.warn(
                "flopwatch: meter.step() needs tokens= here; this step counts no FLOPs",
                stacklevel=3,
            )


def meter(
    *,
    flops_per_step: float | None = None,
    flops_per_token: float | None = None,
    convention: str | None = None,
    dtype: str | None = None,
    job: str | None = None,
    team: str | None = None,
    workload_class: str = "training",
    phase: str | None = "steady",
    device: str | None = None,
    world_size: int | None = None,
) -> Meter:
    """Return a meter for a loop whose FLOPs are known.

    Args:
        flops_per_step: model FLOPs of one step of the *whole job*, forward and backward.
        flops_per_token: model FLOPs of one token; `Meter.step` then wants tokens.
        convention: how they were counted: causal_half, full or params_only.
        dtype: what the tensor cores run (bf16, fp8, …); None: the cluster's.
        job: name of the job; None: Slurm's, else the agent calls it by its pid.
        workload_class: training, inference, rl_rollout, eval, interactive.
        device: ``cpu`` or ``cuda:<uuid>``; None: the card torch has selected, once it has one.
        world_size: ranks that share a step; None: what torchrun or torch.distributed says.

    Raises:
        UsageError: both or neither of the two FLOP counts, or one that is no positive number.
    """
    per_token = _number("FLOPWATCH_MODEL_FLOPS_PER_TOKEN") or flops_per_token
    if flops_per_token is not None and flops_per_step is not None:
        raise UsageError("meter(): give flops_per_step or flops_per_token, not both")
    if per_token is None and flops_per_step is None:
        raise UsageError("meter(): give flops_per_step= or flops_per_token=")
    for name, value in (("flops_per_step", flops_per_step), ("flops_per_token", per_token)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"meter(): {name} = {value!r} is no positive number")
    ranks = _world_size(world_size)
    return Meter(
        flops_per_step=None if flops_per_step is None else flops_per_step / ranks,
        flops_per_token=None if flops_per_step is not None else per_token,
        labels={
            "job": _text("FLOPWATCH_JOB", job) or os.environ.get("SLURM_JOB_ID"),
            "team": _text("FLOPWATCH_TEAM", team) or os.environ.get("SLURM_JOB_ACCOUNT"),
            "dtype": _text("FLOPWATCH_DTYPE", dtype),
            "convention": _text("FLOPWATCH_CONVENTION", convention),
            "workload_class": _text("FLOPWATCH_WORKLOAD_CLASS", workload_class),
            "device": _text("FLOPWATCH_DEVICE", device) or _current_device(),
        },
        world_size=ranks,
        phase=_text("FLOPWATCH_PHASE", phase),
        sender=None if os.environ.get("FLOPWATCH_DISABLED") == "1" else _SENDER,
    )


def auto(
    model: Any,
    *,
    seq_len: int | None = None,
    example_inputs: Any = None,
    causal: bool = True,
    active_params: float | None = None,
    allow_low_count: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    world_size: int | None = None,
    **labels: Any,
) -> Meter:
    """Return a meter for a torch model, its FLOPs counted once on shapes alone.

    Args:
        model: the module before DDP or FSDP wraps it; its weights are not touched.
        seq_len: a language model's tokens per sequence; `Meter.step` then wants tokens.
        example_inputs: instead, one step's inputs of *this rank* (a tensor or a tuple of them).
        causal: attention looks back only; False for encoders.
        active_params: N per token of a mixture of experts, for the check against 2 N.
        allow_low_count: take a count that misses more than a tenth of it.
        labels: job, team, workload_class, phase, as for `meter`.

    Raises:
        UsageError: the model cannot be counted, or the count is too low to be true.
    """
    if (seq_len is None) == (example_inputs is None):
        raise UsageError("auto(): give seq_len= or example_inputs=")
    from flopwatch import counting

    keys = {
        **labels,
        "dtype": dtype or _dtype_of(model),
        "device": device or _device_of(model),
    }
    if seq_len is not None:
        found = counting.per_token(
            model,
            seq_len=seq_len,
            causal=causal,
            active_params=active_params,
            allow_low_count=allow_low_count,
        )
        return meter(
            flops_per_token=found.flops,
            convention=found.convention,
            world_size=world_size,
            **keys,
        )
    inputs: Sequence[Any] = (
        example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    )
    ranks = _world_size(world_size)
    total = counting.count(model, *inputs).total
    # The inputs are this rank's own, so the job's step is as many times that as there are ranks.
    return meter(flops_per_step=total * ranks, convention="full", world_size=ranks, **keys)


def _text(name: str, value: str | None) -> str | None:
    return os.environ.get(name) or value


def _number(name: str) -> float | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{name} = {text!r} is no number") from None


def _world_size(given: int | None) -> int:
    found = _number("FLOPWATCH_WORLD_SIZE") or given
    if found is None:
        distributed = getattr(sys.modules.get("torch"), "distributed", None)
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            found = distributed.get_world_size()
        else:
            found = _number("WORLD_SIZE") or 1
    if found < 1:
        raise UsageError(f"world_size = {found!r}: it is at least 1")
    return int(found)


def _current_device() -> str | None:
    """Return the device this thread works on; None while a card may still be chosen."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_available():
        return "cpu"
    return _started_device()


def _started_device() -> str | None:
    """Return the card this thread has selected; None before CUDA has started.

    Never starts CUDA: that would take memory on a card the job may not want.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    return _cuda_name(cuda, cuda.current_device())


def _device_of(model: Any) -> str | None:
    """Return the device that holds the model's first parameter; None when that settles nothing."""
    first = next(iter(model.parameters()), None)
    if first is None or first.device.type != "cuda":
        return None
    return _cuda_name(sys.modules["torch"].cuda, first.device.index)


def _cuda_name(cuda: Any, index: int | None) -> str | None:
    uuid = getattr(cuda.get_device_properties(index), "uuid", None)
    return None if uuid is None else f"cuda:GPU-{str(uuid).removeprefix('GPU-')}"


def _dtype_of(model: Any) -> str | None:
    """Return the dtype of the weights where it settles what runs.

    Weights in fp32 on a card mostly run as bf16 under autocast, or as tf32: that is not known here.
    """
    first = next(iter(model.parameters()), None)
    if first is None:
        return None
    if str(first.dtype) == "torch.float32" and first.device.type == "cpu":
        return "fp32"
    return _TORCH_DTYPES.get(str(first.dtype))

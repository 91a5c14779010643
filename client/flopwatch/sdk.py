"""`auto` and `meter`: make the meter of a training loop. Imports nothing heavy.

A step costs a few additions in the training thread; `sender` does the rest in its own. Each rank counts
its own share: a step's FLOPs of the whole job divided by the world size, on the card it holds.

Model FLOPs are counted by the default convention, causal_half, wherever the model's shape is known; what the
job's own MFU is counted by (`reports=`) goes along as a factor, so that both can be compared.

Environment, each winning over the argument of the same name: FLOPWATCH_JOB, _TEAM, _DTYPE, _CONVENTION,
_WORKLOAD_CLASS, _PHASE, _DEVICE, _WORLD_SIZE, _MODEL_FLOPS_PER_TOKEN; FLOPWATCH_SOCKET is where the agent
listens, FLOPWATCH_DISABLED=1 turns reporting off.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from flopwatch.sender import Sender
from flopwatch.steps import Meter
from flopwatch_kernels.flops import (
    CONVENTIONS,
    DEFAULT_CONVENTION,
    Convention,
    ModelShape,
    convention_ratio,
)
from flopwatch_proto.errors import UsageError

__all__ = ["Meter", "auto", "meter"]

_SENDER: Final = Sender()
_TORCH_DTYPES: Final = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float64": "fp64"}


def meter(
    *,
    flops_per_step: float | None = None,
    flops_per_token: float | None = None,
    convention: str | None = None,
    shape: ModelShape | None = None,
    reports: str | None = None,
    start_step: int | None = None,
    dtype: str | None = None,
    job: str | None = None,
    team: str | None = None,
    workload_class: str = "training",
    phase: str | None = None,
    device: str | None = None,
    world_size: int | None = None,
) -> Meter:
    """Return a meter for a loop whose FLOPs are known.

    Args:
        flops_per_step: model FLOPs of one step of the *whole job*, forward and backward.
        flops_per_token: model FLOPs of one token; `Meter.step` then wants tokens.
        convention: how they were counted: causal_half, full or params_only.
        shape: the model's; with it and `convention` the FLOPs are converted to causal_half.
        reports: convention of the MFU that the loop computes itself and gives to `Meter.step`.
        start_step: number of the step that the checkpoint was of; tells what a restart lost.
        dtype: what the tensor cores run (bf16, fp8, …); None: the cluster's.
        job: name of the job; None: Slurm's, else the agent calls it by its pid.
        workload_class: training, inference, rl_rollout, eval, interactive.
        phase: None: startup until the first step, steady from then on.
        device: ``cpu`` or ``cuda:<uuid>``; None: the card torch has selected, once it has one.
        world_size: ranks that share a step; None: what torchrun or torch.distributed says.

    Raises:
        UsageError: both or neither of the two FLOP counts, or one that is no positive number; or a
            convention that nobody knows.
    """
    per_token = _number("FLOPWATCH_MODEL_FLOPS_PER_TOKEN") or flops_per_token
    _check_counts(flops_per_step, flops_per_token, per_token)
    ranks = _world_size(world_size)
    # The environment speaks of the FLOPs that it gives itself, or of what nobody else names.
    outside = os.environ.get("FLOPWATCH_CONVENTION") or None
    if convention is None or os.environ.get("FLOPWATCH_MODEL_FLOPS_PER_TOKEN"):
        convention = outside or convention
    counted, factor = _convention("convention", convention), 1.0
    if counted is not None and shape is not None:
        factor = convention_ratio(shape, of=counted, to=DEFAULT_CONVENTION)
        counted = DEFAULT_CONVENTION
    return Meter(
        flops_per_step=None if flops_per_step is None else factor * flops_per_step / ranks,
        flops_per_token=None
        if flops_per_step is not None or per_token is None
        else factor * per_token,
        labels={
            "job": _text("FLOPWATCH_JOB", job) or os.environ.get("SLURM_JOB_ID"),
            "team": _text("FLOPWATCH_TEAM", team) or os.environ.get("SLURM_JOB_ACCOUNT"),
            "dtype": _text("FLOPWATCH_DTYPE", dtype),
            "convention": counted,
            "workload_class": _text("FLOPWATCH_WORKLOAD_CLASS", workload_class),
            "device": _text("FLOPWATCH_DEVICE", device) or _current_device(),
        },
        world_size=ranks,
        phase=_text("FLOPWATCH_PHASE", phase),
        sender=None if os.environ.get("FLOPWATCH_DISABLED") == "1" else _SENDER,
        started_device=_started_device,
        reported_factor=_reported_factor(counted, _convention("reports", reports), shape),
        start_step=start_step,
    )


def auto(
    model: Any,
    *,
    seq_len: int | None = None,
    example_inputs: Any = None,
    causal: bool = True,
    active_params: float | None = None,
    document_tokens: Sequence[int] | None = None,
    allow_low_count: bool = False,
    reports: str | None = None,
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
        active_params: N per token of a mixture of experts; left out: by its config, where that tells.
        document_tokens: lengths of the documents packed into one sequence, attention inside each only.
        allow_low_count: take a count that misses more than a tenth of it.
        reports: convention of the MFU that the loop computes itself: causal_half, full, params_only.
        labels: job, team, workload_class, phase, start_step, as for `meter`.

    Raises:
        UsageError: the model cannot be counted, or the count is too low to be true.
    """
    if (seq_len is None) == (example_inputs is None):
        raise UsageError("auto(): give seq_len= or example_inputs=")
    from flopwatch import counting

    wanted = _convention("reports", reports)
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
            document_tokens=document_tokens,
            allow_low_count=allow_low_count,
        )
        made = meter(
            flops_per_token=found.flops,
            convention=found.convention,
            world_size=world_size,
            **keys,
        )
        if wanted is not None and wanted in found.by_convention:
            made.reported_factor = found.by_convention[wanted] / found.flops
        return made
    inputs: Sequence[Any] = (
        example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    )
    ranks = _world_size(world_size)
    total = counting.count(model, *inputs).total
    # The inputs are this rank's own, so the job's step is as many times that as there are ranks.
    return meter(
        flops_per_step=total * ranks, convention="full", reports=reports, world_size=ranks, **keys
    )


def _check_counts(
    per_step: float | None, per_token_argument: float | None, per_token: float | None
) -> None:
    if per_token_argument is not None and per_step is not None:
        raise UsageError("meter(): give flops_per_step or flops_per_token, not both")
    if per_token is None and per_step is None:
        raise UsageError("meter(): give flops_per_step= or flops_per_token=")
    for name, value in (("flops_per_step", per_step), ("flops_per_token", per_token)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"meter(): {name} = {value!r} is no positive number")


def _convention(name: str, text: str | None) -> Convention | None:
    if text is None:
        return None
    for known in CONVENTIONS:
        if text == known:
            return known
    raise UsageError(f"meter(): {name} = {text!r}: one of {', '.join(CONVENTIONS)}")


def _reported_factor(
    counted: Convention | None, reports: Convention | None, shape: ModelShape | None
) -> float | None:
    """Return FLOPs by the convention of the job's own MFU over those counted; None: not known."""
    if reports is None or counted is None:
        return None
    if reports == counted:
        return 1.0
    return None if shape is None else convention_ratio(shape, of=counted, to=reports)


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

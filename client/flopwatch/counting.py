"""What one pass through a torch model costs, counted once, without touching its memory.

The model's structure is copied with every tensor on the ``meta`` device (shapes, no data), and torch's
FlopCounterMode counts one forward and one backward pass. Three things keep the count honest:

- Recompute is not model work: forward and backward together are at most three forwards.
- Operators that the counter does not know count zero, silently. So a transformer's forward is compared
  with 2 N per token, and a count below 0.9 of it is refused.
- The counter takes attention as unmasked (``full``). Where the model's shape is known, the attention
  part is replaced by the causal half; else the figure is recorded as ``full``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_kernels.flops import DEFAULT_CONVENTION, ModelShape, train_flops_per_token
from flopwatch_proto.errors import UsageError

COUNT_RATIO_MIN: Final = 0.9
_ATTENTION_OPERATORS: Final = ("bmm", "baddbmm", "scaled_dot_product", "flash_attention", "flex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """FLOPs of one pass.

    Attributes:
        forward: of the forward pass.
        total: forward and backward, without recompute; the forward alone where nothing is trained.
        attention: the part of `total` in products of activations with activations.
    """

    forward: float
    total: float
    attention: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PerToken:
    """Model FLOPs per token and the convention they are counted by."""

    flops: float
    convention: str


def count(model: Any, *inputs: Any) -> Count:
    """Count one pass of a module over inputs of these shapes.

    Raises:
        UsageError: the model cannot run without data, or nothing it does can be counted.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        shadow, shadow_inputs = to_meta(model), [_tensor_to_meta(value) for value in inputs]
        with FlopCounterMode(display=False) as forward:
            outputs = shadow(*shadow_inputs)
        trained = [tensor for tensor in _tensors(outputs) if tensor.requires_grad]
        with FlopCounterMode(display=False) as backward:
            if trained:
                sum(tensor.float().sum() for tensor in trained).backward()
    except Exception as exc:  # any error of any model's own code
        raise UsageError(
            f"auto(): the model does not run on shapes alone ({type(exc).__name__}: {exc}); "
            "say flopwatch.meter(flops_per_token=...) or flops_per_step= instead"
        ) from exc
    forward_flops = float(forward.get_total_flops())
    if forward_flops <= 0:
        raise UsageError(
            "auto(): nothing in the model could be counted; "
            "say flopwatch.meter(flops_per_step=...) instead"
        )
    total = min(forward_flops + backward.get_total_flops(), 3 * forward_flops)
    attention = _attention(forward)
    return Count(
        forward=forward_flops,
        total=total,
        attention=attention + min(_attention(backward), 2 * attention),
    )


def per_token(
    model: Any,
    *,
    seq_len: int,
    causal: bool = True,
    active_params: float | None = None,
    allow_low_count: bool = False,
) -> PerToken:
    """Count a language model's FLOPs per token.

    Args:
        model: takes token ids [batch, seq_len]; unwrapped, before anything shards it.
        seq_len: tokens of one sequence.
        causal: attention looks back only; False for encoders.
        active_params: N that one token passes through, for mixtures of experts; else counted.
        allow_low_count: take a count that misses more than a tenth of 2 N.

    Raises:
        UsageError: see `count`; or the count is too low to be true.
    """
    import torch

    ids = torch.zeros(1, seq_len, dtype=torch.int64, device="meta")
    counted = count(model, ids)
    parameters = multiplied_parameters(model) if active_params is None else active_params
    expected = 2 * parameters * seq_len
    if counted.forward < COUNT_RATIO_MIN * expected and not allow_low_count:
        raise UsageError(
            f"auto(): counted {counted.forward / expected:.2f} of the 2N FLOPs per token that "
            f"N = {parameters:.3g} parameters need: some operators are unknown to the counter. "
            "Give active_params= for a mixture of experts, allow_low_count=True to take it as it "
            "is, or say flopwatch.meter(flops_per_token=...)"
        )
    passes = counted.total / counted.forward
    full = counted.total / seq_len
    shape = shape_of(model, seq_len)
    if not causal or shape is None:
        return PerToken(flops=full, convention="full")
    # Attention alone, by the formula of each convention, forward and backward.
    attention_full = train_flops_per_token(shape, "full") * passes / 3
    attention_half = train_flops_per_token(shape, "causal_half") * passes / 3
    counted_attention = counted.attention / seq_len
    if counted_attention and abs(counted_attention / attention_full - 1) > 0.05:
        return PerToken(flops=full, convention="full")  # not the shape we think it is
    return PerToken(flops=full - counted_attention + attention_half, convention=DEFAULT_CONVENTION)


def multiplied_parameters(model: Any) -> int:
    """Return N without embeddings that are only looked up; a tied output layer counts."""
    from torch import nn

    looked_up = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    multiplied = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    only_looked_up = looked_up - multiplied
    return sum(p.numel() for p in model.parameters() if id(p) not in only_looked_up)


def shape_of(model: Any, seq_len: int) -> ModelShape | None:
    """Return layers and attention width from the model's ``config``; None without a plain one.

    The shape carries no parameters: only its attention part is used.
    """
    config = getattr(model, "config", None)

    def number(*names: str) -> int | None:
        found = (getattr(config, name, None) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), None)

    layers = number("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = number("num_attention_heads", "n_head", "num_heads", "n_heads")
    head_dimension = number("head_dim")
    width = number("hidden_size", "n_embd", "d_model", "dim")
    if heads is not None and head_dimension is not None:
        width = heads * head_dimension
    if layers is None or width is None:
        return None
    return ModelShape(
        parameters=0,
        layers=layers,
        attention_width=width,
        sequence_tokens=seq_len,
        window_tokens=number("sliding_window") if _slides(config) else None,
    )


def _slides(config: Any) -> bool:
    return bool(getattr(config, "use_sliding_window", getattr(config, "sliding_window", None)))


def to_meta(model: Any) -> Any:
    """Return a copy of the module whose tensors have shapes and no data; the original is untouched."""
    import torch

    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            memo[id(value)] = _tensor_to_meta(value)
        for value in vars(module).values():
            if isinstance(value, torch.Tensor):
                memo[id(value)] = _tensor_to_meta(value)
    return copy.deepcopy(model, memo)


def _tensor_to_meta(value: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    empty = torch.empty_like(value, device="meta")
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=value.requires_grad)
    return empty.requires_grad_(value.requires_grad)


def _tensors(outputs: Any) -> Iterator[Any]:
    """Yield the tensors of whatever a model returns."""
    import torch

    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)


def _attention(counter: Any) -> float:
    operators = counter.get_flop_counts().get("Global", {})
    return float(
        sum(
            flops
            for operator, flops in operators.items()
            if any(name in str(operator) for name in _ATTENTION_OPERATORS)
        )
    )

"""What one pass through a torch model costs, counted once, without touching its memory.

The model's structure is copied with every tensor on the ``meta`` device (shapes, no data), and torch's
FlopCounterMode counts one forward and one backward pass. Three things keep the count honest:

- Recompute is not model work: forward and backward together are at most three forwards.
- Operators that the counter does not know count zero, silently. So a transformer's forward is compared
  with 2 N per token, and a count below 0.9 of it is refused.
- The counter takes attention as unmasked (``full``). Where the model's shape is known, the attention
  part is replaced by what the causal mask, sliding windows and packed documents leave of it; else the
  figure is recorded as ``full``.
- A mixture of experts chooses by data, and some implementations compute every expert and drop most: where
  the config tells the number of experts and how many a token takes, the formula stands instead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from flopwatch_kernels.flops import (
    DEFAULT_CONVENTION,
    Convention,
    ModelShape,
    moe_active_parameters,
    train_flops_per_token,
)
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
    """Model FLOPs per token and the convention they are counted by.

    Attributes:
        by_convention: the same by every convention that the shape allows.
    """

    flops: float
    convention: str
    by_convention: Mapping[str, float] = field(default_factory=dict)


def count(model: Any, *inputs: Any) -> Count:
    """Count one pass of a module over inputs of these shapes.

    Raises:
        UsageError: the model cannot run without data, or nothing it does can be counted.
    """
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    try:
        shadow, shadow_inputs = to_meta(model), [_tensor_to_meta(value) for value in inputs]
        # Fake tensors, as libraries know not to look at the data of a model that is being traced.
        with FakeTensorMode(allow_non_fake_inputs=True):
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
    attention = _counted_attention(forward)
    return Count(
        forward=forward_flops,
        total=total,
        attention=attention + min(_counted_attention(backward), 2 * attention),
    )


def per_token(
    model: Any,
    *,
    seq_len: int,
    causal: bool = True,
    active_params: float | None = None,
    document_tokens: Sequence[int] | None = None,
    allow_low_count: bool = False,
) -> PerToken:
    """Count a language model's FLOPs per token.

    Args:
        model: takes token ids [batch, seq_len]; unwrapped, before anything shards it.
        seq_len: tokens of one sequence.
        causal: attention looks back only; False for encoders.
        active_params: N that one token passes through, for mixtures of experts; else counted.
        document_tokens: lengths of the documents packed into one sequence; None: one document.
        allow_low_count: take a count that misses more than a tenth of 2 N.

    Raises:
        UsageError: see `count`; or the count is too low to be true.
    """
    shapes = shapes_of(model, seq_len, document_tokens)
    routed = active_parameters(model) if active_params is None else None
    if routed is not None and shapes:
        return _converted(6.0 * routed, 6.0 * all_parameters(model), shapes, 1.0, causal=causal)
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
    passes = counted.total / counted.forward / 3
    full, attention = counted.total / seq_len, counted.attention / seq_len
    # The counter knows neither masks nor windows nor documents: it is compared with all of T.
    unmasked = sum(
        _attention(replace(shape, window_tokens=None, document_tokens=None), "full")
        for shape in shapes
    )
    if not shapes or (attention and abs(attention / (passes * unmasked) - 1) > 0.05):
        return PerToken(flops=full, convention="full", by_convention={"full": full})
    every = 2 * all_parameters(model) * 3 * passes
    return _converted(full - attention, every, shapes, passes, causal=causal)


def _converted(
    parameters: float, every: float, shapes: Sequence[ModelShape], passes: float, *, causal: bool
) -> PerToken:
    """Return FLOPs per token by every convention, and by the one that fits the model's mask.

    Args:
        parameters: FLOPs per token in products with weights.
        every: the same if every parameter were multiplied.
        passes: of three, how many are made: less where weights are frozen.
    """
    found = {"params_only": every}
    for convention in ("full", "causal_half"):
        attention = sum(_attention(shape, convention) for shape in shapes)
        found[convention] = parameters + passes * attention
    chosen = DEFAULT_CONVENTION if causal else "full"
    return PerToken(flops=found[chosen], convention=chosen, by_convention=found)


def _attention(shape: ModelShape, convention: Convention) -> float:
    """FLOPs per token of attention alone; the shapes of `shapes_of` carry no parameters."""
    return train_flops_per_token(shape, convention)


def all_parameters(model: Any) -> int:
    """Return N with everything that is only looked up."""
    return sum(parameter.numel() for parameter in model.parameters())


def active_parameters(model: Any) -> float | None:
    """Return N that one token passes through; None where the model is no mixture of experts we know.

    Experts are the parameters under a module called ``experts``; how many there are and how many a token
    takes is the config's word. Embeddings that are only looked up are left out.
    """
    config = getattr(model, "config", None)
    experts = _number(config, "num_local_experts", "num_experts", "n_routed_experts")
    top_k = _number(config, "num_experts_per_tok", "moe_top_k", "top_k")
    if experts is None or top_k is None or not 0 < top_k <= experts:
        return None
    routed = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "experts" in name.split(".") and "shared_experts" not in name.split(".")
    )
    if not routed:
        return None
    return moe_active_parameters(
        dense=multiplied_parameters(model) - routed,
        router=0,
        shared=0,
        routed=routed,
        top_k=top_k,
        experts=experts,
    )


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


def shapes_of(
    model: Any, seq_len: int, document_tokens: Sequence[int] | None = None
) -> tuple[ModelShape, ...]:
    """Return the attention of the model by its ``config``: one shape per kind of layer; empty without one.

    Grouped queries change nothing: every head of queries has its products. The shapes carry no
    parameters: only their attention is used.
    """
    config = getattr(model, "config", None)
    layers = _number(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _number(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    head_dimension = _number(config, "head_dim")
    width = _number(config, "hidden_size", "n_embd", "d_model", "dim")
    if heads is not None and head_dimension is not None:
        width = heads * head_dimension
    if layers is None or width is None:
        return ()
    window = _number(config, "sliding_window") if _slides(config) else None
    kinds = getattr(config, "layer_types", None)
    sliding = layers if window else 0
    if window and isinstance(kinds, list | tuple):
        sliding = sum("sliding" in str(kind) for kind in kinds)
    whole = ModelShape(
        parameters=0,
        layers=layers - sliding,
        attention_width=width,
        sequence_tokens=seq_len,
        document_tokens=document_tokens,
    )
    shapes = (whole, replace(whole, layers=sliding, window_tokens=window))
    return tuple(shape for shape in shapes if shape.layers > 0)


def _number(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


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


def _counted_attention(counter: Any) -> float:
    operators = counter.get_flop_counts().get("Global", {})
    return float(
        sum(
            flops
            for operator, flops in operators.items()
            if any(name in str(operator) for name in _ATTENTION_OPERATORS)
        )
    )

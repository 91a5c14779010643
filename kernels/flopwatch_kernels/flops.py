"""How many floating-point operations a model needs: the formulas, and nothing else.

One *convention* says what is counted, and every stored MFU carries its name, because the same run
reads 6 to 70 % differently between them (Llama-3-8B at 8k and 128k tokens):

    causal_half   6 N + 6 L H Q T    N without a looked-up input embedding; attention halved, as
                                     the causal mask does. What the hardware does. The default.
    full          6 N + 12 L H Q T   N without a looked-up input embedding; attention as if
                                     unmasked. PaLM, nanoGPT, torchtitan.
    params_only   6 N                every parameter, no attention: the "6ND" of scaling laws.

N parameters, L layers, H heads, Q head dimension (H Q is the attention's width), T tokens of
context. One multiply-add is two operations; the backward pass is twice the forward one, so 6 is
3 x 2. *Model* FLOPs never count recompute; *hardware* FLOPs do, and their share is the HFU.

Source: PaLM (arXiv 2204.02311) appendix B; nanoGPT `estimate_mfu`; torchtitan `models/utils.py`;
Megatron-LM `num_floating_point_operations`; the ratios were recomputed for this project.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

Convention = Literal["causal_half", "full", "params_only"]
Recompute = Literal["none", "flash_attention", "attention", "full"]

CONVENTIONS: Final[tuple[Convention, ...]] = get_args(Convention)
DEFAULT_CONVENTION: Final[Convention] = "causal_half"

_TRAINING_PASSES: Final = 3  # forward, and twice as much backward
_FLOP_PER_MULTIPLY_ADD: Final = 2
# Extra forward passes, of the parameters' products and of attention's, that a way of saving
# activations adds to the three. FlashAttention recomputes QK^T, half of attention's forward.
_EXTRA_FORWARD: Final[dict[Recompute, tuple[float, float]]] = {
    "none": (0.0, 0.0),
    "flash_attention": (0.0, 0.5),
    "attention": (0.0, 1.0),
    "full": (1.0, 1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the formulas need to know of a transformer.

    Attributes:
        parameters: N. Mixture of experts: the parameters one token passes through, see
            `moe_active_parameters`.
        layers: L, the layers that have attention.
        attention_width: H * Q, heads times head dimension; usually the hidden size.
        sequence_tokens: T, the context of one sequence.
        input_embedding_parameters: Parameters inside `parameters` that are only looked up, never
            multiplied (vocabulary * hidden); 0 where the embedding is tied to the output, or
            where the published N is to be used as it stands.
        window_tokens: Keys a token may look back on, where attention slides; None for all.
        document_tokens: Lengths of the documents packed into one sequence without attention
            across them; None for one document of `sequence_tokens`.
    """

    parameters: float
    layers: int
    attention_width: int
    sequence_tokens: int
    input_embedding_parameters: float = 0
    window_tokens: int | None = None
    document_tokens: Sequence[int] | None = None


def gemm_flops(m: int, n: int, k: int) -> int:
    """Operations in C[m,n] = A[m,k] @ B[k,n]: 2*m*n*k (a multiply-add counts two).

    Source: the convention of nanoGPT `estimate_mfu`, which cites PaLM (arXiv 2204.02311) app. B.
    """
    return _FLOP_PER_MULTIPLY_ADD * m * n * k


def moe_active_parameters(
    *, dense: float, router: float, shared: float, routed: float, top_k: int, experts: int
) -> float:
    """Parameters one token passes through: dense + router + shared + routed * top_k / experts.

    Args:
        dense: Parameters outside the experts (attention, norms, output).
        router: Parameters of the routers.
        shared: Parameters of the experts every token takes.
        routed: Parameters of all routed experts together.
        top_k: Routed experts per token.
        experts: Routed experts per layer.

    Returns:
        N for `ModelShape.parameters`. Capacity padding and dropped tokens are not in it.

    Source: torchtitan `models/utils.py`, Megatron-LM; science of this project, section 1.2.
    """
    if not 0 < top_k <= experts:
        raise ValueError(f"top_k must be between 1 and experts ({experts}), not {top_k}")
    return dense + router + shared + routed * top_k / experts


def keys_per_token(shape: ModelShape, convention: Convention) -> float:
    """Keys that one token attends to on average, as the convention counts them.

    Full counts min(T, w) for every token. The causal mask leaves token i min(i, w), on average
    w - w^2 / 2T, which is T/2 without a window. Packed documents attend inside themselves, so the
    mean over tokens replaces T by sum(T_i^2) / sum(T_i).

    Source: PaLM app. B (full); Megatron-LM `num_floating_point_operations` (causal, packed).
    """
    if convention == "params_only":
        return 0.0
    documents = shape.document_tokens
    if documents is None:
        documents = (shape.sequence_tokens,)
    weighted = 0.0
    for tokens in documents:
        window = tokens if shape.window_tokens is None else min(tokens, shape.window_tokens)
        keys = window if convention == "full" else window - window * window / (2 * tokens)
        weighted += tokens * keys
    return weighted / sum(documents)


def train_flops_per_token(shape: ModelShape, convention: Convention = DEFAULT_CONVENTION) -> float:
    """Model FLOPs of training (forward and backward) per token; no recompute.

    Returns:
        6 N + 12 L H Q x keys, keys as in `keys_per_token`: so 6N+12LHQT for full, 6N+6LHQT for
        causal_half, and 6 N over every parameter for params_only.

    Source: PaLM (arXiv 2204.02311) appendix B.
    """
    return _TRAINING_PASSES * (
        _parameter_forward(shape, convention) + _attention_forward(shape, convention)
    )


def hardware_flops_per_token(
    shape: ModelShape,
    convention: Convention = DEFAULT_CONVENTION,
    *,
    recompute: Recompute = "full",
) -> float:
    """FLOPs per token that the hardware does in training, recompute included: HFU's numerator.

    Args:
        shape: The model.
        convention: As for `train_flops_per_token`.
        recompute: "full" runs the whole forward twice (8N + 16LHQT by the full convention, 4/3
            of the model FLOPs); "attention" only attention's; "flash_attention" the half of it
            that the kernel itself repeats (3.5 instead of 3 forwards); "none" none.

    Source: PaLM app. B (HFU); torchtitan `attention.py` (3.5).
    """
    parameters, attention = _EXTRA_FORWARD[recompute]
    return (_TRAINING_PASSES + parameters) * _parameter_forward(shape, convention) + (
        _TRAINING_PASSES + attention
    ) * _attention_forward(shape, convention)


def inference_flops_per_token(shape: ModelShape, *, context_tokens: int = 0) -> float:
    """Model FLOPs of generating one token: 2 N + 4 L H Q x context.

    Args:
        shape: The model; `parameters` are the active ones.
        context_tokens: Keys in the cache that the token attends to.

    Decode is bound by memory, not FLOPs: never judge it by MFU alone.

    Source: PaLM app. B, forward pass only.
    """
    parameters = shape.parameters - shape.input_embedding_parameters
    attention = 2 * shape.layers * shape.attention_width * context_tokens
    return _FLOP_PER_MULTIPLY_ADD * (parameters + attention)


def convention_ratio(shape: ModelShape, *, of: Convention, to: Convention) -> float:
    """Factor that turns a FLOP count or an MFU stated by one convention into the other's."""
    return train_flops_per_token(shape, to) / train_flops_per_token(shape, of)


def mfu(
    *, tokens_per_second: float, flops_per_token: float, peak_flops: float, cards: int
) -> float:
    """Share of the cards' dense datasheet peak that went into the model, 0..1 (not clipped).

    Args:
        tokens_per_second: Tokens per second of all the cards together.
        flops_per_token: By `train_flops_per_token`; with `hardware_flops_per_token` it is the HFU.
        peak_flops: Dense datasheet peak of one card for the dtype that ran, FLOP/s. The same run
            is 82.8 % of a bf16 peak and 41.4 % of an fp8 peak: the dtype belongs to the figure.
        cards: Cards the run occupies.

    Source: PaLM (arXiv 2204.02311) appendix B.
    """
    if peak_flops <= 0 or cards <= 0:
        raise ValueError(f"peak_flops and cards must be positive, not {peak_flops} and {cards}")
    return tokens_per_second * flops_per_token / (peak_flops * cards)


def _parameter_forward(shape: ModelShape, convention: Convention) -> float:
    """FLOPs per token of one forward pass through the weights: 2 N."""
    counted = shape.parameters
    if convention != "params_only":
        counted -= shape.input_embedding_parameters
    return _FLOP_PER_MULTIPLY_ADD * counted


def _attention_forward(shape: ModelShape, convention: Convention) -> float:
    """FLOPs per token of one forward pass of QK^T and AV: two products of 2 H Q per key."""
    per_key = 2 * _FLOP_PER_MULTIPLY_ADD * shape.attention_width
    return shape.layers * per_key * keys_per_token(shape, convention)

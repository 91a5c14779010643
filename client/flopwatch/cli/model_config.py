"""What a model's `config.json` says of its size, for the MFU calculator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopwatch_kernels import flops
from flopwatch_proto.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's size. None is what the file does not say.

    Attributes:
        parameters: all of them.
        active_parameters: those one token passes through; None where that is all of them.
        attention_width: heads × head dimension.
        sequence_tokens: the longest context that the file names.
        input_embedding_parameters: looked up, never multiplied; 0 where tied to the output.
    """

    parameters: float | None = None
    active_parameters: float | None = None
    layers: int | None = None
    hidden: int | None = None
    attention_width: int | None = None
    sequence_tokens: int | None = None
    input_embedding_parameters: float = 0.0


def read_config(path: Path) -> ModelConfig:
    """The size of the model of a `config.json` in the usual (Hugging Face) words.

    Raises:
        UsageError: no such file, no JSON, or a size is missing; the text names the key.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"--config {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"--config {path}: not JSON: {exc}") from exc
    if not isinstance(said, dict):
        raise UsageError(f"--config {path}: a JSON object is wanted")
    said = {**said, **(said.get("text_config") or {})}
    try:
        return _config(said)
    except KeyError as exc:
        raise UsageError(f"--config {path}: key {exc} is missing") from exc
    except (TypeError, ValueError, ZeroDivisionError) as exc:
        raise UsageError(f"--config {path}: {exc}") from exc


def _config(said: dict[str, Any]) -> ModelConfig:
    hidden = int(said.get("hidden_size") or said["n_embd"])
    layers = int(said.get("num_hidden_layers") or said["n_layer"])
    heads = int(said.get("num_attention_heads") or said["n_head"])
    vocabulary = int(said["vocab_size"])
    head_dim = int(said.get("head_dim") or hidden // heads)
    key_heads = int(said.get("num_key_value_heads") or heads)
    inner = int(said.get("intermediate_size") or said.get("n_inner") or 4 * hidden)
    gated = "n_embd" not in said  # GPT-2's MLP has two matrices, those since Llama three
    attention = 2 * hidden * heads * head_dim + 2 * hidden * key_heads * head_dim
    norms = 2 * hidden
    embedding = vocabulary * hidden
    tied = bool(said.get("tie_word_embeddings", not gated))
    outside = embedding * (1 if tied else 2) + hidden
    experts = (
        said.get("num_local_experts") or said.get("num_experts") or said.get("n_routed_experts")
    )
    active: float | None = None
    if not experts:
        parameters = outside + layers * (attention + norms + (3 if gated else 2) * hidden * inner)
    else:
        experts, top_k = int(experts), int(said["num_experts_per_tok"])
        one = 3 * hidden * int(said.get("moe_intermediate_size") or inner)
        shared = one * int(said.get("n_shared_experts") or 0)
        dense = outside + layers * (attention + norms)
        router = layers * hidden * experts
        parameters = dense + router + layers * (shared + experts * one)
        active = flops.moe_active_parameters(
            dense=dense,
            router=router,
            shared=layers * shared,
            routed=layers * experts * one,
            top_k=top_k,
            experts=experts,
        )
    context = said.get("max_position_embeddings") or said.get("n_positions")
    return ModelConfig(
        parameters=float(parameters),
        active_parameters=active,
        layers=layers,
        hidden=hidden,
        attention_width=heads * head_dim,
        sequence_tokens=int(context) if context else None,
        input_embedding_parameters=0.0 if tied else float(embedding),
    )

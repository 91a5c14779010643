"""Counting a model's FLOPs on shapes alone, against formulas done by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import flopwatch
from flopwatch import counting
from flopwatch_proto.errors import UsageError

LAYERS, WIDTH, HEADS, VOCABULARY, TOKENS = 3, 64, 4, 97, 128


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point the SDK at a socket that nobody made."""
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(tmp_path / "absent.sock"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, HEADS, width // HEADS).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        down: torch.Tensor = self.down(nn.functional.gelu(self.up(x)))
        return x + down


class Transformer(nn.Module):
    """A decoder with a looked-up embedding and an output layer of its own."""

    positions: torch.Tensor

    def __init__(self, *, config: bool = True, tied: bool = False) -> None:
        super().__init__()
        if config:
            self.config = SimpleNamespace(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("positions", torch.zeros(TOKENS, WIDTH))
        self.scale = torch.ones(())  # a plain tensor, not registered
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embedding(ids) * self.scale + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x)}


N = LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH
FULL = 6 * N + 12 * LAYERS * WIDTH * TOKENS
HALF = 6 * N + 6 * LAYERS * WIDTH * TOKENS


def test_a_transformer_of_known_shape_is_counted_causal_half_and_equals_the_formula() -> None:
    with flopwatch.auto(Transformer(), seq_len=TOKENS, job="toy") as meter:
        assert meter.flops_per_token == pytest.approx(HALF)
        assert meter.convention == "causal_half"
        meter.step(tokens=TOKENS)
        assert meter.model_flops_total == pytest.approx(HALF * TOKENS)
        assert meter.labels()["dtype"] == "fp32"


def test_without_a_known_shape_the_count_stays_full_and_says_so() -> None:
    with flopwatch.auto(Transformer(config=False), seq_len=TOKENS) as meter:
        assert meter.flops_per_token == pytest.approx(FULL)
        assert meter.convention == "full"


def test_an_encoder_attends_both_ways() -> None:
    with flopwatch.auto(Transformer(), seq_len=TOKENS, causal=False) as meter:
        assert meter.flops_per_token == pytest.approx(FULL)
        assert meter.convention == "full"


def test_a_tied_output_layer_counts_and_a_looked_up_embedding_does_not() -> None:
    assert counting.multiplied_parameters(Transformer()) == N
    assert counting.multiplied_parameters(Transformer(tied=True)) == N


def test_frozen_weights_cost_no_weight_gradients() -> None:
    model = Transformer()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embedding" in name)
    found = counting.per_token(model, seq_len=TOKENS, causal=False)
    assert found.flops == pytest.approx(4 * N + 12 * LAYERS * WIDTH * TOKENS)


def test_recompute_is_not_model_work() -> None:
    class Recomputing(Transformer):
        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            from torch.utils.checkpoint import checkpoint

            x = self.embedding(ids)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return {"logits": self.head(x)}

    assert counting.per_token(Recomputing(), seq_len=TOKENS).flops == pytest.approx(HALF)


def test_a_count_below_two_n_is_refused_unless_allowed() -> None:
    class Sparse(Transformer):
        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(self.blocks[0](self.embedding(ids)))}

    with pytest.raises(UsageError, match="active_params"):
        flopwatch.auto(Sparse(), seq_len=TOKENS)
    active = 12 * WIDTH**2 + VOCABULARY * WIDTH
    flopwatch.auto(Sparse(), seq_len=TOKENS, active_params=active).close()
    flopwatch.auto(Sparse(), seq_len=TOKENS, allow_low_count=True).close()


def test_any_module_is_counted_by_its_example_inputs() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    with flopwatch.auto(model, example_inputs=torch.zeros(16, 32)) as meter:
        forward = 2 * 16 * (32 * 64 + 64 * 8)
        weights, inputs = forward, 2 * 16 * 64 * 8  # the first layer's input needs no gradient
        assert meter.flops_per_step == pytest.approx(forward + weights + inputs)
        meter.step()
        assert meter.model_flops_total == pytest.approx(forward + weights + inputs)


def test_the_weights_are_neither_copied_nor_touched() -> None:
    model = Transformer()
    before = {name: (p.data_ptr(), p.grad) for name, p in model.named_parameters()}
    shadow = counting.to_meta(model)
    assert all(p.device.type == "meta" for p in shadow.parameters())
    flopwatch.auto(model, seq_len=TOKENS).close()
    assert before == {name: (p.data_ptr(), p.grad) for name, p in model.named_parameters()}


def test_a_model_that_needs_data_is_refused_with_the_way_out() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(UsageError, match="flops_per_step"):
        flopwatch.auto(Choosing(), example_inputs=torch.ones(2, 4))


def test_a_model_with_nothing_to_count_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing"):
        flopwatch.auto(nn.ReLU(), example_inputs=torch.ones(2, 4))


class Config(SimpleNamespace):
    """A config as transformers has them."""


def test_a_sliding_window_and_packed_documents_leave_less_attention() -> None:
    model = Transformer()
    full = counting.per_token(model, seq_len=TOKENS).by_convention["full"]
    assert full == pytest.approx(FULL)
    model.config.sliding_window = TOKENS // 4
    window = TOKENS // 4
    keys = window - window**2 / (2 * TOKENS)
    found = counting.per_token(model, seq_len=TOKENS)
    assert found.flops == pytest.approx(6 * N + 12 * LAYERS * WIDTH * keys)
    assert found.by_convention["full"] == pytest.approx(6 * N + 12 * LAYERS * WIDTH * window)
    model.config.layer_types = ["sliding_attention"] + ["full_attention"] * (LAYERS - 1)
    one = counting.per_token(model, seq_len=TOKENS).flops
    assert one == pytest.approx(6 * N + 12 * WIDTH * keys + 6 * (LAYERS - 1) * WIDTH * TOKENS)
    del model.config.sliding_window
    documents = (TOKENS // 2, TOKENS // 4, TOKENS // 4)
    mean = sum(d * d for d in documents) / TOKENS
    packed = counting.per_token(model, seq_len=TOKENS, document_tokens=documents)
    assert packed.flops == pytest.approx(6 * N + 6 * LAYERS * WIDTH * mean)


def test_grouped_queries_cost_as_much_attention_as_heads() -> None:
    heads, groups, dimension = 4, 2, 16

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config(num_hidden_layers=1, hidden_size=64, num_attention_heads=heads)
            self.embedding = nn.Embedding(50, 64)
            self.q, self.o = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.kv = nn.Linear(64, 2 * groups * dimension, bias=False)

        def forward(self, ids: torch.Tensor) -> Any:
            x = self.embedding(ids)
            shape = (*x.shape[:2], -1, dimension)
            k, v = self.kv(x).chunk(2, dim=-1)
            q, k, v = (y.view(shape).transpose(1, 2) for y in (self.q(x), k, v))
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return self.o(y.transpose(1, 2).flatten(2))

    parameters = 64 * 64 * 2 + 64 * 2 * groups * dimension
    found = counting.per_token(Grouped(), seq_len=TOKENS)
    assert found.convention == "causal_half"
    assert found.flops == pytest.approx(6 * parameters + 6 * heads * dimension * TOKENS)


def test_a_mixture_of_experts_costs_what_a_token_passes_through() -> None:
    experts, top_k = 8, 2

    class Mixture(Transformer):
        """Data chooses: it could not run on shapes alone."""

        def __init__(self) -> None:
            super().__init__()
            self.config.num_local_experts, self.config.num_experts_per_tok = experts, top_k
            self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(experts))

        def forward(self, ids: torch.Tensor) -> Any:
            raise RuntimeError("routing needs data")

    one = WIDTH * WIDTH + WIDTH
    found = counting.per_token(Mixture(), seq_len=TOKENS)
    assert found.convention == "causal_half"
    assert found.flops == pytest.approx(HALF + 6 * top_k * one)


def test_the_jobs_own_convention_is_kept_as_a_factor() -> None:
    with flopwatch.auto(Transformer(), seq_len=TOKENS, reports="full") as meter:
        assert meter.reported_factor == pytest.approx(FULL / HALF)
        assert meter.convention == "causal_half"

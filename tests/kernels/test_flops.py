"""The FLOP formulas, against figures that others have published."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwatch_kernels import peaks
from flopwatch_kernels.flops import (
    CONVENTIONS,
    Convention,
    ModelShape,
    convention_ratio,
    gemm_flops,
    hardware_flops_per_token,
    inference_flops_per_token,
    keys_per_token,
    mfu,
    moe_active_parameters,
    train_flops_per_token,
)

VOCABULARY = 128_256


def llama3(parameters: float, layers: int, hidden: int, sequence: int = 8192) -> ModelShape:
    return ModelShape(
        parameters=parameters,
        layers=layers,
        attention_width=hidden,
        sequence_tokens=sequence,
        input_embedding_parameters=VOCABULARY * hidden,
    )


LLAMA3_8B = llama3(8_030_261_248, 32, 4096)
LLAMA3_70B = llama3(70_553_706_496, 80, 8192)
LLAMA3_405B = llama3(405_853_388_800, 126, 16384)
PALM_540B = ModelShape(
    parameters=540.35e9, layers=118, attention_width=48 * 256, sequence_tokens=2048
)
GPT3_175B = ModelShape(parameters=175e9, layers=96, attention_width=12288, sequence_tokens=2048)

shapes = st.builds(
    ModelShape,
    parameters=st.floats(1e6, 1e13),
    layers=st.integers(1, 200),
    attention_width=st.integers(64, 32768),
    sequence_tokens=st.integers(1, 1 << 20),
    window_tokens=st.none() | st.integers(1, 1 << 20),
    document_tokens=st.none() | st.lists(st.integers(1, 1 << 17), min_size=1, max_size=9),
)


def test_palm_540b_reaches_the_published_46_percent() -> None:
    measured = mfu(
        tokens_per_second=238.3e3,
        flops_per_token=train_flops_per_token(PALM_540B, "full"),
        peak_flops=275e12,
        cards=6144,
    )
    assert measured == pytest.approx(0.4623, abs=5e-5)


def test_mlperf_gpt3_is_82_8_percent_of_bf16_and_41_4_percent_of_fp8() -> None:
    per_token = train_flops_per_token(GPT3_175B, "causal_half")
    tokens_per_second = 2048 * 2048 / 10.638
    assert tokens_per_second * per_token / 512 == pytest.approx(819.7e12, rel=1e-4)
    shares = []
    for dtype in ("bf16", "fp8"):
        peak = peaks.peak_flops("NVIDIA H100 80GB HBM3", dtype)
        assert peak is not None
        shares.append(
            mfu(
                tokens_per_second=tokens_per_second,
                flops_per_token=per_token,
                peak_flops=peak,
                cards=512,
            )
        )
    # The published 82.8 and 41.4 divide by the rounded 990 and 1980 TFLOP/s.
    assert shares == [pytest.approx(0.828, abs=1e-3), pytest.approx(0.414, abs=5e-4)]


@pytest.mark.parametrize(
    ("model", "torchtitan", "llm_foundry", "params_only", "full_recompute"),
    [
        (LLAMA3_8B, 1.125, 1.186, 0.936, 1.50),
        (LLAMA3_70B, 1.072, 1.086, 0.942, 1.43),
        (LLAMA3_405B, 1.040, 1.045, 0.965, 1.39),
    ],
    ids=["8B", "70B", "405B"],
)
def test_the_same_llama_run_reads_differently_by_every_convention(
    model: ModelShape,
    torchtitan: float,
    llm_foundry: float,
    params_only: float,
    full_recompute: float,
) -> None:
    default = train_flops_per_token(model)
    all_counted = replace(model, input_embedding_parameters=0)
    assert train_flops_per_token(model, "full") / default == pytest.approx(torchtitan, abs=1e-3)
    assert train_flops_per_token(all_counted, "full") / default == pytest.approx(
        llm_foundry, abs=1e-3
    )
    assert train_flops_per_token(model, "params_only") / default == pytest.approx(
        params_only, abs=1e-3
    )
    assert hardware_flops_per_token(model, "full") / default == pytest.approx(
        full_recompute, abs=6e-3
    )


def test_at_128k_tokens_the_conventions_differ_fivefold() -> None:
    long = replace(LLAMA3_8B, sequence_tokens=128 * 1024)
    assert convention_ratio(long, of="causal_half", to="full") == pytest.approx(1.70, abs=5e-3)
    assert convention_ratio(long, of="causal_half", to="params_only") == pytest.approx(
        0.33, abs=5e-3
    )


def test_the_plain_formulas_are_6n_with_12lhqt_and_6lhqt() -> None:
    n, lhqt = 540.35e9, 118 * 48 * 256 * 2048
    assert train_flops_per_token(PALM_540B, "full") == pytest.approx(6 * n + 12 * lhqt)
    assert train_flops_per_token(PALM_540B, "causal_half") == pytest.approx(6 * n + 6 * lhqt)
    assert train_flops_per_token(PALM_540B, "params_only") == pytest.approx(6 * n)
    assert hardware_flops_per_token(PALM_540B, "full") == pytest.approx(8 * n + 16 * lhqt)


def test_flash_attention_adds_half_a_forward_pass_of_attention() -> None:
    forward_of_attention = 4 * 118 * 48 * 256 * 2048
    extra = hardware_flops_per_token(
        PALM_540B, "full", recompute="flash_attention"
    ) - train_flops_per_token(PALM_540B, "full")
    assert extra == pytest.approx(forward_of_attention / 2, rel=1e-9)
    once = hardware_flops_per_token(PALM_540B, "full", recompute="attention")
    assert once - train_flops_per_token(PALM_540B, "full") == pytest.approx(
        forward_of_attention, rel=1e-9
    )
    assert hardware_flops_per_token(PALM_540B, recompute="none") == train_flops_per_token(PALM_540B)


def test_the_causal_mean_is_what_counting_every_token_gives() -> None:
    for tokens, window in ((1000, 1000), (1000, 64), (4096, 4096), (4096, 4000)):
        counted = sum(min(i + 0.5, window) for i in range(tokens)) / tokens
        shape = replace(GPT3_175B, sequence_tokens=tokens, window_tokens=window)
        assert keys_per_token(shape, "causal_half") == pytest.approx(counted, rel=1e-3)


def test_a_sliding_window_replaces_the_context() -> None:
    shape = replace(GPT3_175B, window_tokens=512)
    assert keys_per_token(shape, "full") == 512
    wide = replace(GPT3_175B, window_tokens=1 << 20)
    assert keys_per_token(wide, "full") == 2048
    assert keys_per_token(wide, "causal_half") == 1024


def test_packed_documents_attend_only_inside_themselves() -> None:
    packed = replace(GPT3_175B, document_tokens=(1024, 512, 512))
    squares = (1024**2 + 2 * 512**2) / 2048
    assert keys_per_token(packed, "full") == pytest.approx(squares)
    assert keys_per_token(packed, "causal_half") == pytest.approx(squares / 2)


def test_mixture_of_experts_counts_the_experts_a_token_takes() -> None:
    active = moe_active_parameters(
        dense=10e9, router=1e6, shared=2e9, routed=64e9, top_k=2, experts=64
    )
    assert active == pytest.approx(10e9 + 1e6 + 2e9 + 2e9)
    for top_k in (0, 65):
        with pytest.raises(ValueError, match="top_k"):
            moe_active_parameters(dense=1, router=0, shared=0, routed=1, top_k=top_k, experts=64)


def test_generating_a_token_costs_2n_and_attention_over_the_cache() -> None:
    assert inference_flops_per_token(GPT3_175B) == pytest.approx(2 * 175e9)
    with_cache = inference_flops_per_token(GPT3_175B, context_tokens=2048)
    assert with_cache == pytest.approx(2 * 175e9 + 4 * 96 * 12288 * 2048)


def test_a_gemm_counts_a_multiply_add_as_two() -> None:
    assert gemm_flops(8192, 8192, 8192) == 1_099_511_627_776
    assert gemm_flops(1, 1, 1) == 2


@given(shape=shapes)
def test_the_conventions_keep_their_order(shape: ModelShape) -> None:
    params, causal, full = (
        train_flops_per_token(shape, c) for c in ("params_only", "causal_half", "full")
    )
    assert params <= causal <= full
    assert hardware_flops_per_token(shape) == pytest.approx(causal * 4 / 3)


@given(shape=shapes, of=st.sampled_from(CONVENTIONS), to=st.sampled_from(CONVENTIONS))
def test_converting_there_and_back_changes_nothing(
    shape: ModelShape, of: Convention, to: Convention
) -> None:
    there = convention_ratio(shape, of=of, to=to)
    back = convention_ratio(shape, of=to, to=of)
    assert math.isclose(there * back, 1.0, rel_tol=1e-12)


def test_mfu_without_a_peak_is_refused() -> None:
    with pytest.raises(ValueError, match="peak_flops and cards"):
        mfu(tokens_per_second=1, flops_per_token=1, peak_flops=0, cards=1)

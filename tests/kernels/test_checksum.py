"""Products that must be exact, in real torch on this processor, and one wrong element in them."""

import pytest
import torch

from flopwatch_kernels import checksum
from flopwatch_kernels.checksum import INNER, Wrong, signs, verdict
from flopwatch_kernels.gemm_operands import product_call

EDGE = 160  # more than a tile, and no multiple of one


def product(dtype: str, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a_mk, b_kn = signs((EDGE, EDGE, INNER[dtype]), dtype, "cpu", seed)
    return a_mk, b_kn, product_call(a_mk, b_kn, dtype)()


@pytest.mark.parametrize("dtype", INNER)
def test_a_product_of_signs_is_exact_in_every_dtype(dtype: str) -> None:
    a_mk, b_kn, c_mn = product(dtype)
    assert set(a_mk.float().flatten().tolist()) == {-1.0, 1.0}
    by_hand = a_mk.float().to(torch.int64) @ b_kn.float().to(torch.int64)
    assert torch.equal(c_mn.to(torch.int64), by_hand)
    assert verdict(a_mk, b_kn, c_mn).mismatches == 0


@pytest.mark.parametrize("dtype", INNER)
def test_one_wrong_element_is_found_with_its_tile_and_both_values(dtype: str) -> None:
    a_mk, b_kn, c_mn = product(dtype)
    right = int(c_mn[150, 7])
    c_mn[150, 7] = right + 2
    seen = verdict(a_mk, b_kn, c_mn)
    assert seen.mismatches == 1
    assert seen.wrong == (Wrong(row=150, column=7, found=right + 2, expected=right),)
    assert f"element (150, 7) in tile (1, 0) is {right + 2} and not {right}" in seen.wrong[0].text


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_single_flipped_bit_of_any_weight_is_found(dtype: str) -> None:
    # A low one leaves a fraction of the even integer, the highest of the exponent far more.
    a_mk, b_kn, c_mn = product(dtype)
    row, column = c_mn.nonzero()[0].tolist()
    bits = c_mn.view(torch.int16)
    held = int(bits[row, column])
    for bit in range(16):
        bits[row, column] = held ^ (1 << bit if bit < 15 else -(1 << 15))
        assert [(w.row, w.column) for w in verdict(a_mk, b_kn, c_mn).wrong] == [(row, column)]
    bits[row, column] = held
    assert verdict(a_mk, b_kn, c_mn).mismatches == 0


def test_two_errors_that_cancel_in_their_row_break_their_columns() -> None:
    a_mk, b_kn, c_mn = product("int8")
    c_mn[5, 1] += 8
    c_mn[5, 2] -= 8
    seen = verdict(a_mk, b_kn, c_mn)
    assert (seen.rows, seen.columns, seen.mismatches) == (0, 2, 2)
    assert seen.wrong == ()  # no row sum tells in which row


def test_a_nan_and_an_infinity_are_wrong_values_and_no_trouble() -> None:
    a_mk, b_kn, c_mn = product("bf16")
    c_mn[1, 1], c_mn[2, 2] = torch.nan, torch.inf
    seen = verdict(a_mk, b_kn, c_mn)
    assert seen.mismatches == 2
    assert [(wrong.row, wrong.column) for wrong in seen.wrong] == [(1, 1), (2, 2)]


def test_a_whole_wrong_matrix_lists_a_few_elements_and_counts_the_rest() -> None:
    a_mk, b_kn, c_mn = product("int8")
    c_mn += 2
    seen = verdict(a_mk, b_kn, c_mn)
    assert seen.mismatches == EDGE
    assert len(seen.wrong) == 8


def test_the_lengths_leave_every_sum_exact() -> None:
    # Even integers: fp16 holds them up to 4096, bf16 up to 512; a sum of K signs has a standard
    # deviation of sqrt(K), and six of those are reached once in a billion elements.
    for dtype, exact in (("fp16", 4096), ("bf16", 512), ("fp8", 512)):
        assert INNER[dtype] % 2 == 0
        assert 6 * INNER[dtype] ** 0.5 < exact
    assert checksum.TILE <= EDGE


def test_another_seed_draws_other_signs() -> None:
    first, second = (signs((8, 8, 64), "int8", "cpu", seed)[0] for seed in (1, 2))
    assert not torch.equal(first, second)

"""What the tensor kernels are given, against an independent reading of the formats."""

import struct

import numpy as np
import pytest
import torch

from flopwatch_kernels.cuda.operands import accumulator, encoded, integers, normals, product
from flopwatch_kernels.cuda.table import ELEMENT_BYTES, TENSOR_DTYPES, TensorKernel, tensor_kernel

FORMATS = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "fp64": torch.float64,
}


def kernel(dtype: str) -> TensorKernel:
    found = tensor_kernel(dtype, (9, 0))
    assert found is not None
    return found


def decoded(data: bytes, dtype: str) -> np.ndarray:
    """The numbers as torch reads them."""
    raw = torch.frombuffer(bytearray(data), dtype=FORMATS[dtype])
    return raw.to(torch.float64).numpy()


@pytest.mark.parametrize("dtype", TENSOR_DTYPES)
def test_small_integers_are_exact_in_every_format(dtype: str) -> None:
    for matrix in integers(kernel(dtype)):
        data = encoded(matrix, dtype)
        assert len(data) == matrix.size * ELEMENT_BYTES[dtype]
        assert (decoded(data, dtype) == matrix.ravel()).all()


@pytest.mark.parametrize("dtype", TENSOR_DTYPES)
def test_normal_numbers_are_near_what_they_were_and_finite(dtype: str) -> None:
    a_mk, b_nk = normals(kernel(dtype), dtype)
    for matrix in (a_mk, b_nk):
        seen = decoded(encoded(matrix, dtype), dtype)
        assert np.isfinite(seen).all()
        step = {"int8": 0.5, "fp8": 0.07}.get(dtype, 0.01)
        assert np.abs(seen - matrix.ravel()).max() <= step * max(1.0, np.abs(matrix).max())
    assert (a_mk != 0).all()


def test_fp8_is_rounded_as_torch_rounds_but_for_ties() -> None:
    numbers = np.random.default_rng(1).standard_normal(4096)
    wanted = torch.from_numpy(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert encoded(numbers, "fp8") == bytes(wanted)


def test_tf32_has_no_bits_that_the_tensor_cores_do_not_read() -> None:
    for word in struct.unpack("<64I", encoded(np.linspace(-3, 3, 64), "tf32")):
        assert word & 0x1FFF == 0


@pytest.mark.parametrize("dtype", TENSOR_DTYPES)
def test_the_product_is_exact_and_in_the_accumulators_type(dtype: str) -> None:
    a_mk, b_nk = integers(kernel(dtype))
    found = product((a_mk, b_nk), 3, dtype)
    assert found.dtype == accumulator(dtype)
    by_hand = [
        [3 * sum(int(x) * int(y) for x, y in zip(a, b, strict=True)) for b in b_nk[:5]]
        for a in a_mk[:5]
    ]
    assert found[:5, :5].tolist() == by_hand
    # fp8 products are summed with some 13 bits behind the largest: stay far below.
    assert np.abs(found).max() < 1 << 11

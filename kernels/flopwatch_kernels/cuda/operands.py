"""Operands of the tensor kernels, as bytes, and what they multiply to.

For a check: integers of -2..2, so that every product and partial sum is a small integer and exact
in every format, also where the tensor cores sum fp8 products with few bits. For a timing: normally
distributed numbers, because zeros and ones take less power and so a higher clock than real data.
"""

from typing import TYPE_CHECKING, Any, Final

from flopwatch_kernels.cuda.table import TensorKernel

if TYPE_CHECKING:
    import numpy as np

_SEED: Final = 20_26
_INTEGER_MAX: Final = 2
_INT8_SCALE: Final = 40.0

Matrices = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
"""a_MK and b_NK as numbers."""


def integers(kernel: TensorKernel) -> Matrices:
    """Small random integers as a_MK and b_NK."""
    import numpy as np

    random = np.random.default_rng(_SEED)
    return (
        random.integers(-_INTEGER_MAX, _INTEGER_MAX + 1, (kernel.rows, kernel.k)).astype(float),
        random.integers(-_INTEGER_MAX, _INTEGER_MAX + 1, (kernel.columns, kernel.k)).astype(float),
    )


def normals(kernel: TensorKernel, dtype: str) -> Matrices:
    """Normally distributed numbers as a_MK and b_NK, in int8's range for int8."""
    import numpy as np

    random = np.random.default_rng(_SEED)
    scale = _INT8_SCALE if dtype == "int8" else 1.0
    return (
        scale * random.standard_normal((kernel.rows, kernel.k)),
        scale * random.standard_normal((kernel.columns, kernel.k)),
    )


def product(matrices: Matrices, iterations: int, dtype: str) -> "np.ndarray[Any, Any]":
    """iterations x A B^T in the accumulator's type; exact for `integers` and few iterations."""
    a_mk, b_nk = matrices
    found: np.ndarray[Any, Any] = (iterations * (a_mk @ b_nk.T)).astype(accumulator(dtype))
    return found


def accumulator(dtype: str) -> str:
    """numpy's name of the type that this dtype's products are summed in."""
    return {"int8": "int32", "fp64": "float64"}.get(dtype, "float32")


def encoded(numbers: "np.ndarray[Any, Any]", dtype: str) -> bytes:
    """The numbers in a format of the card, row by row; what is not exact is rounded."""
    import numpy as np

    if dtype == "int8":
        return bytes(np.clip(np.rint(numbers), -127, 127).astype(np.int8))
    if dtype == "fp8":
        finite = _e4m3()
        midpoints = (finite[1:] + finite[:-1]) / 2
        codes = np.searchsorted(midpoints, np.abs(numbers)).astype(np.uint8)
        return bytes(codes | np.where(numbers < 0, 0x80, 0).astype(np.uint8))
    if dtype == "bf16":
        bits = numbers.astype(np.float32).view(np.uint32)
        return bytes((bits >> 16).astype(np.uint16))
    if dtype == "tf32":
        bits = numbers.astype(np.float32).view(np.uint32)
        return bytes(bits & np.uint32(0xFFFFE000))
    return bytes(numbers.astype({"fp16": np.float16, "fp64": np.float64}[dtype]))


def _e4m3() -> "np.ndarray[Any, Any]":
    """The 127 finite values of e4m3 that are not negative, in the order of their codes.

    Source: OCP 8-bit Floating Point Specification, bias 7, no infinities, code 0x7f is not a number.
    """
    import numpy as np

    codes = np.arange(127)
    exponents, mantissas = codes >> 3, codes & 7
    found: np.ndarray[Any, Any] = np.where(
        exponents == 0, mantissas / 8 * 2.0**-6, (1 + mantissas / 8) * 2.0 ** (exponents - 7.0)
    )
    return found

"""The random matrices of the GEMM probe and the library call that multiplies them.

Inputs are normal random numbers, never zeros: a multiplier that sees zeros draws less power and
reads 13-15 % too fast. Source: "Strangely, matrix multiplications on GPUs run faster when given
predictable data" (thonking.ai); section 5.1 of this project's measurement science.

The output is filled with random numbers before each timed iteration and then overwritten. fp8
operands carry unit scales and write bf16; int8 accumulates in int32. Shape legend: a_MK, b_KN, c_MN.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flopwatch_kernels.child import is_out_of_memory, out_of_memory
from flopwatch_kernels.errors import ProbeError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int, int]

_BYTES_PER_ELEMENT = {"fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
_BYTES_PER_OUTPUT = {**_BYTES_PER_ELEMENT, "fp8": 2, "int8": 4}
COLUMN_MAJOR = ("fp8", "int8")
"""Dtypes whose second operand must be column-major, as cuBLASLt wants it."""

# randn makes fp32 first; the copy is freed before the next operand is made.
_BYTES_PER_RANDOM = 4


def operand_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of the three matrices, and of the largest fp32 draft while they are made."""
    m, n, k = shape
    held = (m * k + k * n) * _BYTES_PER_ELEMENT[dtype] + m * n * _BYTES_PER_OUTPUT[dtype]
    return held + max(m * k, k * n, m * n) * _BYTES_PER_RANDOM


class Multiplication:
    """A call that computes C[m,n] = A[m,k] @ B[k,n] once. Attributes: product: C of the last call."""

    def __init__(self, call: "Callable[[], torch.Tensor]") -> None:
        self._call = call
        self.product = call()

    def __call__(self) -> None:
        """Multiply."""
        self.product = self._call()

    def refresh(self) -> None:
        """Fill the output with random numbers; integers, which are made anew, are left."""
        if self.product.dtype.is_floating_point:
            self.product.normal_()


def multiplication(shape: Shape, dtype: str, device: str) -> Multiplication:
    """Fresh random operands and the call that multiplies them, made once to see that it can.

    Args:
        shape: (m, n, k).
        dtype: As in `flopwatch_kernels.probe.PROBE_DTYPES`.
        device: "cpu" or "cuda", as torch names it.

    Raises:
        ProbeError: This torch has no kernel for the dtype on the device, or memory ran out.
    """
    with explained(shape, dtype, device):
        m, n, k = shape
        a_mk = _random((m, k), dtype, device)
        b_kn = (
            _random((n, k), dtype, device).t()
            if dtype in COLUMN_MAJOR
            else _random((k, n), dtype, device)
        )
        return Multiplication(product_call(a_mk, b_kn, dtype))


def product_call(
    a_mk: "torch.Tensor", b_kn: "torch.Tensor", dtype: str
) -> "Callable[[], torch.Tensor]":
    """The library's call for A @ B; B of a dtype in `COLUMN_MAJOR` must be so."""
    import torch

    if dtype == "int8":
        return lambda: torch._int_mm(a_mk, b_kn)
    if dtype == "fp8":
        one = torch.ones((), device=a_mk.device)
        return lambda: torch._scaled_mm(
            a_mk, b_kn, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    size = (a_mk.shape[0], b_kn.shape[1])
    c_mn = torch.randn(size, device=a_mk.device).to(a_mk.dtype)
    return lambda: torch.mm(a_mk, b_kn, out=c_mn)


def torch_format(dtype: str) -> "torch.dtype":
    """The element type of torch for a dtype's operands."""
    import torch

    formats = {
        "fp64": torch.float64,
        "fp32": torch.float32,
        "tf32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp8": torch.float8_e4m3fn,
        "int8": torch.int8,
    }
    return formats[dtype]


@contextmanager
def explained(shape: Shape, dtype: str, device: str) -> Iterator[None]:
    """Turn what torch raises inside into a ProbeError that says what to change."""
    import torch

    try:
        yield
        if device == "cuda":
            torch.cuda.synchronize()
    except MemoryError as exc:
        raise out_of_memory(_named(shape)) from exc
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as exc:
        if is_out_of_memory(exc):
            raise out_of_memory(_named(shape)) from exc
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ProbeError(
            f"torch {torch.__version__} cannot multiply {dtype} on this {device} device"
            f" ({reason}): pass another --dtype, e.g. fp32"
        ) from exc


def _named(shape: Shape) -> str:
    m, n, k = shape
    return f"a {m}x{n}x{k} multiplication"


def _random(size: tuple[int, int], dtype: str, device: str) -> "torch.Tensor":
    import torch

    if dtype == "int8":
        return torch.randint(-127, 128, size, dtype=torch.int8, device=device)
    return torch.randn(size, device=device).to(torch_format(dtype))

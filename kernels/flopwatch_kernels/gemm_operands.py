"""The random matrices of the GEMM probe and the library call that multiplies them.

Inputs are normal random numbers, never zeros: a multiplier that sees zeros draws less power and
reads 13-15 % too fast. Source: "Strangely, matrix multiplications on GPUs run faster when given
predictable data" (thonking.ai); section 5.1 of this project's measurement science.

The output is filled with random numbers too and then overwritten. fp8 operands carry unit scales
and write bf16; int8 accumulates in int32. Shape legend: a_MK, b_KN, c_MN.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from flopwatch_kernels.errors import ProbeError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int, int]

_BYTES_PER_ELEMENT = {"fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
_BYTES_PER_OUTPUT = {**_BYTES_PER_ELEMENT, "fp8": 2, "int8": 4}
# randn makes fp32 first; the copy is freed before the next operand is made.
_BYTES_PER_RANDOM = 4


def operand_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of the three matrices, and of the largest fp32 draft while they are made."""
    m, n, k = shape
    held = (m * k + k * n) * _BYTES_PER_ELEMENT[dtype] + m * n * _BYTES_PER_OUTPUT[dtype]
    return held + max(m * k, k * n, m * n) * _BYTES_PER_RANDOM


def multiplication(shape: Shape, dtype: str, device: str) -> Callable[[], object]:
    """A call that computes C[m,n] = A[m,k] @ B[k,n] once, on fresh random data.

    Args:
        shape: (m, n, k).
        dtype: As in `flopwatch_kernels.probe.PROBE_DTYPES`.
        device: "cpu" or "cuda", as torch names it.

    Raises:
        ProbeError: This torch has no kernel for the dtype on the device, or memory ran out.
    """
    import torch

    try:
        call = _multiplication(shape, dtype, device)
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    except MemoryError as exc:
        raise out_of_memory(shape) from exc
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as exc:
        if is_out_of_memory(exc):
            raise out_of_memory(shape) from exc
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ProbeError(
            f"torch {torch.__version__} cannot multiply {dtype} on this {device} device"
            f" ({reason}): pass another --dtype, e.g. fp32"
        ) from exc
    return call


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch means by `error` that an allocation failed."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def out_of_memory(shape: Shape) -> ProbeError:
    """The error for a matrix that does not fit under the probe's memory cap."""
    m, n, k = shape
    return ProbeError(
        f"no memory for a {m}x{n}x{k} multiplication under the probe's cap: raise"
        " memory_bytes_max or free memory on the device"
    )


def _multiplication(shape: Shape, dtype: str, device: str) -> Callable[[], object]:
    import torch

    m, n, k = shape
    if dtype == "int8":
        a_mk = _integers((m, k), device)
        b_kn = _integers((n, k), device).t()  # column-major, as cuBLASLt's int8 kernels want it
        return lambda: torch._int_mm(a_mk, b_kn)
    if dtype == "fp8":
        format_ = torch.float8_e4m3fn
        a_mk = _normal((m, k), format_, device)
        b_kn = _normal((n, k), format_, device).t()
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(
            a_mk, b_kn, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    formats = {
        "fp64": torch.float64,
        "fp32": torch.float32,
        "tf32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }
    a_mk = _normal((m, k), formats[dtype], device)
    b_kn = _normal((k, n), formats[dtype], device)
    c_mn = _normal((m, n), formats[dtype], device)
    return lambda: torch.mm(a_mk, b_kn, out=c_mn)


def _normal(size: tuple[int, int], format_: "torch.dtype", device: str) -> "torch.Tensor":
    import torch

    return torch.randn(size, device=device).to(format_)


def _integers(size: tuple[int, int], device: str) -> "torch.Tensor":
    import torch

    return torch.randint(-127, 128, size, dtype=torch.int8, device=device)

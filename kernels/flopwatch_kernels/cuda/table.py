"""Which kernel measures what on which card: pure.

| source | capability | compiled for | what |
|---|---|---|---|
| mma.cu | 8.0 and later | sm_XY | bf16, fp16, tf32, int8, fp64; fp8 on 8.9 and 12.x |
| wgmma.cu | 9.0 | sm_90a | bf16, fp16, tf32, fp8, int8 |
| fma.cu | 8.0 and later | sm_XY | fp32, fp64 on the vector pipes |
| memory.cu, empty.cu | 8.0 and later | sm_XY | bandwidth; launch |

The tensor peak of a B card (10.x, 11.x) is that of tcgen05, which is not covered: what mma.sync
reaches there is measured and never held against the datasheet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final

Capability = tuple[int, int]
"""Compute capability: (major, minor)."""

CAPABILITY_MIN: Final[Capability] = (8, 0)
TENSOR_DTYPES: Final = ("bf16", "fp16", "tf32", "fp8", "int8", "fp64")
FMA_DTYPES: Final = ("fp32", "fp64")
SOURCES: Final = ("mma.cu", "wgmma.cu", "fma.cu", "memory.cu", "empty.cu")
ONE_BY_ONE: Final = ("wgmma.cu",)
"""Sources of which a probe compiles the one kernel that it needs."""

ELEMENT_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {"bf16": 2, "fp16": 2, "tf32": 4, "fp8": 1, "int8": 1, "fp64": 8, "fp32": 4}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorKernel:
    """A kernel whose blocks each compute D[rows, columns] += A[rows, k] B[columns, k]^T, over and
    over, on registers.

    Attributes:
        source: File beside this one.
        symbol: Name of the kernel.
        rows, columns, k: Of what one block multiplies per iteration.
        threads: Per block.
        instruction: How the machine's own listing names the instruction of the loop.
        instructions: How many of it one warp (wgmma: warpgroup) executes per iteration.
        is_peak: Whether the datasheet's peak is that of this instruction.
    """

    source: str
    symbol: str
    rows: int
    columns: int
    k: int
    threads: int
    instruction: str
    instructions: int
    is_peak: bool

    @property
    def flops(self) -> int:
        """FLOP of one block's iteration: 2 per multiply-add."""
        return 2 * self.rows * self.columns * self.k


_MMA: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bf16": "HMMA.16816.F32.BF16",
        "fp16": "HMMA.16816.F32",
        "tf32": "HMMA.1688.F32.TF32",
        "fp8": "QMMA.16832.F32.E4M3.E4M3",
        "int8": "IMMA.16832.S8.S8",
    }
)
_WGMMA: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bf16": "HGMMA.64x256x16.F32.BF16",
        "fp16": "HGMMA.64x256x16.F32",
        "tf32": "HGMMA.64x256x8.F32.TF32",
        "fp8": "QGMMA.64x256x32.F32.E4M3.E4M3",
        "int8": "IGMMA.64x256x32.S8.S8",
    }
)


def tensor_kernel(dtype: str, capability: Capability) -> TensorKernel | None:
    """The kernel for this dtype on a card of this capability; None where there is none."""
    if capability < CAPABILITY_MIN:
        return None
    if dtype == "fp64":
        return _fp64(capability)
    if capability == (9, 0) and dtype in _WGMMA:
        return TensorKernel(
            source="wgmma.cu",
            symbol=f"tensor_{dtype}",
            rows=64,
            columns=256,
            k=128 // ELEMENT_BYTES[dtype],
            threads=128,
            instruction=_WGMMA[dtype],
            instructions=4,
            is_peak=True,
        )
    if dtype not in _MMA or (dtype == "fp8" and not _has_fp8_mma(capability)):
        return None
    return TensorKernel(
        source="mma.cu",
        symbol=f"tensor_{dtype}",
        rows=32,
        columns=128,
        k=32 // ELEMENT_BYTES[dtype],
        threads=128,
        instruction=_MMA[dtype],
        instructions=8,
        is_peak=capability[0] not in (10, 11),
    )


def _fp64(capability: Capability) -> TensorKernel:
    """mma.cu's fp64: 16x8x16 from capability 9.0 on, which the B cards split again."""
    large = capability >= (9, 0)
    split = capability >= (10, 0)
    return TensorKernel(
        source="mma.cu",
        symbol="tensor_fp64",
        rows=32,
        columns=64,
        k=16 if large else 4,
        threads=128,
        instruction="DMMA.16x8x16"
        if large and not split
        else "DMMA.8x8x4"
        if split
        else "DMMA.884",
        instructions=4 if large and not split else 32 if split else 8,
        is_peak=True,
    )


def _has_fp8_mma(capability: Capability) -> bool:
    """Elsewhere mma.sync on fp8 becomes fp16 products, which measure something else."""
    return capability == (8, 9) or capability[0] >= 12


def architecture(source: str, capability: Capability) -> str:
    """What NVRTC compiles this source for on a card of this capability, e.g. "sm_90a"."""
    major, minor = capability
    return f"sm_{major}{minor}" + ("a" if source == "wgmma.cu" else "")


def source_text(source: str) -> str:
    """The CUDA C++ of one of `SOURCES`."""
    return resources.files("flopwatch_kernels.cuda").joinpath(source).read_text(encoding="utf-8")

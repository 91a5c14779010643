"""The child that screens for silent data corruption: products that must be right to the bit.

    python -m flopwatch_kernels.sdc SPEC     SPEC and the output: see `messages`

Two screens, in turn until enough was done (a sustained screen goes on while the device gets hot):

- `checksum`: products of -1 and +1, every row sum and column sum exact.
- a seeded product of normal random numbers, which toggles more bits: computed again and again, it
  must stay the same to the bit, and its hash be the one of other devices of the SKU (`goldens`).

A screen that finds something wrong is a result with the outcome "corrupt", never an error: the card
is to be quarantined by whoever decides that. Sources: section 5.3 of this project's measurement
science; the NaN of a wrong result is rare (1 % of them), so nothing here looks for one.
"""

import ctypes
import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flopwatch_kernels import checksum
from flopwatch_kernels.child import Tell, live, now_unix_ns
from flopwatch_kernels.gemm_devices import Cpu, Cuda, dtype_of, open_device, result_of
from flopwatch_kernels.gemm_operands import (
    COLUMN_MAJOR,
    Shape,
    explained,
    product_call,
    torch_format,
)
from flopwatch_kernels.messages import ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.sensors import Watch

if TYPE_CHECKING:
    import torch

ROUNDS: Final = 8
"""Products of each kind in a burst."""

GOLDEN_SEED: Final = 20_261_122
_EDGES: Final = {"cuda": (8192, 4096), "cpu": (256, 256)}  # of the exact and the seeded product
_TOLD_SECONDS: Final = 1.0
_SEED_STEP: Final = 1_000_003

Product = Callable[["torch.Tensor", "torch.Tensor", str], "torch.Tensor"]
"""Multiplies A and B of a dtype with the library under test."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What the screens saw so far. Attributes: products: screened; mismatches: wrong elements, at
    least; reason: the first finding in words; first_hash: of the seeded product; other_hash: one
    that differs from it."""

    products: int = 0
    mismatches: int = 0
    reason: str | None = None
    first_hash: str = ""
    other_hash: str | None = None
    detail: dict[str, float | str | int] = field(default_factory=dict)


def library_product(a_mk: "torch.Tensor", b_kn: "torch.Tensor", dtype: str) -> "torch.Tensor":
    """The product as the library computes it."""
    return product_call(a_mk, b_kn, dtype)()


def measure(spec: ProbeSpec, tell: Tell, multiply: Product = library_product) -> ProbeResult:
    """Screen in this process. Raises ProbeError, in words for whoever asked."""
    started_at_unix_ns = now_unix_ns()
    dtype = dtype_of(spec)
    device = open_device(spec)
    place = "cpu" if spec.device == "cpu" else "cuda"
    exact_edge, seeded_edge = _EDGES[place]
    shape = (exact_edge, exact_edge, checksum.INNER[dtype])
    seeded_shape = (seeded_edge, seeded_edge, seeded_edge)
    found = Found()
    with explained(shape, dtype, place), Watch(device.sensor) as watch:
        a_mk, b_kn, operands = seeded(seeded_shape, dtype, place)
        first = multiply(a_mk, b_kn, dtype)
        found.first_hash = hash_of(first)
        began = told_at = time.monotonic()
        rounds = 0
        while _goes_on(spec, rounds, time.monotonic() - began):
            rounds += 1
            _exact(found, shape, dtype, place, rounds, multiply)
            _same(found, first, multiply(a_mk, b_kn, dtype))
            if (now := time.monotonic()) - told_at >= _TOLD_SECONDS or rounds == ROUNDS:
                told_at = now
                tell(_progress(spec, dtype, found, rounds, now - began))
        last = multiply(a_mk, b_kn, dtype)
        _same(found, first, last)
        # On the host too: the device compared its own bits until here.
        if not found.mismatches and hash_of(last) != found.first_hash:
            _differs(found, last, 1, "")
    found.detail |= {
        "rounds": rounds,
        "golden_shape": "x".join(map(str, seeded_shape)),
        "golden_library": library(device),
        "golden_operands_sha256": operands,
        "golden_product_sha256": found.first_hash,
    }
    return _result(spec, device, shape, found, watch, started_at_unix_ns)


def _goes_on(spec: ProbeSpec, rounds: int, seconds: float) -> bool:
    return seconds < spec.sustained_seconds if spec.sustained else rounds < ROUNDS


def _progress(spec: ProbeSpec, dtype: str, found: Found, rounds: int, seconds: float) -> Progress:
    text = f"{dtype} screened {found.products} products, {found.mismatches} mismatches"
    if spec.sustained:
        held = round(spec.sustained_seconds)
        return Progress(text=text, done=min(held, int(seconds)), total=held)
    return Progress(text=text, done=rounds, total=ROUNDS)


def _exact(
    found: Found, shape: Shape, dtype: str, place: str, seed: int, multiply: Product
) -> None:
    """One product of -1 and +1, with signs of its own in every round."""
    a_mk, b_kn = checksum.signs(shape, dtype, place, seed * _SEED_STEP)
    verdict = checksum.verdict(a_mk, b_kn, multiply(a_mk, b_kn, dtype))
    found.products += 1
    found.mismatches += verdict.mismatches
    if verdict.mismatches and found.reason is None:
        m, n, k = shape
        where = "; ".join(wrong.text for wrong in verdict.wrong) or "found by the sums alone"
        found.reason = (
            f"the exact {dtype} {m}x{n}x{k} product of signs is wrong in at least"
            f" {verdict.mismatches} elements: {where}"
        )
        for number, wrong in enumerate(verdict.wrong):
            found.detail |= {
                f"wrong_{number}_row": wrong.row,
                f"wrong_{number}_column": wrong.column,
                f"wrong_{number}_found": wrong.found,
                f"wrong_{number}_expected": wrong.expected,
            }


def _same(found: Found, first: "torch.Tensor", again: "torch.Tensor") -> None:
    """The seeded product once more: the same bits as at first."""
    import torch

    found.products += 1
    bits = torch.int16 if first.element_size() == 2 else torch.int32
    differing = first.view(bits) != again.view(bits)
    count = int(differing.sum())
    if count:
        row, column = (int(i) for i in differing.nonzero()[0].tolist())
        tile = (row // checksum.TILE, column // checksum.TILE)
        _differs(found, again, count, f", the first ({row}, {column}) in tile {tile}")


def _differs(found: Found, again: "torch.Tensor", count: int, where: str) -> None:
    found.mismatches += count
    if found.other_hash is not None:
        return
    found.other_hash = hash_of(again)
    text = (
        f"the seeded product differs from its first computation in {count} elements{where}: it"
        f" hashes to {found.other_hash} and hashed to {found.first_hash}"
    )
    found.reason = text if found.reason is None else f"{found.reason}; {text}"
    found.detail |= {"other_product_sha256": found.other_hash}


def seeded(shape: Shape, dtype: str, place: str) -> "tuple[torch.Tensor, torch.Tensor, str]":
    """A and B of seeded random numbers, drawn on the host, and the hash of both."""
    import torch

    m, n, k = shape
    generator = torch.Generator(device="cpu").manual_seed(GOLDEN_SEED)

    def drawn(size: tuple[int, int]) -> torch.Tensor:
        if dtype == "int8":
            return torch.randint(-127, 128, size, dtype=torch.int8, generator=generator)
        return torch.randn(size, generator=generator).to(torch_format(dtype))

    a_mk, b_nk = drawn((m, k)), drawn((n, k))
    digest = hashlib.sha256(hash_of(a_mk).encode() + hash_of(b_nk).encode()).hexdigest()
    b_kn = b_nk.to(place).t()
    return a_mk.to(place), b_kn if dtype in COLUMN_MAJOR else b_kn.contiguous(), digest


def hash_of(matrix: "torch.Tensor") -> str:
    """SHA-256 of a matrix's bytes, row after row."""
    held = matrix.cpu().contiguous()
    size = held.numel() * held.element_size()
    return hashlib.sha256(ctypes.string_at(held.data_ptr(), size)).hexdigest()


def library(device: Cpu | Cuda) -> str:
    """What computes, with all that its bits depend on besides the SKU."""
    import torch

    if isinstance(device, Cuda):
        return f"torch {torch.__version__}, {device.sm_count} SMs"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {capability}, {device.threads} threads"


def _result(
    spec: ProbeSpec,
    device: Cpu | Cuda,
    shape: Shape,
    found: Found,
    watch: Watch,
    started_at_unix_ns: int,
) -> ProbeResult:
    corrupt = found.mismatches > 0
    return result_of(
        spec,
        device,
        watch.summary(),
        started_at_unix_ns,
        shape=shape,
        iterations=found.products,
        median_value=float(found.mismatches),
        unit="mismatches",
        seconds=watch.seconds,
        outcome="corrupt" if corrupt else "ok",
        reason=f"{found.reason}; quarantine {device.name} and screen it again" if corrupt else None,
        detail=found.detail,
    )


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))

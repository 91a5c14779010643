"""The corruption screens for real on this processor, with and without an element gone wrong."""

from collections.abc import Callable
from itertools import count

import msgspec
import pytest
import torch

from flopwatch_kernels import sdc
from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.messages import Message, ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.probe import ProbeLimits, run_probe

SPEC = ProbeSpec(
    kind="sdc",
    device="cpu",
    dtype="bf16",
    sustained=False,
    sustained_seconds=0.0,
    threads=None,
    niceness=0,
    memory_bytes_max=8 << 30,
    wall_seconds=60.0,
)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child caps its own memory, and this process must not."""
    monkeypatch.setattr("flopwatch_kernels.gemm_devices.resource.setrlimit", lambda *_: None)


def corrupting(nth: int, change: Callable[[torch.Tensor], None]) -> sdc.Product:
    """The library, with the n-th product changed; the first is the seeded one."""
    calls = count()

    def multiply(a_mk: torch.Tensor, b_kn: torch.Tensor, dtype: str) -> torch.Tensor:
        product = sdc.library_product(a_mk, b_kn, dtype)
        if next(calls) == nth:
            change(product)
        return product

    return multiply


def flip(product: torch.Tensor) -> None:
    """One bit of one element, the least significant."""
    bits = torch.int16 if product.element_size() == 2 else torch.int32
    product.view(bits)[200, 77] ^= 1


def screen(multiply: sdc.Product, dtype: str = "bf16") -> ProbeResult:
    spec = msgspec.structs.replace(SPEC, dtype=dtype)
    return sdc.measure(spec, lambda message: None, multiply)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_processor_that_computes_right_passes_with_a_hash(dtype: str) -> None:
    said: list[Message] = []
    spec = msgspec.structs.replace(SPEC, dtype=dtype)
    result = sdc.measure(spec, said.append)
    assert (result.outcome, result.reason) == ("ok", None)
    assert (result.median_value, result.unit, result.median_flops) == (0.0, "mismatches", None)
    assert result.iterations == 2 * sdc.ROUNDS + 1
    assert len(str(result.detail["golden_product_sha256"])) == 64
    last = said[-1]
    assert isinstance(last, Progress)
    assert (last.done, last.total) == (sdc.ROUNDS, sdc.ROUNDS)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_one_flipped_bit_in_an_exact_product_is_caught_and_placed(dtype: str) -> None:
    result = screen(corrupting(3, flip), dtype)
    assert result.outcome == "corrupt"
    assert result.median_value == 1
    assert (result.detail["wrong_0_row"], result.detail["wrong_0_column"]) == (200, 77)
    assert result.reason is not None
    assert "element (200, 77) in tile (1, 0)" in result.reason
    assert result.reason.endswith("quarantine cpu and screen it again")


def test_one_flipped_bit_in_a_seeded_product_is_caught_with_both_hashes() -> None:
    result = screen(corrupting(2, flip))
    assert (result.outcome, result.median_value) == ("corrupt", 1)
    hashes = [result.detail["golden_product_sha256"], result.detail["other_product_sha256"]]
    assert hashes[0] != hashes[1]
    assert result.reason is not None
    assert f"hashes to {hashes[1]} and hashed to {hashes[0]}" in result.reason
    assert "the first (200, 77) in tile (1, 0)" in result.reason


def test_a_flip_in_the_last_product_is_caught_too() -> None:
    result = screen(corrupting(2 * sdc.ROUNDS + 1, flip))
    assert (result.outcome, result.median_value) == ("corrupt", 1)


def test_the_seeded_operands_and_the_hash_are_the_same_every_time() -> None:
    first, second = (screen(sdc.library_product).detail for _ in range(2))
    for name in ("golden_operands_sha256", "golden_product_sha256", "golden_library"):
        assert first[name] == second[name]


def test_the_child_screens_and_its_hash_is_a_candidate() -> None:
    result = run_probe(kind="sdc", limits=ProbeLimits(memory_bytes_max=2 << 30))
    assert (result.kind, result.dtype, result.outcome) == ("sdc", "bf16", "ok")
    assert result.detail["golden"] == "candidate"


def test_a_dtype_that_is_not_given_is_an_error_in_words() -> None:
    with pytest.raises(ProbeError, match="--kind sdc multiplies: it needs a --dtype"):
        sdc.measure(msgspec.structs.replace(SPEC, dtype=None), lambda message: None)

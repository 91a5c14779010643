"""The CUDA kernels, compiled for every family they are for: what the machine code really holds."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from importlib import resources
from pathlib import Path

import pytest

from flopwatch_kernels.cuda.nvrtc import compiled
from flopwatch_kernels.cuda.table import (
    CAPABILITY_MIN,
    FMA_DTYPES,
    SOURCES,
    TENSOR_DTYPES,
    Capability,
    architecture,
    source_text,
    tensor_kernel,
)
from flopwatch_kernels.errors import ProbeError

AMPERE, ADA, HOPPER, BLACKWELL, RTX = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)
FAMILIES = ("sm_80", "sm_90a", "sm_100a")
BUILT = [
    *(
        (source, family)
        for source in ("mma.cu", "fma.cu", "memory.cu", "empty.cu")
        for family in FAMILIES
    ),
    *(("mma.cu", other) for other in ("sm_86", "sm_89", "sm_103", "sm_120")),
    ("wgmma.cu", "sm_90a"),
]
TENSOR = [
    (dtype, capability)
    for capability in (AMPERE, ADA, HOPPER, BLACKWELL, RTX)
    for dtype in TENSOR_DTYPES
    if tensor_kernel(dtype, capability) is not None
]


@cache
def built(source: str, architecture_: str) -> bytes:
    return compiled(source, architecture_)


@cache
def listing(source: str, architecture_: str, folder: Path) -> dict[str, list[str]]:
    """The machine code of each kernel, as NVIDIA's own disassembler prints it."""
    path = folder / f"{source}.{architecture_}.cubin"
    path.write_bytes(built(source, architecture_))
    tool = str(resources.files("nvidia.cu13").joinpath("bin/nvdisasm"))
    text = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True)
    parts = re.split(r"\n\.text\.(\w+):\n", text.stdout)[1:]
    return dict(zip(parts[::2], [part.splitlines() for part in parts[1::2]], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


def in_a_loop(lines: list[str], instruction: str) -> int:
    """How many of an instruction lie between a label and a jump back to it, at most."""
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.L_x_\d+:", line)}
    most = 0
    for at, line in enumerate(lines):
        jump = re.search(r"BRA.* `\((\.L_x_\d+)\)", line)
        if jump and labels.get(jump[1], at) < at:
            body = lines[labels[jump[1]] : at]
            most = max(most, sum(f" {instruction} " in each for each in body))
    return most


@pytest.mark.parametrize(("source", "architecture_"), BUILT)
def test_every_source_compiles_for_every_family_it_is_for(source: str, architecture_: str) -> None:
    assert built(source, architecture_).startswith(b"\x7fELF")


def test_no_source_is_left_out() -> None:
    files = {path.name for path in resources.files("flopwatch_kernels.cuda").iterdir()}
    assert {name for name in files if name.endswith(".cu")} == set(SOURCES)
    assert {source for source, _ in BUILT} == set(SOURCES)


def test_each_family_has_the_dtypes_that_it_should() -> None:
    def dtypes(capability: Capability) -> set[str]:
        return {d for d in TENSOR_DTYPES if tensor_kernel(d, capability) is not None}

    plain = {"bf16", "fp16", "tf32", "int8", "fp64"}
    assert dtypes((7, 5)) == set()
    assert dtypes(CAPABILITY_MIN) == dtypes((8, 6)) == plain
    assert dtypes(ADA) == dtypes(HOPPER) == dtypes(RTX) == plain | {"fp8"}
    assert dtypes(BLACKWELL) == dtypes((10, 3)) == plain


def test_hoppers_own_instruction_is_used_on_hopper_and_nowhere_else() -> None:
    for dtype, capability in TENSOR:
        kernel = tensor_kernel(dtype, capability)
        assert kernel is not None
        own = capability == HOPPER and dtype != "fp64"
        assert kernel.source == ("wgmma.cu" if own else "mma.cu")
    assert architecture("wgmma.cu", HOPPER) == "sm_90a"
    assert architecture("mma.cu", (10, 3)) == "sm_103"


def test_what_mma_reaches_on_a_b_card_is_not_its_peak() -> None:
    for dtype in ("bf16", "fp16", "tf32", "int8"):
        b200, rtx = tensor_kernel(dtype, BLACKWELL), tensor_kernel(dtype, RTX)
        assert b200 is not None
        assert rtx is not None
        assert (b200.is_peak, rtx.is_peak) == (False, True)


@pytest.mark.parametrize(("dtype", "capability"), TENSOR)
def test_the_loop_of_a_tensor_kernel_holds_the_instruction_of_its_dtype(
    dtype: str, capability: Capability, folder: Path
) -> None:
    kernel = tensor_kernel(dtype, capability)
    assert kernel is not None
    code = listing(kernel.source, architecture(kernel.source, capability), folder)[kernel.symbol]
    found = in_a_loop(code, kernel.instruction)
    assert found > 0
    assert found % kernel.instructions == 0  # whole iterations, unrolled
    assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)]  # no register spilled
    clocks = [at for at, line in enumerate(code) if "SR_CLOCK" in line]
    products = [at for at, line in enumerate(code) if f" {kernel.instruction} " in line]
    assert len(clocks) == 2
    assert clocks[0] < products[0] < products[-1] < clocks[1]


def test_wgmma_instructions_of_a_group_follow_each_other_without_a_wait(folder: Path) -> None:
    # The compiler silently puts a wait behind each where it cannot keep the sums in place.
    for symbol, code in listing("wgmma.cu", "sm_90a", folder).items():
        products = sum("GMMA." in line for line in code)
        waits = sum("WARPGROUP.DEPBAR" in line for line in code)
        assert products == 4 * waits > 0, symbol


@pytest.mark.parametrize("architecture_", FAMILIES)
def test_the_loops_of_the_fma_kernels_hold_multiply_adds(architecture_: str, folder: Path) -> None:
    code = listing("fma.cu", architecture_, folder)
    assert set(code) == {f"fma_{dtype}" for dtype in FMA_DTYPES}
    assert in_a_loop(code["fma_fp32"], "FFMA") == 8 * 16
    assert in_a_loop(code["fma_fp64"], "DFMA") == 8 * 16


@pytest.mark.parametrize("architecture_", FAMILIES)
def test_memory_is_moved_sixteen_bytes_at_a_time_and_four_at_once(
    architecture_: str, folder: Path
) -> None:
    code = listing("memory.cu", architecture_, folder)
    assert in_a_loop(code["copy"], "STG.E.128") == 4
    assert in_a_loop(code["copy"], "LDG.E.128.CONSTANT") == 4
    assert in_a_loop(code["read"], "LDG.E.128.CONSTANT") == 4
    assert in_a_loop(code["write"], "STG.E.128") >= 4


def test_one_kernel_alone_is_compiled_where_the_source_allows_it() -> None:
    alone = compiled("wgmma.cu", "sm_90a", "tensor_int8")
    assert b".text.tensor_int8\0" in alone
    assert b".text.tensor_bf16\0" not in alone


def test_code_that_nvrtc_refuses_is_told_with_its_first_error() -> None:
    with pytest.raises(
        ProbeError, match=r"cannot compile wgmma\.cu for sm_80 \(.*error.* requires .target sm_90"
    ):
        compiled("wgmma.cu", "sm_80")


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(ProbeError, match=r"pip install 'flopwatch\[probes\]'"):
        compiled("empty.cu", "sm_80")


def test_no_source_needs_a_header() -> None:
    assert not [source for source in SOURCES if "#include" in source_text(source)]

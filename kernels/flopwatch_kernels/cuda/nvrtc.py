"""CUDA C++ to machine code by NVRTC, at run time, on any machine: it needs neither card nor driver.

The result is a cubin for one named architecture, never PTX: nothing is left for the driver to
compile, and what a test has looked at is what runs.
"""

import importlib
import re
from typing import Any, Final

from flopwatch_kernels.cuda.table import source_text
from flopwatch_kernels.errors import ProbeError

CUDA_MISSING: Final = "cuda-core or NVRTC is not installed: pip install 'flopwatch[probes]'"


def compiled(source: str, architecture: str, only: str | None = None) -> bytes:
    """Machine code of one of `table.SOURCES`.

    Args:
        source: File name, e.g. "mma.cu".
        architecture: E.g. "sm_80", or "sm_90a" where a source needs the family's own instructions.
        only: The one kernel that is wanted, where the source can leave out the others.

    Raises:
        ProbeError: No NVRTC, one too old for the architecture, or code that it refuses.
    """
    core: Any = cuda_module("cuda.core")
    macros = None if only is None else ["ONLY", f"ONLY_{only}"]
    options = core.ProgramOptions(arch=architecture, std="c++17", name=source, define_macro=macros)
    try:
        return bytes(
            core.Program(source_text(source), "c++", options=options).compile("cubin").code
        )
    except Exception as exc:  # it has no error type of its own for all that can be wrong
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        told = next((line for line in lines if re.search(r"\berror\b", line)), "".join(lines[:1]))
        raise ProbeError(
            f"NVRTC cannot compile {source} for {architecture} ({told}): install a newer"
            " nvidia-cuda-nvrtc"
        ) from exc


def cuda_module(name: str) -> Any:
    """A module of NVIDIA's packages. Raises: ProbeError: they are not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ProbeError(CUDA_MISSING) from exc

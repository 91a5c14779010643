"""A fake of the CUDA driver's library, for the probes on a card; see `driver.c`."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["build", "env"]

_SOURCE: Final = Path(__file__).resolve().parent / "driver.c"
_SONAME: Final = "libcuda.so.1"
_FLAGS: Final = ("-shared", "-fPIC", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


def build(target_dir: Path) -> Path:
    """Compile the library; return the folder it lies in. The same source is used again."""
    digest = hashlib.sha256(repr(_FLAGS).encode() + _SOURCE.read_bytes()).hexdigest()[:16]
    lib_dir = target_dir / f"cuda-{digest}"
    if not (lib_dir / _SONAME).exists():
        lib_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=lib_dir) as scratch:
            out = Path(scratch, _SONAME)
            link = [f"-Wl,-soname,{_SONAME}", "-ldl"]
            command = ["gcc", *_FLAGS, "-o", str(out), str(_SOURCE), *link]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"gcc: {done.stderr}")
            out.replace(lib_dir / _SONAME)
    return lib_dir


def env(lib_dir: Path, environment: Mapping[str, str], **settings: float) -> dict[str, str]:
    """The environment, with the fake in the driver's place and these settings of it,
    or those that it has if there are none."""
    paths = [str(lib_dir), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
    told = ",".join(f"{key}={value}" for key, value in settings.items())
    told = told or environment.get("FAKECUDA", "")
    return {**environment, "LD_LIBRARY_PATH": os.pathsep.join(paths), "FAKECUDA": told}

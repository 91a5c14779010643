"""Compiling the fake, and pointing a process at it."""

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
SONAME = "libnvidia-ml.so.1"
FLAGS = ("-shared", "-fPIC", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread")


@cache
def exported() -> frozenset[str]:
    """The names of every function of the fake."""
    sources = "".join(p.read_text() for p in HERE.glob("*.c"))
    tables = "".join((HERE / name).read_text() for name in ("calls.def", "stubs.def"))
    by_hand = re.findall(r"^(?:API |ENGINE\(|PROCESSES\()(nvml\w+)", sources, re.MULTILINE)
    by_table = re.findall(r"^[A-Z0-9]+\((nvml\w+)", tables, re.MULTILINE)
    return frozenset({*by_hand, *by_table, "nvmlErrorString"})


def build(target_dir: Path, missing: Iterable[str] = ()) -> Path:
    """Compile the library without the functions in `missing`; return the folder it lies in.

    A symbol cannot be taken out of a library while it runs, so an older driver is another build.
    A build of the same sources and `missing` is used again.
    """
    hidden = sorted(set(missing))
    if unknown := [name for name in hidden if name not in exported()]:
        raise ValueError(f"the fake has no such functions: {', '.join(unknown)}")
    sources = sorted(HERE.glob("*.[ch]")) + sorted(HERE.glob("*.def"))
    digest = hashlib.sha256(repr((FLAGS, hidden)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    lib_dir = target_dir / digest.hexdigest()[:16]
    if not (lib_dir / SONAME).exists():
        _compile([p for p in sources if p.suffix == ".c"], hidden, lib_dir)
    return lib_dir


def _compile(sources: list[Path], hidden: list[str], lib_dir: Path) -> None:
    lib_dir.mkdir(parents=True, exist_ok=True)
    local = "".join(f" {name};" for name in hidden)
    with tempfile.TemporaryDirectory(dir=lib_dir) as scratch:
        # An exact name beats a pattern, so what is local here stays out of the exported nvml*.
        version_script = Path(scratch, "symbols.map")
        version_script.write_text(f"{{ global: nvml*; local:{local} *; }};\n")
        out = Path(scratch, SONAME)
        link = [f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={version_script}", "-lm", "-ldl"]
        command = ["gcc", *FLAGS, "-o", str(out), *map(str, sources), *link]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"gcc: {done.stderr}")
        out.replace(lib_dir / SONAME)  # whole or not at all, for builds in parallel


def env(lib_dir: Path, script: os.PathLike[str] | str) -> dict[str, str]:
    """This process's environment, with the fake in the driver library's place."""
    paths = [str(lib_dir), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "FAKENVML_SCRIPT": os.fspath(script),
    }

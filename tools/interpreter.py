"""Copies the interpreter that runs this, so that it works where there is no Python: for packages.

The binary, the standard library without what a daemon never imports, and the shared libraries these need.
The binary finds them, and they each other, by a path relative to itself (DT_RPATH, which holds for everything
that the process loads). glibc and the C++ runtime stay the host's: `glibc_needed` says which glibc is the
oldest that will do, so build on the oldest system that is to be served.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LEFT_OUT: Final = (
    *("__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter"),
    *("turtledemo", "turtle.py", "ensurepip", "lib2to3", "pydoc_data", "venv", "config-3*"),
    *("_tkinter.*", "_curses*", "readline.*", "_gdbm.*", "_dbm.*", "nis.*", "_test*", "xx*"),
    *("_crypt.*", "ossaudiodev.*", "_xx*", "*.a", "sitecustomize.py", "EXTERNALLY-MANAGED"),
)
"""Of the standard library: tests, graphics, terminals, and what only installs or debugs."""

THE_HOSTS: Final = re.compile(
    r"(libc|libm|libdl|libpthread|librt|libutil|libresolv|libanl|ld-linux[\w-]*|linux-vdso"
    r"|libstdc\+\+|libgcc_s)\.so"
)
"""glibc's libraries and the C++ runtime's: each system has its own, and a newer one serves older code."""

_ELF: Final = b"\x7fELF"
_GLIBC_VERSION: Final = re.compile(rb"GLIBC_(\d+)\.(\d+)")


def copy_interpreter(target: Path, home: str) -> None:
    """Copy the running interpreter to ``target/bin`` and ``target/lib``, beside what is there.

    Everything below ``target`` loses its debugging symbols and finds its libraries in ``target/lib``.

    Args:
        home: where ``target`` will be on the host.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    binary = target / "bin/python3"
    binary.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(sys._base_executable).resolve(), binary)  # type: ignore[attr-defined]
    stdlib = target / "lib" / version
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        stdlib,
        ignore=shutil.ignore_patterns(*LEFT_OUT),
        dirs_exist_ok=True,
    )
    for path in stdlib.glob("_sysconfigdata*.py"):
        path.write_text(path.read_text().replace(sys.base_prefix, home))
    bring_libraries(target)
    subprocess.run(["strip", "--strip-debug", *map(str, elf_files(target))], check=True)
    for path in (binary, *(target / "lib").glob("*.so*"), *(stdlib / "lib-dynload").glob("*.so")):
        origin = f"$ORIGIN/{os.path.relpath(target / 'lib', path.parent)}"
        subprocess.run(["patchelf", "--force-rpath", "--set-rpath", origin, str(path)], check=True)


def bring_libraries(target: Path) -> None:
    """Copy to ``target/lib`` what the files below ``target`` load and no host is sure to have."""
    command = ["ldd", *map(str, elf_files(target))]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for name, place in re.findall(r"^\s*(\S+) => (/\S+) \(", listing, re.M):
        copy = target / "lib" / name
        if THE_HOSTS.match(name) or copy.exists() or place.startswith(str(target)):
            continue
        shutil.copy(Path(place).resolve(), copy)
        copy.chmod(0o755)


def elf_files(tree: Path) -> Iterator[Path]:
    """Yield the binaries and libraries below a directory."""
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == _ELF:
                    yield path


def glibc_needed(tree: Path) -> str:
    """Return the oldest glibc that every binary below a directory works with, like ``2.34``."""
    versions = {
        (int(major), int(minor))
        for path in elf_files(tree)
        for major, minor in _GLIBC_VERSION.findall(path.read_bytes())
    }
    return "{}.{}".format(*max(versions))

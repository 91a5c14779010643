"""Checks flopwatch against a real NVIDIA driver and card, and writes down what it saw.

    bench/gpu/verify [--device cuda:0] [--out DIR] [--only CHECK,…] [--quick]

Needs nothing installed but the modules named in ``MODULES``; the repository's own packages are found
beside this file. Takes under eight minutes of an otherwise idle card. Exit status: 0 every check ran and
agrees, 1 some did not, 2 wrong usage, a missing module or no card.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = tuple(
    str(ROOT / name) for name in ("agent", "kernels", "proto", "client", "bench")
)
MODULES: Final = {
    "torch": "torch",
    "pynvml": "nvidia-ml-py",
    "msgspec": "msgspec",
    "psutil": "psutil",
    "structlog": "structlog",
    "zstandard": "zstandard",
    "google.protobuf": "protobuf",
}
"""Module → the package that has it."""


def missing() -> list[str]:
    """Return the packages whose modules are not there."""
    found = []
    for module, package in MODULES.items():
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # the package around it
            spec = None
        if spec is None:
            found.append(f"{module} (package {package})")
    return found


def start() -> int:
    """Make the repository's packages importable, here and in children, and hand over."""
    if sys.version_info < (3, 11):  # noqa: UP036 - it is not installed, so nobody else asked
        sys.stderr.write(
            f"verify: Python 3.11 or newer is needed, this is {sys.version.split()[0]}\n"
        )
        return 2
    # This folder itself must not be on the path: its module names are short.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [*PACKAGES, *(p for p in sys.path if p not in (here, "") and p not in PACKAGES)]
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    others = (path for path in inherited if path not in PACKAGES)
    os.environ["PYTHONPATH"] = os.pathsep.join([*PACKAGES, *others])
    if lacking := missing():
        sys.stderr.write(f"verify: missing: {', '.join(lacking)}; install or put on PYTHONPATH\n")
        return 2
    try:
        from gpu.command import main
    except Exception as exc:  # a package there, but too old for what is imported of it
        sys.stderr.write(f"verify: cannot import: {type(exc).__name__}: {exc}\n")
        return 2
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())

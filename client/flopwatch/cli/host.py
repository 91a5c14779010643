"""What this host is: where data lies, whether it has an accelerator, what its parts answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NVML: Final = "libnvidia-ml.so.1"
_LIBRARY_PLACES: Final = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
)


def data_directory(environ: Mapping[str, str] = os.environ, *, uid: int | None = None) -> Path:
    """Where flopwatch keeps its data when nobody says: as root the system's place, else the user's."""
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    if (os.getuid() if uid is None else uid) == 0:
        return Path("/var/lib/flopwatch")
    return Path(environ.get("HOME", "/")) / ".local/share/flopwatch"


def driver_version(root: Path = Path("/")) -> str | None:
    """The kernel driver's version line, or None where none is loaded."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.splitlines()[0].removeprefix("NVRM version: ").strip() or None


def nvml_library(environ: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """The file of the NVML library, looked for as the loader does, without loading it."""
    named = [Path(p) for p in environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    for place in (*named, *(root / p.lstrip("/") for p in _LIBRARY_PLACES)):
        if (place / _NVML).exists():
            return place / _NVML
    return None


def device_nodes(root: Path = Path("/")) -> tuple[Path, ...]:
    """The device files of the cards: ``/dev/nvidia0`` …"""
    return tuple(sorted((root / "dev").glob("nvidia[0-9]*")))


def has_accelerator(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this host has cards to read: a loaded driver, or a library that somebody named."""
    if driver_version(root) is not None or (root / "dev/nvidiactl").exists():
        return True
    named = [Path(p) for p in environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    return any((place / _NVML).exists() for place in named)

"""Facts that an agent states about itself in Hello."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def agent_version() -> str:
    """Return the version of the distribution."""
    try:
        return version("flopwatch")
    except PackageNotFoundError:
        return "unknown"


def boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Return the kernel's name of this boot; empty where it has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""

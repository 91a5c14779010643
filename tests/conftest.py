"""What holds for every test."""

from __future__ import annotations

import resource
from pathlib import Path

import hypothesis as hypothesis  # its plugin does so at the end, where Python 3.11 may fail to compile it
import pytest

from privileges import refused

# The embedded engine keeps some descriptors of every store that was ever opened in a process. A collector
# opens one; the suite opens hundreds.
_SOFT, _HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_HARD, _HARD))

_REFUSED = dict(refused(Path(__file__).parent))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what this machine cannot run."""
    return True if collection_path in _REFUSED else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out."""
    for place, why in _REFUSED.items():
        terminalreporter.section(f"NOT TESTED ON THIS MACHINE: {place.name} ({why})", red=True)

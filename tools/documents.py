"""Write the documents that are generated; with ``--check`` only compare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import configuration
import metrics
import prometheus_rules
import rules
import tables
from flopwatch_collector.telemetry import sharded

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "docs/configuration.md": configuration.page,
    "docs/metrics.md": metrics.page,
    "docs/rules.md": rules.page,
    "docs/tables.md": tables.page,
    "deploy/clickhouse/tables.sql": sharded.page,
    "deploy/prometheus/flopwatch.rules.yml": prometheus_rules.page,
}


def stale() -> list[str]:
    """Return the committed pages that are not what would be generated."""
    return [
        name
        for name, page in PAGES.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != page()
    ]


def main(arguments: Sequence[str]) -> int:
    """Write or check; return the exit code."""
    outdated = stale()
    if "--check" in arguments:
        if outdated:
            sys.stderr.write(f"run `make docs`: {', '.join(outdated)}\n")
        return 1 if outdated else 0
    for name in outdated:
        (ROOT / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Which agents report: those of this collector, and of all that share its control store."""

from __future__ import annotations

from typing import Any

from flopwatch_collector import presence
from flopwatch_collector.web.sources import Sources


def everywhere(sources: Sources) -> list[dict[str, Any]]:
    """Return every agent once, as `presence` says; what other collectors hear is up to 30 s old.

    Raises:
        RetryableError: this collector or the control store does not answer.
    """
    return presence.merged([*sources.collector.agents(), *presence.told(sources.control.store())])

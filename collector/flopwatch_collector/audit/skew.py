"""How far a node's clock is from ours, and when somebody should know. Pure.

Two words in a row must agree, because one that waited on its way looks like a clock that is behind.
Timestamps are never rewritten: the skew is stored beside each batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WARNING_MS: Final = 2_000
ERROR_MS: Final = 30_000


@dataclass(slots=True)
class Skew:
    """The clock of one node. Attributes: ms: its clock less ours, the way here in it; None: not said."""

    ms: int | None = None
    _last_ms: int | None = None
    _severity: str = ""

    def hear(self, node_unix_ms: int, now_unix_ms: int) -> str | None:
        """Take what a node says the time is; return the severity where it became another, ``''`` for none."""
        said = node_unix_ms - now_unix_ms
        both = (said, said if self._last_ms is None else self._last_ms)
        first, self._last_ms = self._last_ms is None, said
        self.ms = min(both, key=abs)
        severity = "" if first else severity_of(self.ms)
        if severity == self._severity:
            return None
        self._severity = severity
        return severity


def severity_of(skew_ms: int) -> str:
    """Return what a skew is worth: nothing, a warning, an error."""
    if abs(skew_ms) > ERROR_MS:
        return "error"
    return "warning" if abs(skew_ms) > WARNING_MS else ""

"""The telemetry store: rows as they came, lines made of them, and the marks between the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:  # the command line of a bare install reaches this file, and has no Arrow
    import pyarrow

NO_PARAMETERS: Final[Mapping[str, Any]] = {}


class Reader(Protocol):
    """Whatever answers SQL: the store in its own process, or the collector's read server.

    Parameters are bound by the engine: ``{name:Type}`` in the SQL, for example
    ``cluster = {cluster:String} AND start_unix_ms >= {start:Int64}``.

    Raises:
        RetryableError: too busy, too slow or too large now.
        PermanentError: the SQL is wrong, or not a read.
    """

    def query(self, sql: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> pyarrow.Table: ...

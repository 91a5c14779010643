"""What is known to be lost, by cause: rows that agents declared as gaps, and batches set aside here.

A cause is a word that came over the wire. Those of the catalogue keep their name and anything else is
``other``, so the causes of a fleet are no more than stand here, whatever an agent says. Rows are as they were
told: where a later gap covers an earlier one they count in both, unlike in `balance`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_collector.telemetry import Reader

LOOKED_BACK_MS: Final = 24 * 3_600_000
"""Losses are shown for a day from when they were told."""
GAP: Final = "gap"
QUARANTINE: Final = "quarantine"
CAUSES: Final = {
    GAP: ("spool_full", "disk_error", "corrupt", "clock_step", "too_old"),
    QUARANTINE: ("bad_hash", "bad_payload", "bad_rows", "future", "too_large", "unreadable"),
}
OTHER: Final = "other"
LOSSES_MAX: Final = 10_000

_ASKED: Final = (
    "stored_unix_ms >= {since:Int64} AND ({cluster:String} = '' OR cluster = {cluster:String}) "
    "AND ({node:String} = '' OR node = {node:String})"
)


def _sums(kind: str, table: str, column: str) -> str:
    known = ", ".join(f"'{cause}'" for cause in CAUSES[kind])
    return (
        f"SELECT cluster, '{kind}' AS kind, if({column} IN ({known}), {column}, '{OTHER}') AS cause, "
        "max(simulated) AS simulated, count() AS times, sum(rows) AS total, max(stored_unix_ms) AS told "
        f"FROM {table} FINAL WHERE {_ASKED} GROUP BY cluster, kind, cause"
    )


LOSSES_SQL: Final = (
    f"SELECT * FROM ({_sums(GAP, 'gap', 'reason')} UNION ALL {_sums(QUARANTINE, 'quarantine', 'code')}) "
    f"ORDER BY cluster, kind, total DESC, cause LIMIT {LOSSES_MAX}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a cause took. Attributes: kind: gap or quarantine; times: gaps, or batches; rows: of intervals."""

    cluster: str
    simulated: bool
    kind: str
    cause: str
    times: int
    rows: int
    told_unix_ms: int


def read(
    reader: Reader, since_unix_ms: int, *, cluster: str | None = None, node: str | None = None
) -> list[Loss]:
    """Return what was told to be lost since a moment, by cluster and cause.

    Raises:
        RetryableError: the store does not answer within its bounds.
    """
    asked = {"since": since_unix_ms, "cluster": cluster or "", "node": node or ""}
    return [_loss(record) for record in reader.query(LOSSES_SQL, asked).to_pylist()]


def rows_of(losses: Iterable[Loss], kind: str) -> int:
    """Return how many rows a kind of loss took."""
    return sum(loss.rows for loss in losses if loss.kind == kind)


def _loss(record: dict[str, Any]) -> Loss:
    return Loss(
        cluster=record["cluster"],
        simulated=bool(record["simulated"]),
        kind=record["kind"],
        cause=record["cause"],
        times=int(record["times"]),
        rows=int(record["total"]),
        told_unix_ms=int(record["told"]),
    )

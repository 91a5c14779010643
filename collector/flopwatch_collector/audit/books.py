"""The books of a cluster: what is lost by cause, and whether its audit balances. Reads only.

A cluster is audited over an hour, or over less where an hour holds more rows than a reader should count: so
the cost of a look is bounded, whatever the fleet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flopwatch_collector.audit import balance, losses
from flopwatch_collector.audit.balance import Balance
from flopwatch_collector.audit.losses import Loss
from flopwatch_collector.telemetry import Reader
from flopwatch_proto.errors import FlopwatchError

AUDITED_MS: Final = 3_600_000
AUDITED_MS_MIN: Final = 5 * 60_000
AUDITED_ROWS_MAX: Final = 5_000_000
CLUSTERS_MAX: Final = 200
NAMED_MAX: Final = 20
"""Nodes that are named; the rest is a number."""
BALANCED: Final = "balanced"
UNSPOKEN: Final = "unspoken"
VERDICTS: Final = ("missing", "cloned", UNSPOKEN, BALANCED)
"""Of a node's spools the worst one speaks: in this order."""

_RATES_SQL: Final = """
SELECT cluster, max(told_simulated) AS simulated, sum(came) AS total FROM (
  SELECT cluster, simulated AS told_simulated, rows AS came FROM receipt
  WHERE stored_unix_ms >= {recent:Int64}
  UNION ALL SELECT cluster, simulated AS told_simulated, 0 AS came FROM spool
) GROUP BY cluster
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The books of one cluster.

    Attributes:
        audited_unix_ms: when; since_unix_ms: receipts from then on counted.
        nodes: by verdict; None: the audit got no answer, and ``reason`` says why.
        missing_rows: of spools that do not balance; below zero: more is here than was handed over.
        wrong: nodes that do not balance, the first `NAMED_MAX`.
    """

    cluster: str
    simulated: bool
    audited_unix_ms: int
    since_unix_ms: int
    losses: Sequence[Loss] = ()
    nodes: dict[str, int] | None = None
    missing_rows: int = 0
    wrong: Sequence[str] = ()
    reason: str = ""

    @property
    def unbalanced(self) -> int | None:
        """How many nodes do not balance; None: not known."""
        if self.nodes is None:
            return None
        return sum(count for verdict, count in self.nodes.items() if is_wrong(verdict))


@dataclass(slots=True)
class _Told:
    """What the cheap questions found of a cluster."""

    simulated: bool = False
    recent_rows: int = 0
    losses: list[Loss] = field(default_factory=list)


def is_wrong(verdict: str) -> bool:
    """Whether a verdict says that something is wrong; a spool that has not spoken yet proves nothing."""
    return verdict not in (BALANCED, UNSPOKEN)


def read(reader: Reader, now_unix_ms: int) -> list[Books]:
    """Return the books of every cluster whose spools have spoken, or that lost something; real ones first.

    Raises:
        RetryableError: the store does not answer even what is cheap to know.
    """
    told: defaultdict[str, _Told] = defaultdict(_Told)
    recent = {"recent": now_unix_ms - AUDITED_MS_MIN}
    for record in reader.query(_RATES_SQL, recent).to_pylist():
        told[record["cluster"]] = _Told(bool(record["simulated"]), int(record["total"]))
    for loss in losses.read(reader, now_unix_ms - losses.LOOKED_BACK_MS):
        told[loss.cluster].losses.append(loss)
        told[loss.cluster].simulated |= loss.simulated
    ordered = sorted(told.items(), key=lambda item: (item[1].simulated, item[0]))
    return [_of(reader, name, of, now_unix_ms) for name, of in ordered[:CLUSTERS_MAX]]


def _of(reader: Reader, cluster: str, told: _Told, now_unix_ms: int) -> Books:
    since = now_unix_ms - audited_ms(told.recent_rows)
    known: dict[str, Any] = {
        "cluster": cluster,
        "simulated": told.simulated,
        "audited_unix_ms": now_unix_ms,
        "since_unix_ms": since,
        "losses": told.losses,
    }
    try:
        return Books(**known, **_judged(balance.read(reader, since, cluster=cluster)))
    except FlopwatchError as exc:
        return Books(**known, reason=str(exc))


def audited_ms(recent_rows: int) -> int:
    """Return how far back rows are audited, where so many came in the last `AUDITED_MS_MIN`."""
    affordable = AUDITED_MS_MIN * AUDITED_ROWS_MAX // max(1, recent_rows)
    return max(AUDITED_MS_MIN, min(AUDITED_MS, affordable))


def _judged(found: Iterable[Balance]) -> dict[str, Any]:
    worst: dict[str, str] = {}
    missing = 0
    for one in found:
        before = worst.get(one.node, BALANCED)
        worst[one.node] = min(before, one.verdict, key=VERDICTS.index)
        missing += one.missing_rows if is_wrong(one.verdict) else 0
    wrong = sorted(node for node, verdict in worst.items() if is_wrong(verdict))
    counts = Counter(worst.values())
    return {
        "nodes": {verdict: counts[verdict] for verdict in VERDICTS},
        "missing_rows": missing,
        "wrong": wrong[:NAMED_MAX],
    }

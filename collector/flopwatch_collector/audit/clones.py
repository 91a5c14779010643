"""One node, two hosts: a disk that was copied, or a name given twice.

- One number of a spool with two contents (``receipt`` has two hashes of it).
- One node that is live from two spools: the session of the one ends that of the other, which comes back.
  A node that comes once with a new spool was installed anew, and is no clone.

The first is found in the tables, the second there and, within one collector, as it happens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Final

from flopwatch_collector.telemetry import Reader

LOOKED_BACK_MS: Final = 10 * 60_000
TOLD_EVERY_MS: Final = 10 * 60_000
NODES_MAX: Final = 100_000
FOUND_MAX: Final = 1_000

_TWO_HASHES: Final = """
SELECT cluster, node, any(simulated) AS simulated, spool_id, min(seq) AS first, count() AS found
FROM (
  SELECT cluster, node, spool_id, seq, any(simulated) AS simulated FROM receipt
  WHERE stored_unix_ms >= {since:Int64} GROUP BY cluster, node, spool_id, seq HAVING uniqExact(sha) > 1
) GROUP BY cluster, node, spool_id LIMIT {limit:UInt32}
"""
_TWO_SPOOLS: Final = """
SELECT cluster, node, any(simulated) AS simulated, groupArray(spool_id) AS spools,
  groupArray(first) AS firsts, groupArray(last) AS lasts
FROM (
  SELECT cluster, node, spool_id, any(simulated) AS simulated,
    min(stored_unix_ms) AS first, max(stored_unix_ms) AS last
  FROM receipt WHERE stored_unix_ms >= {since:Int64} GROUP BY cluster, node, spool_id
) GROUP BY cluster, node HAVING count() > 1 LIMIT {limit:UInt32}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A node that is two. Attributes: text: how it shows."""

    cluster: str
    node: str
    simulated: bool
    text: str


@dataclass(slots=True)
class Spools:
    """Which spools a node came with lately, in one collector. Pure."""

    _seen: dict[tuple[str, str], tuple[str, str, int]] = field(default_factory=dict)

    def opened(self, cluster: str, node: str, spool_id: str, now_unix_ms: int) -> bool:
        """Take a session; return whether its spool took turns with another within ten minutes."""
        place = cluster, node
        newest, before, changed_unix_ms = self._seen.get(place, ("", "", 0))
        if newest == spool_id:
            return False
        if place not in self._seen and len(self._seen) >= NODES_MAX:
            self._seen.pop(next(iter(self._seen)))
        self._seen[place] = (spool_id, newest, now_unix_ms)
        return before == spool_id and now_unix_ms - changed_unix_ms <= LOOKED_BACK_MS


def stored_clones(reader: Reader, since_unix_ms: int) -> list[Clone]:
    """Return the nodes that the receipts since then show twice.

    Raises:
        RetryableError: the store does not answer.
    """
    asked = {"since": since_unix_ms, "limit": FOUND_MAX}
    found = [
        Clone(
            cluster=r["cluster"],
            node=r["node"],
            simulated=r["simulated"],
            text=f"{r['found']} batches of spool {r['spool_id'][:8]} came with two contents, from seq "
            f"{r['first']} on: its disk was copied, or it was set back to an older state",
        )
        for r in reader.query(_TWO_HASHES, asked).to_pylist()
    ]
    return found + [
        Clone(
            cluster=r["cluster"],
            node=r["node"],
            simulated=r["simulated"],
            text=f"spools {' and '.join(s[:8] for s in sorted(r['spools'])[:2])} send at the same time: two "
            "hosts have this name",
        )
        for r in reader.query(_TWO_SPOOLS, asked).to_pylist()
        if _overlap(list(zip(r["firsts"], r["lasts"], strict=True)))
    ]


def _overlap(spans: list[tuple[int, int]]) -> bool:
    """Whether two spans of time have more than a moment in common."""
    spans = sorted(spans)
    return any(b_first < a_last for (_, a_last), (b_first, _) in itertools.pairwise(spans))


def event_of(clone: Clone, now_unix_ms: int) -> dict[str, Any]:
    """Return the event that tells it."""
    return {
        "cluster": clone.cluster,
        "node": clone.node,
        "slot": "",
        "time_unix_ms": now_unix_ms,
        "kind": "duplicate_node_identity",
        "code": 0,
        "severity": "error",
        "text": clone.text[:500],
        "action": "give each host a name of its own, and empty the spool directory of the copy",
        "simulated": clone.simulated,
    }

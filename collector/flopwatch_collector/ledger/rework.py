"""Steps that jobs lost by restarts and made again, times the cards that made them. Reads only.

Agents tell of a restart with the steps lost, each node for itself: what several nodes say of one job within
`SAME_RESTART_MS` is one restart, and the largest loss stands. One that does not tell its loss adds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.telemetry import Reader

SAME_RESTART_MS: Final = 600_000
EVENTS_MAX: Final = 10_000
_LOST: Final = re.compile(r"(\d+) steps? lost")


def lost_card_steps(
    reader: Reader, cluster: str, window: Window, node: str | None = None
) -> dict[str, float]:
    """Return job → steps that restarts in the window lost × its cards after them, in all or on one node."""
    return lost_by_cluster(reader, [cluster], window, node)[cluster]


def lost_by_cluster(
    reader: Reader, clusters: Sequence[str], window: Window, node: str | None = None
) -> dict[str, dict[str, float]]:
    """Return the same of several clusters."""
    events = reader.query(
        "SELECT cluster, job, time_unix_ms, text FROM event FINAL "
        "WHERE cluster IN {clusters:Array(String)} "
        "AND time_unix_ms >= {start:Int64} AND time_unix_ms < {end:Int64} AND kind = 'job_restart' "
        f"ORDER BY cluster, time_unix_ms LIMIT {EVENTS_MAX} BY cluster",
        {"clusters": list(clusters), "start": window.start, "end": window.end},
    )
    told: dict[str, list[dict[str, Any]]] = {cluster: [] for cluster in clusters}
    for event in events.to_pylist():
        told[event["cluster"]].append(event)
    return {name: _lost(reader, name, of, node) for name, of in told.items()}


def _lost(
    reader: Reader, cluster: str, events: Iterable[Mapping[str, Any]], node: str | None
) -> dict[str, float]:
    where = " AND node = {node:String}" if node is not None else ""
    lost: dict[str, float] = {}
    for job, at_unix_ms, steps in restarts(events):
        cards = reader.query(
            "SELECT uniqExact(node, slot) AS n FROM interval WHERE cluster = {cluster:String} "
            "AND start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64} "
            f"AND job = {{job:String}}{where}",
            {
                "cluster": cluster,
                "start": at_unix_ms,
                "end": at_unix_ms + SAME_RESTART_MS,
                "job": job,
                "node": node or "",
            },
        )
        lost[job] = lost.get(job, 0.0) + steps * float(cards["n"][0].as_py())
    return lost


def restarts(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return (job, time, steps lost) of each restart that lost steps.

    Args:
        events: `job_restart` events with job, time_unix_ms and text, oldest first.
    """
    newest: dict[str, tuple[int, int]] = {}
    found: dict[tuple[str, int], int] = {}
    for event in events:
        told = _LOST.search(event["text"])
        steps = int(told.group(1)) if told else 0
        began, at = newest.get(event["job"], (0, -SAME_RESTART_MS))
        if event["time_unix_ms"] - at >= SAME_RESTART_MS:
            began = event["time_unix_ms"]
        newest[event["job"]] = began, event["time_unix_ms"]
        found[event["job"], began] = max(found.get((event["job"], began), 0), steps)
    return [(job, at, steps) for (job, at), steps in found.items() if steps]

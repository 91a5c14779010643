"""Records of a cluster `atlas` into a real store, and its lines brought up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flopwatch_collector.ledger.rollup import Rollup
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import TelemetryStore


def put(
    store: TelemetryStore,
    table: str,
    records: Sequence[Mapping[str, Any]],
    now: int,
    cluster: str = "atlas",
    **more: Any,
) -> None:
    names = {n for r in records for n in r if n in TABLES[table].columns}
    columns: dict[str, Any] = {n: [r.get(n) for r in records] for n in names}
    more = {"cluster": cluster, "stored_unix_ms": now, "simulated": True} | more
    columns |= {n: [value] * len(records) for n, value in more.items()}
    if table == "interval":
        columns |= {"not_supported": [[]] * len(records), "failed": [[]] * len(records)}
        minutes = {(cluster, r["start_unix_ms"] // 60_000 * 60_000) for r in records}
        store.marks.mark(minutes, now)
        store.append(table, columns)
        store.marks.settle(minutes, now)
        return
    store.append(table, columns)


def roll_up(store: TelemetryStore, now: int) -> None:
    rollup = Rollup(store)
    for at in range(now, now + 100):  # a chunk of minutes each
        if not rollup.run(at):
            return
    raise AssertionError("minutes stay due")

"""A web process over a real store, for tests: what is stored, and the process as the collector runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from evidence_tables import row, slot
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.ledger.rollup import Rollup
from flopwatch_collector.rules import Cause
from flopwatch_collector.telemetry.remote import ReadServer
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.rows import Bucket

HOSTILE: Final = "</title><script>window.hurt=1</script>'\"{{7*7}}"
METRICS: Final = """\
# HELP flopwatch_rows_total Rows.
# TYPE flopwatch_rows_total counter
flopwatch_rows_total 7.0
"""
AGENTS: Final[list[dict[str, Any]]] = [
    {
        "cluster": "atlas", "node": "n0", "version": "0.1.0", "heard_unix_ms": 1_800_000_000_000,
        "driver_state": None, "clock_skew_ms": -12, "spool_batches": 3, "left": False,
    },
    {"cluster": "home", "node": "host", "version": "", "heard_unix_ms": 1_800_000_000_000},
]  # fmt: skip
SPAN_MS: Final = 20 * 60_000


@dataclass(slots=True, kw_only=True)
class Web:
    """A running web process. Attributes: end: the newest boundary that every row reaches, Unix ms."""

    url: str
    process: subprocess.Popen[bytes]
    directory: Path
    end: int

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return httpx.get(self.url + path, params=parameters or None, timeout=30, trust_env=False)


def put(
    store: TelemetryStore, cluster: str, table: str, records: Sequence[Mapping[str, Any]], now: int
) -> None:
    known = TABLES[table].columns
    names = {n for r in records for n in r if n in known}
    columns: dict[str, Any] = {n: [r.get(n) for r in records] for n in names}
    columns |= {"cluster": [cluster] * len(records), "stored_unix_ms": [now] * len(records)}
    if table != "interval":
        store.append(table, columns)
        return
    columns |= {"not_supported": [["nvlink_tx_bytes"]] * len(records)}
    columns |= {"failed": [["energy_joules"]] * len(records)}
    minutes = {(cluster, r["start_unix_ms"] // 60_000 * 60_000) for r in records}
    store.marks.mark(minutes, now)
    store.append(table, columns)
    store.marks.settle(minutes, now)


def fill(store: TelemetryStore, now: int) -> int:
    """Store three clusters: cards, simulated cards with hostile names, and a processor."""
    end = now // 10_000 * 10_000
    start = end - SPAN_MS
    starts = range(start, end, 10_000)
    for name, simulated, kind, nodes in (
        ("atlas", False, "gpu", ("n0", "n1")),
        (HOSTILE, True, "gpu", (f"{HOSTILE}-0", "m10", "m2")),
        ("home", False, "cpu", ("host",)),
    ):
        slots = [
            slot(node, f"s{i}", start, device_kind=kind, simulated=simulated)
            for node in nodes
            for i in range(2 if kind == "gpu" else 1)
        ]
        put(store, name, "slot", slots, now)
        rows = [r for s in slots for at in starts for r in _rows(at, s, kind, simulated)]
        put(store, name, "interval", rows, now)
    event = {
        "node": "n0", "slot": "s0", "time_unix_ms": end - 60_000, "kind": "xid", "code": 79,
        "severity": "critical", "text": HOSTILE, "simulated": False,
    }  # fmt: skip
    put(store, "atlas", "event", [event], now)
    gap = {
        "spool_id": "a", "first_seq": 3, "last_seq": 4, "node": "n0", "rows": 10, "bytes": 100,
        "first_unix_ms": end - 50_000, "last_unix_ms": end - 40_000, "reason": "spool_full",
        "simulated": False,
    }  # fmt: skip
    put(store, "atlas", "gap", [gap], now)
    rollup, at = Rollup(store), now
    while rollup.run(at):
        at += 1
    return end


def _rows(at: int, of: Mapping[str, Any], kind: str, simulated: bool) -> list[dict[str, Any]]:
    place: dict[str, Any] = {
        "node": of["node"],
        "name": of["slot"],
        "simulated": simulated,
        "device_kind": kind,
    }
    if kind == "cpu":
        made = row(at, Bucket.ACTIVE, **place)
        made.pop("capacity_flops")
        return [made | {"achievable_flops": 1e12, "model_flops": 4e11, "sku": "A processor"}]
    if of["node"] == "n1" and of["slot"] == "s1":
        return [row(at, Bucket.FREE, **place)]
    if of["node"] == "m2":
        return [row(at, Bucket.FAILED if of["slot"] == "s1" else Bucket.IDLE_ALLOC, **place)]
    job = HOSTILE if simulated else "llama"
    return [row(at, sm=0.9, tensor=0.4, job=job, team="t", power_watts_max=600.0, **place)]


def outages(now: int) -> list[IncidentState]:
    """Return a firing and a standing outage."""
    firing = IncidentState(
        rule="allocation", cluster="atlas", state=State.FIRING, episode="2026-11-01T00:00Z",
        began_unix_ms=now - 23 * 60_000, fired_unix_ms=now - 20 * 60_000, last_eval_unix_ms=now,
        value=0.9596, lo=0.95, hi=0.9596, line=0.96, severity="critical",
        lost_points={"MISSING": 1.6, "FREE": 2.44}, ack_by=HOSTILE,
        causes=(Cause(kind="node", name=HOSTILE, cards=2.0, points=1.0),),
    )  # fmt: skip
    standing = IncidentState(
        rule="mfu", cluster="atlas", state=State.STANDING, episode="2026-10-30T00:00Z",
        began_unix_ms=now - 90_000_000, fired_unix_ms=now - 90_000_000, last_eval_unix_ms=now,
        lo=0.288, hi=0.4, line=0.6, lost_points={"sm_idle": 10.0},
    )  # fmt: skip
    return [firing, standing]


@contextlib.contextmanager
def running(directory: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the web process as the collector does, and close its pipe at the end."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "flopwatch_collector.web", "--data", str(directory)),
            *("--http", "127.0.0.1:0", "--control", f"sqlite:///{directory}/control.db", *more),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def said(process: subprocess.Popen[bytes]) -> str:
    """Return the URL of the first line."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as ready:  # select() knows no descriptor above 1,023
        ready.register(process.stdout, selectors.EVENT_READ)
        ready.select(60)
    url: str = json.loads(process.stdout.readline())["http"]
    return url


@contextlib.contextmanager
def reads(store: TelemetryStore, directory: Path, ingest: str) -> Iterator[None]:
    """Serve reads of a store from a thread, as the collector does from its loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = ReadServer(
        store,
        directory / "read.sock",
        status=lambda: {"ingest": ingest, "dirty_minutes": 0},
        metrics=lambda: METRICS,
        agents=lambda: AGENTS,
    )
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()

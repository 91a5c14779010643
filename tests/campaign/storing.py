"""A collector's ingest, embedded store, control store and sender of pages: a process of `campaign.delivery`.

Says where it listens. SIGTERM: decides no more pages, sends those that wait, drains, and writes what the
stores hold and what the audit says to ``held.json`` beside them.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from campaign import points, seeded
from campaign.collecting import Nobody
from campaign.pager import Pager
from flopwatch_collector.audit import balance
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry.store import TelemetryStore


def held_by(store: TelemetryStore) -> dict[str, Any]:
    """Return what a store holds of every node, and the audit's word on every spool."""
    rows = store.query(
        "SELECT node, groupArray(start_unix_ms) AS starts, groupArray(sm_active_ms) AS values "
        "FROM interval FINAL GROUP BY node"
    )
    gaps = store.query("SELECT node, first_seq, last_seq FROM gap FINAL")
    aside = store.query("SELECT node, seq FROM quarantine FINAL")
    return {
        "rows": {row["node"]: (row["starts"], row["values"]) for row in rows.to_pylist()},
        "gaps": gaps.to_pylist(),
        "quarantined": aside.to_pylist(),
        "audit": [asdict(each) for each in balance.read(store, 0)],
    }


async def collect(address: str, home: Path, receiver: str) -> None:
    """Serve until SIGTERM."""
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    store = TelemetryStore.open(f"chdb://{home / 'store'}")
    server = IngestServer(store, cast(Any, Nobody()), registry=CollectorRegistry())
    port = await server.start(address)
    pager = Pager(home, receiver)
    paging = asyncio.create_task(pager.run())
    sys.stdout.write(f"listening {address.rpartition(':')[0]}:{port}\n")
    sys.stdout.flush()
    leaving = asyncio.create_task(ending.wait())
    await asyncio.wait({leaving, paging}, return_when=asyncio.FIRST_COMPLETED)
    pages = await pager.finish(paging)
    await server.stop()
    (home / "held.json").write_text(json.dumps({**held_by(store), "pages": pages}))
    sys.stdout.write("held all\n")
    sys.stdout.flush()
    store.close()


def main(address: str, home: str, receiver: str, point: str, bug: str) -> None:
    """Run one; ``point``: where it kills itself, as `points.arm` takes it; ``bug``: of `seeded`, or empty."""
    points.arm(point)
    if bug:
        seeded.apply(bug)
    asyncio.run(collect(address, Path(home), receiver))

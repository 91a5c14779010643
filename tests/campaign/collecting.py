"""``python -m campaign.collecting ADDRESS DATA``: a collector's ingest and store, in one process.

Prints its address. SIGTERM: drains, and prints as JSON what the store holds.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from typing import Any, cast

from prometheus_client import CollectorRegistry

from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry.store import TelemetryStore


class Nobody:
    """Live state that looks at nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


async def collect(address: str, data: str) -> None:
    """Serve until SIGTERM."""
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    store = TelemetryStore.open(f"chdb://{data}")
    server = IngestServer(store, cast(Any, Nobody()), registry=CollectorRegistry())
    port = await server.start(address)
    sys.stdout.write(f"listening {address.rpartition(':')[0]}:{port}\n")
    sys.stdout.flush()
    await ending.wait()
    await server.stop()
    rows = store.query(
        "SELECT start_unix_ms, sm_active_ms FROM interval FINAL WHERE node = 'n1' ORDER BY start_unix_ms"
    )
    gaps = store.query("SELECT count() AS n FROM gap").to_pylist()[0]["n"]
    held = {name: rows[name].to_pylist() for name in ("start_unix_ms", "sm_active_ms")}
    sys.stdout.write(f"held {json.dumps({**held, 'gaps': gaps})}\n")
    sys.stdout.flush()
    store.close()


if __name__ == "__main__":
    asyncio.run(collect(sys.argv[1], sys.argv[2]))

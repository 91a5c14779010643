"""``python -m campaign.serving ADDRESS DATA [PKI [KEEPALIVE]]``: a collector for faults around it.

Prints its address. SIGTERM: drains, and prints as JSON what the store holds, as `storing.held_by`.

PKI: a directory with authority.pem, certificate.pem and key.pem, for mTLS; without one, clear text.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any, cast

import grpc
from prometheus_client import CollectorRegistry

from campaign.collecting import Nobody
from campaign.keepalive import shorten
from campaign.storing import held_by
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto import logs


def credentials(directory: Path) -> grpc.ServerCredentials:
    """Return what asks every client for a certificate of the authority."""
    read = (directory / name for name in ("authority.pem", "certificate.pem", "key.pem"))
    authority, certificate, key = (path.read_bytes() for path in read)
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


async def serve(address: str, data: str, pki: str = "", keepalive: str = "") -> None:
    """Serve until SIGTERM."""
    if keepalive:
        shorten(float(keepalive))
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    logs.configure()
    store = TelemetryStore.open(f"chdb://{data}")
    secured = credentials(Path(pki)) if pki else None
    registry = CollectorRegistry()
    server = IngestServer(store, cast(Any, Nobody()), registry=registry, credentials=secured)
    port = await server.start(address)
    sys.stdout.write(f"listening {address.rpartition(':')[0]}:{port}\n")
    sys.stdout.flush()
    await ending.wait()
    await server.stop()
    sys.stdout.write(f"held {json.dumps(held_by(store))}\n")
    sys.stdout.flush()
    store.close()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))

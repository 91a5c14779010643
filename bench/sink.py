"""A collector that stores nothing: it acknowledges whatever comes, and counts it.

    .venv/bin/python bench/sink.py [--tls DIRECTORY]

By itself it says where it listens, and serves until it is ended: what gRPC alone costs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from flopwatch_collector.listen import SERVER_OPTIONS
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc as pb_grpc

CREDIT_BATCHES = 64
CREDIT_BYTES = 16 << 20


@dataclass(slots=True)
class Counted:
    """What came. Attributes: frame_bytes: serialised frames, without gRPC's own framing."""

    port: int = 0
    batches: int = 0
    rows: int = 0
    frame_bytes: int = 0


class Sink(pb_grpc.IngestServicer):
    """The servicer."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    async def Stream(
        self, request_iterator: AsyncIterator[pb.AgentFrame], context: object
    ) -> AsyncIterator[pb.CollectorFrame]:
        """Welcome, then an Ack for each batch and gap."""
        async for frame in request_iterator:
            kind = frame.WhichOneof("frame")
            if kind == "hello":
                welcome = pb.Welcome(
                    session="bench",
                    credit_batches=CREDIT_BATCHES,
                    credit_bytes=CREDIT_BYTES,
                    max_batch_bytes=CREDIT_BYTES,
                )
                yield pb.CollectorFrame(welcome=welcome)
            elif kind in ("batch", "gap"):
                self._counted.batches += kind == "batch"
                self._counted.rows += frame.batch.row_count
                self._counted.frame_bytes += frame.ByteSize()
                through = frame.batch.seq if kind == "batch" else frame.gap.last_seq
                ack = pb.Ack(through_seq=through, credit_batches=CREDIT_BATCHES)
                yield pb.CollectorFrame(ack=ack)


@asynccontextmanager
async def sink(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Counted]:
    """Serve on a free port of the loopback interface, with the collector's own options."""
    counted = Counted()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    pb_grpc.add_IngestServicer_to_server(Sink(counted), server)
    if credentials is None:
        counted.port = server.add_insecure_port("127.0.0.1:0")
    else:
        counted.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield counted
    finally:
        await server.stop(1)


def _credentials(directory: Path) -> grpc.ServerCredentials:
    """Return those that bench/collector.py left in a directory: each side shows a certificate."""
    key, certificate, authority = (
        (directory / name).read_bytes()
        for name in ("server/key.pem", "server/certificate.pem", "ca.pem")
    )
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


async def _serve(directory: Path | None) -> None:
    async with sink(None if directory is None else _credentials(directory)) as counted:
        sys.stdout.write(f"ingest 127.0.0.1:{counted.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tls", type=Path)
    asyncio.run(_serve(parser.parse_args().tls))

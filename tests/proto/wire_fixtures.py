"""The golden wire: frames as a release sends them. `wire_fixtures.py VERSION` writes them once.

A release's folder is never written again: what its agents send stays what later collectors must take.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Final

import zstandard

from flopwatch_proto import codec
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

FIXTURES: Final = Path(__file__).parent / "fixtures"
START_MS: Final = 1_767_225_600_000


def payload() -> pb.Payload:
    """One row with values, absences and texts; a host, an event, a declaration, a roster, a probe."""
    row = IntervalRow(
        slot="0",
        start_unix_ms=START_MS,
        duration_ms=10_000,
        bucket=Bucket.ACTIVE,
        texts={"job": "j-17", "team": "vision", "sku": "NVIDIA H100 80GB HBM3"},
        card_times={"card_ms": 10_000, "covered_ms": 10_000},
        values={
            "sm_active_ms": 9_000.5,
            "energy_joules": 6_900.25,
            "fp64_active_ms": Absence.NOT_SUPPORTED,
            "hmma_active_ms": Absence.FAILED,
        },
    )
    return pb.Payload(
        intervals=codec.encode_rows([row]),
        hosts=pb.HostRows(start_unix_ms=[START_MS], duration_ms=[10_000], cpu_count=[192.0]),
        slots=[pb.SlotDeclaration(slot="0", state=pb.SLOT_STATE_IN_SERVICE, from_unix_ms=START_MS)],
        events=[pb.Event(slot="0", time_unix_ms=START_MS, kind="xid", code=79, severity="fatal")],
        probes=[pb.Probe(slot="0", start_unix_ms=START_MS, kind="gemm", seconds=1.5)],
        rosters=[
            pb.Roster(
                source="slurm",
                taken_unix_ms=START_MS,
                valid_until_unix_ms=START_MS + 300_000,
                strings=["", "n1", "0", "j-17"],
                node=[1],
                slot=[2],
                bucket=[pb.BUCKET_ALLOCATED],
                job=[3],
                weight=[1.0],
            )
        ],
    )


def plain_batch(seq: int) -> pb.Batch:
    """A batch with columns that are not packed, and no dictionary."""
    raw = payload().SerializeToString(deterministic=True)
    return pb.Batch(
        seq=seq,
        row_count=1,
        first_unix_ms=START_MS,
        last_unix_ms=START_MS + 10_000,
        sha256_16=hashlib.sha256(raw).digest()[:16],
        raw_bytes=len(raw),
        payload=zstandard.compress(raw),
    )


def frames() -> dict[str, pb.AgentFrame | pb.CollectorFrame]:
    """Every kind of frame, by its file's name."""
    packed = codec.pack(payload())
    packed.seq, packed.rows_before = 2, 1
    totals = pb.SpoolTotals(next_seq=3, acked_seq=1, acked_rows=1, produced_rows=2, dropped_rows=0)
    status = pb.Status(
        taken_unix_ms=START_MS,
        spool_batches=1,
        driver_state="ok",
        newest=payload().intervals,
        totals=totals,
    )
    hello = pb.Hello(
        protocol_revision=1,
        agent_version="0.1.0",
        cluster="atlas",
        node_id="n1",
        boot_id="b",
        spool_id="5" * 32,
        next_seq=3,
        wall_unix_ns=START_MS * 1_000_000,
        boottime_ns=1,
        totals=totals,
    )
    gap = pb.Gap(first_seq=3, last_seq=9, row_count=64, bytes=4096, reason="spool_full")
    ack = pb.Ack(through_seq=2, stored_rows=1, credit_batches=32, credit_bytes=4_194_304)
    reject = pb.Reject(seq=2, code="bad_rows", permanent=True, message="m")
    return {
        "agent-hello": pb.AgentFrame(hello=hello),
        "agent-batch-plain": pb.AgentFrame(batch=plain_batch(1)),
        "agent-batch-packed": pb.AgentFrame(batch=packed),
        "agent-gap": pb.AgentFrame(gap=gap),
        "agent-status": pb.AgentFrame(status=status),
        "agent-goodbye": pb.AgentFrame(goodbye=pb.Goodbye(reason="upgrade", back_in_ms=5_000)),
        "collector-welcome": pb.CollectorFrame(
            welcome=pb.Welcome(session="s", oldest_start_unix_ms=1, credit_batches=32)
        ),
        "collector-ack": pb.CollectorFrame(ack=ack),
        "collector-reject": pb.CollectorFrame(reject=reject),
        "collector-drain": pb.CollectorFrame(drain=pb.Drain(reconnect_after_ms=1_500)),
        "collector-capture": pb.CollectorFrame(
            capture=pb.CaptureRequest(id="c", from_unix_ms=1, to_unix_ms=2, slots=["0"])
        ),
    }


def write(version: str) -> None:
    """Write the folder of a release.

    Raises:
        FileExistsError: it is there already.
    """
    folder = FIXTURES / version
    folder.mkdir(parents=True)
    for name, frame in frames().items():
        (folder / f"{name}.binpb").write_bytes(frame.SerializeToString(deterministic=True))
    contract = Path(pb.__file__).with_name("descriptor.binpb")
    shutil.copyfile(contract, folder / "descriptor.binpb")


if __name__ == "__main__":
    write(sys.argv[1])

"""``python -m campaign.fuzz [RUNS [SEED]]``: what comes off the wire, by a fuzzer that follows coverage.

It needs `atheris`, no dependency of anything else: ``pip install atheris``. Half of its inputs are
frames, half payloads in a batch whose hash and size are right. They go the way of ingest until the commit:
a frame is taken, refused as one that is wrong for ever, or unreadable; anything else ends the run.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
import zstandard

with atheris.instrument_imports(include=["flopwatch_proto", "flopwatch_collector.telemetry"]):
    from flopwatch_collector.telemetry import arrival, columns, payload
    from flopwatch_proto import codec, packed

from google.protobuf.message import DecodeError

from campaign import malformed
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb

__all__ = ["columns", "packed", "payload"]

NOW_UNIX_MS = 1_790_000_000_000
ORIGIN = arrival.Origin(cluster="atlas", node="n1", simulated=False, spool_id="f" * 32)


def sealed(raw: bytes) -> pb.AgentFrame:
    """Return a batch whose hash and size are right, whatever it holds."""
    batch = pb.Batch(seq=1, raw_bytes=len(raw), payload=zstandard.compress(raw))
    batch.sha256_16 = hashlib.sha256(raw).digest()[:16]
    return pb.AgentFrame(batch=batch)


def take(frame: pb.AgentFrame) -> None:
    """Do with a frame what ingest does before it is queued, and what the commit would find."""
    match frame.WhichOneof("frame"):
        case "batch":
            arrived = arrival.of_batch(ORIGIN, frame.batch, NOW_UNIX_MS)
            arrival.unfit(arrived, NOW_UNIX_MS)
        case "gap":
            arrival.of_gap(ORIGIN, frame.gap)
        case "status":
            codec.decode_rows(frame.status.newest)


def one(data: bytes) -> None:
    """Take one input as a frame, or as a payload; its first byte says which."""
    try:
        frame = sealed(data[1:]) if data[:1] < b"\x80" else pb.AgentFrame.FromString(data[1:])
        take(frame)
    except (DecodeError, PermanentError):
        pass


def corpus(directory: Path) -> None:
    """Write sound inputs to begin with."""
    frames = malformed.seeds(NOW_UNIX_MS)
    for number, frame in enumerate(frames):
        (directory / f"frame{number}").write_bytes(b"\xff" + frame)
        batch = pb.AgentFrame.FromString(frame).batch
        if batch.payload and batch.payload != malformed.BOMB:
            inside = codec.opened(batch).SerializeToString()
            (directory / f"payload{number}").write_bytes(b"\0" + inside)


def main(runs: int, seed: int) -> None:
    """Run until something is wrong; the fuzzer ends the process itself."""
    directory = Path(tempfile.mkdtemp())
    corpus(directory)
    options = [
        f"-runs={runs}",
        f"-seed={seed}",
        "-max_len=8192",
        "-timeout=30",
        "-rss_limit_mb=4096",
    ]
    if os.environ.get("FUZZ_ARTIFACTS"):
        options.append(f"-artifact_prefix={os.environ['FUZZ_ARTIFACTS']}/")
    atheris.Setup([sys.argv[0], *options, str(directory)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    main(*(chosen + [10_000_000, 1][len(chosen) :]))

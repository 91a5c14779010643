"""``python -m campaign.recorder FILE``: a collector that only writes down what it acknowledged.

It prints its address, and writes every batch and gap that came, in order, when it is ended by SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from fake_collector import FakeCollector
from flopwatch_proto.v1 import telemetry_pb2 as pb

_LENGTH_BYTES = 4


async def record(path: Path) -> None:
    """Collect until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    collector = FakeCollector()
    await collector.start()
    sys.stdout.write(f"listening {collector.target}\n")
    sys.stdout.flush()
    await ended.wait()
    await collector.kill()
    with path.open("wb") as file:
        for frame in collector.seen:
            if frame.HasField("batch") or frame.HasField("gap"):
                body = frame.SerializeToString()
                file.write(len(body).to_bytes(_LENGTH_BYTES, "little") + body)


def recorded(path: Path) -> list[pb.AgentFrame]:
    """Return the frames that a recorder wrote."""
    data, frames = path.read_bytes(), []
    while data:
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        frames.append(pb.AgentFrame.FromString(data[_LENGTH_BYTES:end]))
        data = data[end:]
    return frames


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))

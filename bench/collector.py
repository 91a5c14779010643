"""What a fleet costs a collector: simulated nodes of 8 cards, live, rows of 10 s.

    .venv/bin/python bench/collector.py [--nodes 1000] [--seconds 90]

The collector is the real one, with its embedded store, rollups, rules and dashboard process. After the
measured span, one more node sends 8 rows a second beside the fleet, and times each acknowledgement.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import grpc.aio
import psutil
from measure import FLOPWATCH, Cost, costs, machine, write

from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_proto import codec, rows
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc as pb_grpc

CARDS: Final = 8
READY_S_MAX: Final = 60.0
ACKS: Final = 60
SETTLE_S: Final = 30.0
SCENARIO: Final = """
[scenario]
seed = 1
duration = "endless"
interval = "10s"

[[cluster]]
name = "bench"
sku = "NVIDIA H100 80GB HBM3"
nodes = {nodes}
cards_per_node = 8

[[cluster.phase]]
state = "active"
nodes = "*"
job = "llama-70b"
team = "pretraining"
sm_active = 0.92
tensor_active = 0.46
dram_active = 0.35
power_watts = 610
throttle = {{ power = 0.08 }}
declared_mfu = 0.36
noise = 0.02
"""
_REMARKS: Final = (
    "Simulator and collector share the machine's cores; CPU is that of the named process only, in percent "
    "of one core.",
    "A value is a card-time or a quantity that is not null; keys, texts and buckets are not counted.",
    "Bytes are those that TCP delivered to the ingest port (`ss`), HTTP/2 and gRPC framing included.",
    "`ack_ms` is from the write of a batch to its acknowledgement after fsync, by one more node.",
)


async def measure(nodes: int, seconds: float) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        async with (
            _collector(directory) as (collector, ingest),
            _fleet(directory, nodes, ingest) as simulator,
        ):
            reader = RemoteStore(directory / "data/read.sock")
            await _streams(reader, nodes)
            await asyncio.sleep(SETTLE_S)
            return await _figures(collector, simulator, ingest, reader, seconds)


async def _figures(
    collector: int, simulator: int, ingest: str, reader: RemoteStore, seconds: float
) -> dict[str, Any]:
    before, received, started = await _metrics(reader), _received(ingest), time.monotonic()
    found, simulated = await asyncio.gather(
        asyncio.to_thread(costs, collector, seconds), asyncio.to_thread(costs, simulator, seconds)
    )
    lasted = time.monotonic() - started
    after, received = await _metrics(reader), _received(ingest) - received
    acks = sorted(await _ack_times_ms(ingest, ACKS))  # afterwards: its rows are not the fleet's
    stored = _difference(before, after, "flopwatch_ingest_rows_total")
    commits = _difference(before, after, "flopwatch_ingest_commit_seconds_count")
    commit_s = _difference(before, after, "flopwatch_ingest_commit_seconds_sum")
    values = stored * await asyncio.to_thread(_values_per_row, reader)
    cpu_s = sum(cost.cpu_percent for cost in found.values()) / 100 * lasted
    return {
        "streams": int(after["flopwatch_ingest_streams"]),
        "rows_per_s": round(stored / lasted, 1),
        "values_per_s": round(values / lasted),
        "values_per_cpu_s": round(values / cpu_s) if cpu_s else None,
        "bytes_per_row": round(received / stored, 1) if stored else None,
        "bytes_per_value": round(received / values, 2) if values else None,
        "commits_per_s": round(commits / lasted, 2),
        "commit_mean_ms": round(1000 * commit_s / commits, 1) if commits else None,
        "ack_ms": {"p50": _quantile(acks, 0.5), "p99": _quantile(acks, 0.99), "max": acks[-1]},
        **{_role(pid, collector): asdict(cost) for pid, cost in found.items()},
        "simulator": asdict(simulated[simulator]),
        "free_cores": round(_idle(found, simulated), 2),
    }


def _idle(*found: dict[int, Cost]) -> float:
    used = sum(cost.cpu_percent for costs_ in found for cost in costs_.values()) / 100
    return (psutil.cpu_count() or 1) - used


def _role(pid: int, collector: int) -> str:
    if pid == collector:
        return "main"
    return "web" if "web" in " ".join(psutil.Process(pid).cmdline()) else f"child_{pid}"


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# ---- the processes ------------------------------------------------------------------------------


@asynccontextmanager
async def _collector(directory: Path) -> AsyncIterator[tuple[int, str]]:
    """Run a collector; yield its pid and ingest address when its dashboard serves, too."""
    data = ("--data", str(directory / "data"))
    listen = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with (directory / "collector.log").open(
        "wb"
    ) as log:  # it tells of every node that comes or goes
        process = await asyncio.create_subprocess_exec(
            *(FLOPWATCH, "collector", *data, *listen), stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    said: dict[str, str] = {}
    try:
        async with asyncio.timeout(READY_S_MAX):
            while not {"ingest", "dashboard"} <= said.keys():
                line = (await process.stdout.readline()).decode()
                if not line:
                    sys.exit((directory / "collector.log").read_text(encoding="utf-8"))
                name, _, value = line.strip().partition(" ")
                said[name] = value
        yield process.pid, said["ingest"]
    finally:
        await _end(process)


@asynccontextmanager
async def _fleet(directory: Path, nodes: int, ingest: str) -> AsyncIterator[int]:
    scenario = directory / "scenario.toml"
    scenario.write_text(SCENARIO.format(nodes=nodes), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(FLOPWATCH, "simulate", "--collector", ingest, "--scenario", str(scenario))
    )
    try:
        yield process.pid
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()


# ---- what they say ------------------------------------------------------------------------------


async def _metrics(reader: RemoteStore) -> dict[str, float]:
    text = await asyncio.to_thread(reader.metrics)
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines if "{" not in name}


def _difference(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before[name]


async def _streams(reader: RemoteStore, nodes: int) -> None:
    """Wait until every node has its stream; the scheduler of the cluster has one, too."""
    async with asyncio.timeout(READY_S_MAX * 3):
        while (await _metrics(reader))["flopwatch_ingest_streams"] < nodes:
            await asyncio.sleep(1)


def _received(ingest: str) -> int:
    """Bytes that TCP delivered to open connections of the ingest port."""
    port = ingest.rpartition(":")[2]
    done = subprocess.run(
        ["ss", "-tinH", f"sport = :{port}"], capture_output=True, text=True, check=True
    )
    return sum(int(count) for count in re.findall(r"bytes_received:(\d+)", done.stdout))


def _values_per_row(reader: RemoteStore) -> float:
    """Values of a row on average: card-times, and quantities that are not null."""
    known = " + ".join(f"isNotNull({name})" for name in rows.QUANTITY_NAMES)
    sql = f"SELECT avg({known}) AS known FROM interval WHERE cluster = 'bench'"
    return float(reader.query(sql).column("known")[0].as_py()) + len(rows.CARD_TIMES)


# ---- one more node ------------------------------------------------------------------------------


async def _ack_times_ms(ingest: str, count: int) -> list[float]:
    """Send a batch of 8 rows each second; return how long each waited for its acknowledgement."""
    waited: list[float] = []
    hello = pb.Hello(
        protocol_revision=1,
        cluster="bench-acks",
        node_id="probe",
        simulated=True,
        spool_id=f"{time.monotonic_ns():032x}",
        next_seq=1,
        wall_unix_ns=time.time_ns(),
    )
    async with grpc.aio.insecure_channel(ingest) as channel:
        stub: Any = pb_grpc.IngestStub(channel)
        call = stub.Stream()
        await call.write(pb.AgentFrame(hello=hello))
        await call.read()
        for seq in range(1, count + 1):
            batch = _batch(seq)
            started = time.monotonic()
            await call.write(pb.AgentFrame(batch=batch))
            while (await call.read()).ack.through_seq < seq:
                pass
            waited.append(round(1000 * (time.monotonic() - started), 1))
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - started)))
        await call.done_writing()
    return waited


def _batch(seq: int) -> pb.Batch:
    batch = codec.pack(pb.Payload(intervals=codec.encode_rows([*_rows(seq)])))
    batch.seq = seq
    batch.rows_before = CARDS * (seq - 1)
    return batch


def _rows(seq: int) -> Iterator[IntervalRow]:
    start = time.time_ns() // 1_000_000 - 10_000
    for card in range(CARDS):
        yield IntervalRow(
            slot=f"card-{card}",
            start_unix_ms=start,
            duration_ms=1000,
            bucket=Bucket.ACTIVE,
            card_times={"card_ms": 1000, "covered_ms": 1000},
            values={"energy_joules": 600.0 + seq},
        )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=90.0)
    given = parser.parse_args()
    on = machine()
    command = f"python bench/collector.py --nodes {given.nodes} --seconds {given.seconds:g}"
    result = asyncio.run(measure(given.nodes, given.seconds))
    write("collector", "Cost of the collector", command, on, result, _REMARKS)


if __name__ == "__main__":
    main()

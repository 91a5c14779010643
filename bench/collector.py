"""What a fleet costs a collector: nodes of 8 cards, live, a batch every 10 s with rows of 10 s or of 1 s.

    .venv/bin/python bench/collector.py [--nodes 10000] [--seconds 60] [--resolution 10] [--tls]

The collector is the real one, with its embedded store, rollups, rules and dashboard process. The nodes
are those of bench/fleet.py, which also times every acknowledgement. With --tls each shows a certificate.
Before it the same nodes send to bench/sink.py, which stores nothing: machines differ, and what a batch
costs gRPC alone on this one is what the collector is to be measured by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil
from fleet import CLUSTER, node_name
from measure import ROOT, Cost, collecting, costs, ended, machine, write

from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_proto import rows

sys.path.append(str(ROOT / "tests"))
from pki import Pki

CONNECT_S_MAX: Final = 300.0
SETTLE_S: Final = 30.0
BARE_S: Final = 30.0
_REMARKS: Final = (
    "Fleet and collector share the machine's cores; CPU is that of the named process only, in percent "
    "of one core.",
    "A value is a card-time or a quantity that is not null; keys, texts and buckets are not counted.",
    "Bytes are those of batches with their HTTP/2 and gRPC framing; of TCP and TLS nothing is counted.",
    "`grpc_alone` is bench/sink.py under the same nodes: the same options, messages read and acknowledged.",
    "`ack_ms` is from the write of a batch to its acknowledgement after fsync, of every batch of every node.",
)


async def measure(nodes: int, seconds: float, resolution: int, tls: bool) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        if tls:
            _certificates(directory, nodes)
        bare = await _bare(directory, nodes, resolution, tls)
        async with (
            collecting(directory) as (main_pid, ingest, _),
            _fleet(directory, nodes, seconds, resolution, ingest, tls) as fleet,
        ):
            reader = RemoteStore(directory / "data/read.sock")
            figures = await _figures(main_pid, fleet, reader, seconds)
    times = figures["main"]["cpu_percent"] / bare.cpu_percent
    return {**figures, "grpc_alone": asdict(bare), "cpu_times_grpc_alone": round(times, 2)}


async def _bare(directory: Path, nodes: int, resolution: int, tls: bool) -> Cost:
    """Return what the same batches cost a server that acknowledges them and stores nothing."""
    secure = ("--tls", str(directory)) if tls else ()
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("sink.py")), *secure), stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        ingest = (await server.stdout.readline()).decode().removeprefix("ingest ").strip()
        async with _fleet(directory, nodes, BARE_S, resolution, ingest, tls) as fleet:
            await _said(fleet)
            await asyncio.sleep(SETTLE_S)
            found = await asyncio.to_thread(costs, server.pid, BARE_S)
        return found[server.pid]
    finally:
        await ended(server)


async def _figures(
    main_pid: int, fleet: asyncio.subprocess.Process, reader: RemoteStore, seconds: float
) -> dict[str, Any]:
    connected = await _said(fleet)
    await asyncio.sleep(SETTLE_S)
    await _report(fleet)  # what came before is not counted
    before, started = await _metrics(reader), time.monotonic()
    found, senders = await asyncio.gather(
        asyncio.to_thread(costs, main_pid, seconds), asyncio.to_thread(costs, fleet.pid, seconds)
    )
    lasted = time.monotonic() - started
    after, said = await _metrics(reader), await _report(fleet)
    stored = _difference(before, after, "flopwatch_ingest_rows_total")
    commits = _difference(before, after, "flopwatch_ingest_commit_seconds_count")
    commit_s = _difference(before, after, "flopwatch_ingest_commit_seconds_sum")
    per_row = await asyncio.to_thread(_values_per_row, reader)
    values = stored * per_row
    cpu_s = sum(cost.cpu_percent for cost in found.values()) / 100 * lasted
    sent_values = said["acks"] * said["rows_per_batch"] * per_row
    return {
        "streams": int(after["flopwatch_ingest_streams"]),
        "connect_s": connected["connect_s"],
        "batches_acknowledged": said["acks"],
        "errors": said["error_count"],
        "rows_per_s": round(stored / lasted, 1),
        "values_per_s": round(values / lasted),
        "values_per_cpu_s": round(values / cpu_s) if cpu_s else None,
        "bytes_per_value": round(said["sent_bytes"] / sent_values, 2) if sent_values else None,
        "commits_per_s": round(commits / lasted, 2),
        "commit_mean_ms": round(1000 * commit_s / commits, 1) if commits else None,
        "ack_ms": said["ack_ms"],
        **{_role(pid, main_pid): asdict(cost) for pid, cost in found.items()},
        "fleet": asdict(senders[fleet.pid]),
    }


def _role(pid: int, main_pid: int) -> str:
    if pid == main_pid:
        return "main"
    return "web" if "web" in " ".join(psutil.Process(pid).cmdline()) else f"child_{pid}"


# ---- the processes ------------------------------------------------------------------------------


@asynccontextmanager
async def _fleet(
    directory: Path, nodes: int, seconds: float, resolution: int, ingest: str, tls: bool
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("fleet.py")), ingest),
        *("--nodes", str(nodes), "--resolution", str(resolution)),
        *("--seconds", str(2 * SETTLE_S + seconds)),
        *(("--tls", str(directory)) if tls else ()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        await ended(process)


def _certificates(directory: Path, nodes: int) -> None:
    """Write an authority, the collector's certificate and one for each node, and a configuration."""
    pki = Pki()
    (directory / "ca.pem").write_bytes(pki.authority)
    for number in range(nodes):
        pair = pki.node(CLUSTER, node_name(number))
        path = directory / f"{node_name(number)}.pem"
        path.write_bytes(pair.certificate + pair.key)
    certificate, key = pki.server().write(directory / "server")
    (directory / "collector.toml").write_text(
        f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\nauthority = "{directory / "ca.pem"}"\n',
        encoding="utf-8",
    )


async def _said(fleet: asyncio.subprocess.Process) -> dict[str, Any]:
    assert fleet.stdout is not None
    async with asyncio.timeout(CONNECT_S_MAX):
        said: dict[str, Any] = json.loads(await fleet.stdout.readline())
    return said


async def _report(fleet: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return what the fleet saw since the last report."""
    assert fleet.stdin is not None
    fleet.stdin.write(b"\n")
    await fleet.stdin.drain()
    return await _said(fleet)


# ---- what they say ------------------------------------------------------------------------------


async def _metrics(reader: RemoteStore) -> dict[str, float]:
    text = await asyncio.to_thread(reader.metrics)
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines if "{" not in name}


def _difference(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before[name]


def _values_per_row(reader: RemoteStore) -> float:
    """Values of a row on average: card-times, and quantities that are not null."""
    known = " + ".join(f"isNotNull({name})" for name in rows.QUANTITY_NAMES)
    sql = f"SELECT avg({known}) AS known FROM interval WHERE cluster = 'bench'"
    return float(reader.query(sql).column("known")[0].as_py()) + len(rows.CARD_TIMES)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--resolution", type=int, choices=(1, 10), default=10)
    parser.add_argument("--tls", action="store_true")
    given = parser.parse_args()
    on = machine()
    command = f"python bench/collector.py --nodes {given.nodes} --seconds {given.seconds:g}"
    command += f" --resolution {given.resolution}" + (" --tls" if given.tls else "")
    result = asyncio.run(measure(given.nodes, given.seconds, given.resolution, given.tls))
    name = "collector" + ("_1s" if given.resolution == 1 else "") + ("_tls" if given.tls else "")
    write(name, "Cost of the collector", command, on, result, _REMARKS)


if __name__ == "__main__":
    main()

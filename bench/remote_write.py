"""The same readings into flopwatch, VictoriaMetrics and Prometheus: values per CPU-second, and bytes.

    .venv/bin/python bench/remote_write.py [--nodes 1000] [--periods 8] [--resolution 10]

Each is sent what nodes of 8 cards read in 10 s, period after period, as fast as it takes it. The peers get it
by remote write over one connection: a request per node and reading, with a series for every value of a card.
The collector gets it as agents send it: a stream per node, a batch per node and 10 s. Everything is
made beforehand, so that the sender's cost does not bound the server's: what counts is the CPU time of the
server's processes, of the collector's with its rules, its rollups and its dashboard process. The peers are
Debian's victoria-metrics and prometheus, as they come; all on loopback in clear text.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from fleet import CARDS, Fleet, messages, moved, node_name
from measure import collecting, machine, tree, write

from flopwatch_proto import codec, rows
from flopwatch_proto.v1 import telemetry_pb2 as pb

READY_S_MAX: Final = 30.0
VARIANTS: Final = 50
PERIOD_MS: Final = 10_000
FIRST_UNIX_MS: Final = time.time_ns() // 10_000_000_000 * PERIOD_MS - 3_000_000
HEADERS: Final = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
_TEXTS: Final = ("job", "team", "sku", "device_uuid")
_VALUES: Final = (*(q.name for q in rows.CARD_TIMES), *rows.QUANTITY_NAMES)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _series(message: pb.IntervalRows, node: str) -> list[tuple[bytes, list[float]]]:
    """Return every series of a node's rows: its labels as they are on the wire, and its values in time."""
    by_slot: dict[int, list[int]] = {}
    for i, slot in enumerate(message.slot):
        by_slot.setdefault(slot, []).append(i)
    found = []
    for slot, places in by_slot.items():
        shared = {"node": node, "slot": message.strings[slot], "cluster": "bench"}
        for name in _TEXTS:
            shared[name] = message.strings[getattr(message, name)[places[0]]]
        for name in _VALUES:
            column = getattr(message, name)
            if column:
                labels = {"__name__": f"flopwatch_{name}", **shared}
                wire = b"".join(
                    _field(1, _field(1, key.encode()) + _field(2, text.encode()))
                    for key, text in sorted(labels.items())
                )
                found.append((wire, [float(column[i]) for i in places]))
    return found


def _request(series: list[tuple[bytes, list[float]]], reading: int, unix_ms: int) -> bytes:
    """Return a WriteRequest with one reading of every series, compressed."""
    time_of = b"\x10" + _varint(unix_ms)
    body = [
        _field(1, labels + _field(2, b"\x09" + struct.pack("<d", values[reading]) + time_of))
        for labels, values in series
    ]
    return bytes(pa.compress(b"".join(body), codec="snappy", asbytes=True))


@contextmanager
def _server(command: list[str], port: int, path: str) -> Iterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_S_MAX
        while time.monotonic() < end:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _peer(name: str, directory: Path, port: int) -> tuple[list[str], str, str]:
    """Return a server's command, the path that says it is ready, and the path that takes writes."""
    if name == "victoria_metrics":
        command = ["victoria-metrics", f"-storageDataPath={directory}", "-retentionPeriod=1y"]
        return [*command, f"-httpListenAddr=127.0.0.1:{port}"], "/health", "/api/v1/write"
    settings = directory / "prometheus.yml"
    directory.mkdir(parents=True, exist_ok=True)
    settings.write_text("global: {}\n", encoding="utf-8")
    command = [
        "prometheus",
        f"--config.file={settings}",
        f"--storage.tsdb.path={directory / 'data'}",
    ]
    listen = f"--web.listen-address=127.0.0.1:{port}"
    return [*command, listen, "--web.enable-remote-write-receiver"], "/-/ready", "/api/v1/write"


def of_peer(name: str, nodes: int, periods: int, resolution: int) -> dict[str, Any]:
    """Return what a peer took for the readings of that many nodes, period after period."""
    shapes = messages(min(nodes, VARIANTS), resolution)
    fleet = [_series(shapes[i % len(shapes)], node_name(i)) for i in range(nodes)]
    values = sum(len(v) for series in fleet for _, v in series)
    readings = 10 // resolution
    with tempfile.TemporaryDirectory() as scratch:
        port = _free_port()
        command, ready, path = _peer(name, Path(scratch) / name, port)
        with _server(command, port, ready) as pid:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            sent, cpu_s = 0, 0.0
            for period in range(periods + 1):
                start_unix_ms = FIRST_UNIX_MS + PERIOD_MS * period
                requests = [
                    _request(series, reading, start_unix_ms + 1000 * resolution * reading)
                    for reading in range(readings)
                    for series in fleet
                ]
                before = _cpu_seconds(pid)
                for request in requests:
                    connection.request("POST", path, request, HEADERS)
                    answer = connection.getresponse()
                    body = answer.read()
                    assert answer.status in (200, 204), body[:500]
                if period:  # the first makes the series
                    sent += sum(len(each) for each in requests)
                    cpu_s += _cpu_seconds(pid) - before
            return _figures(values, periods, sent, cpu_s, pid, Path(scratch), values // nodes)


async def of_flopwatch(nodes: int, periods: int, resolution: int) -> dict[str, Any]:
    """Return what the collector took for the same readings."""
    with tempfile.TemporaryDirectory() as scratch:
        async with collecting(Path(scratch)) as (pid, ingest, _):
            fleet = Fleet(ingest, nodes, resolution, None)
            await fleet.connect()
            shapes = fleet.messages[:VARIANTS]
            sent, cpu_s = 0, 0.0
            for period in range(periods + 1):
                start_unix_ms = FIRST_UNIX_MS + PERIOD_MS * period
                batches = [
                    codec.pack(pb.Payload(intervals=moved(shape, start_unix_ms)))
                    for shape in shapes
                ]
                fleet.report()
                before = _cpu_seconds(pid)
                for i, node in enumerate(fleet.nodes):
                    node.send(batches[i % len(batches)], fleet.rows)
                    if i % 20 == 0:
                        await asyncio.sleep(0)
                while any(node.sent_at for node in fleet.nodes):
                    await asyncio.sleep(0.01)
                if period:
                    sent += fleet.sent_bytes
                    cpu_s += _cpu_seconds(pid) - before
            assert not fleet.errors, fleet.errors[:3]
            fleet.ending = True
            per_node = [sum(len(v) for _, v in _series(shape, "")) for shape in shapes]
            values = sum(per_node[i % len(shapes)] for i in range(nodes))
            return _figures(
                values, periods, sent, cpu_s, pid, Path(scratch) / "data", values // nodes
            )


def _cpu_seconds(pid: int) -> float:
    return sum(each.cpu_seconds for each in tree(pid).values())


def _figures(
    values: int, periods: int, sent: int, cpu_s: float, pid: int, directory: Path, per_node: int
) -> dict[str, Any]:
    """Return the figures of one server. values: of all nodes and one period."""
    rss_mib = sum(each.rss_bytes for each in tree(pid).values()) / 2**20
    time.sleep(6)
    disk = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    return {
        "values_per_node_and_period": per_node,
        "values_per_cpu_s": round(values * periods / cpu_s),
        "bytes_per_value_on_wire": round(sent / (values * periods), 2),
        "bytes_per_value_on_disk": round(disk / (values * (periods + 1)), 2),
        "rss_mib": round(rss_mib, 1),
    }


def main() -> None:
    """Measure all and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--periods", type=int, default=8)
    parser.add_argument("--resolution", type=int, choices=(1, 10), default=10)
    given = parser.parse_args()
    on = machine()
    command = (
        f"python bench/remote_write.py --nodes {given.nodes} --periods {given.periods} "
        f"--resolution {given.resolution}"
    )
    sizes = given.nodes, given.periods, given.resolution
    result: dict[str, Any] = {"flopwatch": asyncio.run(of_flopwatch(*sizes))}
    for peer in ("victoria_metrics", "prometheus"):
        result[peer] = of_peer(peer, *sizes)
    ours = result["flopwatch"]["values_per_cpu_s"]
    result["ratio"] = {
        f"to_{peer}": round(ours / result[peer]["values_per_cpu_s"], 2)
        for peer in ("victoria_metrics", "prometheus")
    }
    remarks = (
        f"A batch or request per node of {CARDS} cards; CPU time of the server's processes, from the first "
        "byte of a period to its last acknowledgement; the first, which makes the series, is not counted.",
        "At 1 s a peer gets ten requests per node and period, one per reading, as scrapers and agents that "
        "write every second send them; the collector gets one batch of ten readings.",
        "On disk: all files six seconds after the last of them, write-ahead logs and rollups included.",
    )
    name = "remote_write" if given.resolution == 10 else "remote_write_1s"
    write(name, "The same readings into peers", command, on, result, remarks)


if __name__ == "__main__":
    main()

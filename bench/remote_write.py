"""The same readings into VictoriaMetrics and Prometheus, by remote write: values per CPU-second, and bytes.

    .venv/bin/python bench/remote_write.py [--nodes 1000] [--seconds 40] [--resolution 10]

One connection after the other sends what nodes of 8 cards read in 10 s as one request: a series for every
value of a card, with one reading (or ten at 1 s). Requests are made beforehand, so that the sender's cost
does not bound the server's: what counts is the CPU time of the server's process. The servers are Debian's
victoria-metrics and prometheus, as they come, on loopback in clear text. The collector under the same rows:
bench/collector.py.
"""

from __future__ import annotations

import argparse
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
from fleet import CARDS, messages, node_name
from measure import machine, tree, write

from flopwatch_proto import rows
from flopwatch_proto.v1 import telemetry_pb2 as pb

READY_S_MAX: Final = 30.0
VARIANTS: Final = 50
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


def _request(series: list[tuple[bytes, list[float]]], start_unix_ms: int, step_ms: int) -> bytes:
    """Return a WriteRequest, compressed."""
    body = []
    for labels, values in series:
        samples = b"".join(
            _field(
                2, b"\x09" + struct.pack("<d", v) + b"\x10" + _varint(start_unix_ms + i * step_ms)
            )
            for i, v in enumerate(values)
        )
        body.append(_field(1, labels + samples))
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


def measure(name: str, nodes: int, seconds: float, resolution: int) -> dict[str, Any]:
    """Return what a server took for the readings of that many nodes, period after period."""
    shapes = messages(min(nodes, VARIANTS), resolution)
    fleet = [_series(shapes[i % len(shapes)], node_name(i)) for i in range(nodes)]
    values = sum(len(v) for series in fleet for _, v in series)
    with tempfile.TemporaryDirectory() as scratch:
        port = _free_port()
        command, ready, path = _peer(name, Path(scratch) / name, port)
        with _server(command, port, ready) as pid:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            start_unix_ms = time.time_ns() // 10_000_000_000 * 10_000 - 3_000_000
            sent = taken = periods = 0
            cpu_s = 0.0
            end = time.monotonic() + seconds
            while time.monotonic() < end or periods < 3:
                requests = [_request(s, start_unix_ms, 1000 * resolution) for s in fleet]
                before = tree(pid)[pid].cpu_seconds
                for request in requests:
                    connection.request("POST", path, request, HEADERS)
                    answer = connection.getresponse()
                    body = answer.read()
                    assert answer.status in (200, 204), body[:500]
                if periods:  # the first makes the series
                    taken, sent = taken + values, sent + sum(len(each) for each in requests)
                    cpu_s += tree(pid)[pid].cpu_seconds - before
                start_unix_ms += 10_000
                periods += 1
            rss_mib = tree(pid)[pid].rss_bytes / 2**20
            time.sleep(6)
            disk = sum(f.stat().st_size for f in Path(scratch).rglob("*") if f.is_file())
    return {
        "values_per_request": round(values / nodes),
        "values_per_cpu_s": round(taken / cpu_s),
        "bytes_per_value_on_wire": round(sent / taken, 2),
        "bytes_per_value_on_disk": round(disk / (values * periods), 2),
        "series": sum(len(series) for series in fleet),
        "rss_mib": round(rss_mib, 1),
        "periods": periods,
    }


def main() -> None:
    """Measure both and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--resolution", type=int, choices=(1, 10), default=10)
    given = parser.parse_args()
    on = machine()
    command = (
        f"python bench/remote_write.py --nodes {given.nodes} --seconds {given.seconds:g} "
        f"--resolution {given.resolution}"
    )
    peers = ("victoria_metrics", "prometheus")
    result = {peer: measure(peer, given.nodes, given.seconds, given.resolution) for peer in peers}
    remarks = (
        f"One request per node of {CARDS} cards and 10 s; CPU time of the server's process alone, between "
        "the first and the last answer of a period; the first, which makes the series, is left out.",
        "On disk: all files six seconds after the last request, write-ahead logs included.",
    )
    name = "remote_write" if given.resolution == 10 else "remote_write_1s"
    write(name, "Remote write of the same readings", command, on, result, remarks)


if __name__ == "__main__":
    main()

"""The host: what its processors, memory and network did, and what the agent itself costs.

`HostProbe.take` makes a reading of counters and gauges; `host_rows` is pure and turns consecutive
readings into the rows of the wire.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from flopwatch_agent.sources.network import CounterSum, Interfaces, LinkReading, RdmaPorts
from flopwatch_proto.rows import HOST_QUANTITIES, INTERVAL_MS, Absence, Kind
from flopwatch_proto.v1 import telemetry_pb2 as pb

_COUNTERS: Final = tuple(q.name for q in HOST_QUANTITIES if q.kind is Kind.SUM)
_GAUGES: Final = {
    "cpu_count": "cpu_count",
    "memory_used_bytes_max": "memory_used_bytes",
    "memory_total_bytes_max": "memory_total_bytes",
    "agent_rss_bytes_max": "agent_rss_bytes",
}
"""Column of the row → field of the reading of which it is the maximum."""

RDMA_SECONDS_MAX: Final = 2.0
_CHILDREN_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """The host at one moment. None: this host does not say.

    Attributes:
        cpu_busy_ms: counter of core-milliseconds that were not idle.
        nic_tx_bytes: counter over all network interfaces that have a device; see `network`.
        agent_cpu_ms: counter of core-milliseconds of the agent and its children.
        agent_rss_bytes: resident memory of the agent and its children.
        rdma_tx_bytes: counter over all RDMA ports.
        link_errors_count: counter of errors of network and RDMA links.
    """

    taken_unix_ms: int
    cpu_busy_ms: float | None = None
    cpu_count: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    nic_tx_bytes: float | None = None
    nic_rx_bytes: float | None = None
    agent_cpu_ms: float | None = None
    agent_rss_bytes: float | None = None
    rdma_tx_bytes: float | None = None
    rdma_rx_bytes: float | None = None
    link_errors_count: float | None = None


class HostProbe:
    """Reads the host. Ended children stay in the agent's counter of processor time."""

    def __init__(self, *, sys_root: Path = Path("/sys")) -> None:
        """Make the probe. Args: sys_root: where the kernel lists network and RDMA links."""
        self._interfaces = Interfaces(sys_root / "class/net")
        self._rdma = RdmaPorts(sys_root / "class/infiniband")
        self._asked: asyncio.Task[LinkReading] | None = None
        self._errors = CounterSum()
        self._cpu_count = psutil.cpu_count()
        self._ended_ms = 0.0
        self._running_ms: dict[int, float] = {}

    async def take(self) -> HostReading:
        """Return the host now; RDMA adapters that do not answer in time have no value."""
        if self._asked is None and not self._rdma.found:
            return self._read(LinkReading())
        if self._asked is None:  # one that hangs is not asked again meanwhile
            self._asked = asyncio.create_task(asyncio.to_thread(self._rdma.read))
        answered, _ = await asyncio.wait({self._asked}, timeout=RDMA_SECONDS_MAX)
        if not answered:
            return self._read(LinkReading())
        rdma, self._asked = self._asked.result(), None
        return self._read(rdma)

    def _read(self, rdma: LinkReading) -> HostReading:
        times = psutil.cpu_times()
        busy_s = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
        memory = psutil.virtual_memory()
        network = self._interfaces.read()
        agent_ms, agent_rss = self._agent()
        errors = {"network": network.errors_count, "rdma": rdma.errors_count}
        return HostReading(
            taken_unix_ms=time.time_ns() // 1_000_000,
            cpu_busy_ms=busy_s * 1000,
            cpu_count=None if self._cpu_count is None else float(self._cpu_count),
            memory_used_bytes=float(memory.total - memory.available),
            memory_total_bytes=float(memory.total),
            nic_tx_bytes=network.tx_bytes,
            nic_rx_bytes=network.rx_bytes,
            agent_cpu_ms=agent_ms,
            agent_rss_bytes=agent_rss,
            rdma_tx_bytes=rdma.tx_bytes,
            rdma_rx_bytes=rdma.rx_bytes,
            link_errors_count=self._errors.of({k: n for k, n in errors.items() if n is not None}),
        )

    def _agent(self) -> tuple[float, float]:
        """Return core-milliseconds and resident bytes of this process and its children."""
        running: dict[int, float] = {}
        rss = 0.0
        for pid in _family(os.getpid()):
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    rss += process.memory_info().rss
            except psutil.Error:
                continue
            running[pid] = (times.user + times.system) * 1000
        for pid, before in self._running_ms.items():
            if running.get(pid, -1.0) < before:
                self._ended_ms += before
        self._running_ms = running
        return self._ended_ms + sum(running.values()), rss


def _family(pid: int) -> list[int]:
    """Return the process and all below it; the kernel's own list, no walk over all processes."""
    family = [pid]
    for member in family:
        for path in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                family.extend(int(child) for child in path.read_text().split())
            except OSError:
                continue
        if len(family) > _CHILDREN_MAX:
            break
    return family


@dataclass(slots=True)
class _Row:
    start_unix_ms: int
    duration_ms: int = 0
    values: dict[str, float] = field(default_factory=dict)


def host_rows(readings: Sequence[HostReading], interval_ms: int = INTERVAL_MS) -> pb.HostRows:
    """Return the rows that tile the time from the first reading to the last.

    Rows are cut at UTC multiples of the interval; what a counter rose between two readings is shared by
    the time on either side of a cut. A counter that fell has restarted: that time has no value.

    Args:
        readings: in the order of time; start with the last reading of the call before.
    """
    rows: dict[int, _Row] = {}
    for before, after in pairwise(readings):
        span_ms = after.taken_unix_ms - before.taken_unix_ms
        if span_ms <= 0:
            continue
        rises = _rises(before, after)
        start = before.taken_unix_ms
        while start < after.taken_unix_ms:
            interval = start // interval_ms
            end = min((interval + 1) * interval_ms, after.taken_unix_ms)
            row = rows.setdefault(interval, _Row(start))
            row.duration_ms += end - start
            _add(row, after, rises, (end - start) / span_ms)
            start = end
    return _encode([rows[interval] for interval in sorted(rows)])


def _rises(before: HostReading, after: HostReading) -> dict[str, float]:
    rises = {}
    for name in _COUNTERS:
        first, last = getattr(before, name), getattr(after, name)
        if first is not None and last is not None and last >= first:
            rises[name] = last - first
    return rises


def _add(row: _Row, after: HostReading, rises: Mapping[str, float], share: float) -> None:
    for name, rise in rises.items():
        row.values[name] = row.values.get(name, 0.0) + rise * share
    for column, gauge in _GAUGES.items():
        value = getattr(after, gauge)
        if value is not None:
            row.values[column] = max(value, row.values.get(column, value))


def _encode(rows: Sequence[_Row]) -> pb.HostRows:
    message = pb.HostRows()
    message.start_unix_ms.extend(row.start_unix_ms for row in rows)
    message.duration_ms.extend(row.duration_ms for row in rows)
    for quantity in HOST_QUANTITIES:
        values = [row.values.get(quantity.name) for row in rows]
        if all(value is None for value in values):
            continue
        getattr(message, quantity.name).extend(0.0 if v is None else v for v in values)
        if any(value is None for value in values):
            absences = bytes(Absence.MISSING if v is None else 0 for v in values)
            message.absences.add(column=quantity.name, absences=absences)
    return message

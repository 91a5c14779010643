"""The answer to ``GET /now``, put together when somebody asks. Its shape: `now`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flopwatch_agent.estimate import Estimate, estimate
from flopwatch_agent.newest import Newest, Seen
from flopwatch_agent.now import CardNow, CardProcess, DeliveryNow, Holder, HostNow, Now
from flopwatch_agent.sources.host import HostReading
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream
from flopwatch_agent.streams import Streams
from flopwatch_proto.rows import Absence

HOLDERS_MAX: Final = 64
PROCESSES_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """Whom to ask. Attributes: dtype: of the cluster."""

    newest: Newest
    spool: Spool
    stream: Stream | Streams
    dtype: str

    def now(self, boottime_ns: int, wall_unix_ms: int, driver_state: str) -> Now:
        """Return the host as it stands."""
        who = self.stream.identity
        return Now(
            node=who.node_id,
            cluster=who.cluster,
            agent_version=who.agent_version,
            taken_unix_ms=wall_unix_ms,
            simulated=who.simulated,
            driver_state=driver_state,
            delivery=_delivery(self.spool, self.stream),
            host=_host(self.newest.hosts()),
            cards=[_card(seen, boottime_ns, self.dtype) for seen in self.newest.cards(boottime_ns)],
        )


def _delivery(spool: Spool, stream: Stream | Streams) -> DeliveryNow:
    return DeliveryNow(
        collector=stream.target,
        connected=stream.counters.connected,
        pending_batches=spool.pending_batches,
        pending_bytes=spool.pending_bytes,
        dropped_rows=spool.state.dropped_rows,
        degraded=bool(spool.degraded),
        error=stream.counters.last_error,
    )


def _host(readings: tuple[HostReading, ...]) -> HostNow | None:
    if not readings:
        return None
    before, after = readings[0], readings[-1]
    span_ms = after.taken_unix_ms - before.taken_unix_ms

    def per_second(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        if first is None or last is None or last < first or span_ms <= 0:
            return None
        return float(last - first) * 1e3 / span_ms

    def cores(name: str) -> float | None:
        busy_ms = per_second(name)
        return None if busy_ms is None else busy_ms / 1e3

    busy = cores("cpu_busy_ms")
    return HostNow(
        cpu_busy_ratio=busy / after.cpu_count if busy is not None and after.cpu_count else None,
        cpu_count=after.cpu_count,
        memory_used_bytes=after.memory_used_bytes,
        memory_total_bytes=after.memory_total_bytes,
        nic_tx_bytes_per_second=per_second("nic_tx_bytes"),
        nic_rx_bytes_per_second=per_second("nic_rx_bytes"),
        rdma_tx_bytes_per_second=per_second("rdma_tx_bytes"),
        rdma_rx_bytes_per_second=per_second("rdma_rx_bytes"),
        link_errors_per_second=per_second("link_errors_count"),
        agent_cpu_cores=cores("agent_cpu_ms"),
        agent_rss_bytes=after.agent_rss_bytes,
    )


def _card(seen: Seen, now_ns: int, dtype: str) -> CardNow:
    reading, device = seen.reading, seen.reading.device
    said = reading.values if seen.speaks(now_ns) else {}
    failure = reading.failure or (None if reading.alive else "no_answer")
    if reading.alive and not seen.speaks(now_ns):
        failure = "not_read"
    return CardNow(
        slot=device.slot,
        kind=device.kind,
        sku=device.sku,
        uuid=device.uuid,
        age_seconds=seen.age_seconds(now_ns),
        failure=failure,
        coverage_ratio=seen.coverage.ratio(now_ns),
        method=reading.method,
        clock_mhz_max=device.clock_mhz_max,
        values={n: v for n, v in said.items() if not isinstance(v, Absence)},
        absent={n: v.name.lower() for n, v in said.items() if isinstance(v, Absence)},
        estimate=estimate(reading, seen.shares, dtype, seen.model_flops_per_second())
        if said
        else Estimate(dtype=dtype),
        holders=[
            Holder(
                bucket=share.bucket.name,
                weight=share.weight,
                job=share.job,
                team=share.team,
                user=share.user,
                workload_class=share.workload_class,
                source=share.source,
                instance=share.instance,
                rogue=share.rogue,
            )
            for share in list(seen.shares)[:HOLDERS_MAX]
        ],
        processes=None
        if reading.processes is None
        else [
            CardProcess(pid=process.pid, memory_bytes=process.memory_bytes)
            for process in reading.processes[:PROCESSES_MAX]
        ],
    )

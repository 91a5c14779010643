"""What ``GET /now`` answers: this host at this moment, as JSON. The one place of its shape.

Numbers are those of the newest readings, in the units of their names. A field of a card that has no value
stands in ``absent`` with the reason; elsewhere None is not known. Readers ignore members they do not know.
"""

from __future__ import annotations

import msgspec

from flopwatch_agent.estimate import Estimate


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A share of a card; `reading.Share` says what each means."""

    bucket: str
    weight: float
    job: str | None = None
    team: str | None = None
    user: str | None = None
    workload_class: str | None = None
    source: str | None = None
    instance: str | None = None
    rogue: bool = False


class CardProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A compute process; pid in the host's namespace."""

    pid: int
    memory_bytes: int | None = None


class CardNow(msgspec.Struct, frozen=True, kw_only=True):
    """One slot.

    Attributes:
        failure: why the driver does not answer for it; None where it does.
        coverage_ratio: readings answered within the last minute, of those expected.
        method: where its activity comes from.
        values: field of a reading → value.
        absent: field → ``missing``, ``not_supported`` or ``failed``.
        processes: None where the driver does not say.
    """

    slot: str
    kind: str
    sku: str | None
    uuid: str | None
    age_seconds: float
    failure: str | None
    coverage_ratio: float
    method: str
    clock_mhz_max: float | None
    values: dict[str, float]
    absent: dict[str, str]
    estimate: Estimate
    holders: list[Holder]
    processes: list[CardProcess] | None


class HostNow(msgspec.Struct, frozen=True, kw_only=True):
    """The host over its last two readings; agent: this process and its children."""

    cpu_busy_ratio: float | None
    cpu_count: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    nic_tx_bytes_per_second: float | None
    nic_rx_bytes_per_second: float | None
    rdma_tx_bytes_per_second: float | None
    rdma_rx_bytes_per_second: float | None
    link_errors_per_second: float | None
    agent_cpu_cores: float | None
    agent_rss_bytes: float | None


class DeliveryNow(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for the collector. Attributes: degraded: the disk refuses; error: of the last session."""

    collector: str
    connected: bool
    pending_batches: int
    pending_bytes: int
    dropped_rows: int
    degraded: bool
    error: str


class Now(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Attributes: driver_state: empty where no source has a driver."""

    node: str
    cluster: str
    agent_version: str
    taken_unix_ms: int
    simulated: bool
    driver_state: str
    delivery: DeliveryNow
    host: HostNow | None
    cards: list[CardNow]

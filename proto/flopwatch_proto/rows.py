"""The interval row: its columns, their units, kinds and meaning. The one catalogue.

The unit of record is one card, one job, about 10 s. Column names here are the field names of
``flopwatch.v1.IntervalRows`` and the column names of the telemetry store; tests hold them together.
Every quantity is additive over rows (Kind.SUM) or a maximum (Kind.MAX): ratios are made when read.
A quantity has a value or an absence (missing, not supported, failed); an absence is never zero.

Times of activity are *weighted* milliseconds: share active × duration × weight of the row, so that a
card that is shared or cut by MIG still counts as one card.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final


class Bucket(IntEnum):
    """Where a slot's card-time goes; numbers are those of ``flopwatch.v1.Bucket``."""

    UNSEEN = 1
    MISSING = 2
    FAILED = 3
    ACTIVE = 4
    IDLE_ALLOC = 5
    SUSPENDED = 6
    GANG_WAIT = 7
    ALLOCATED = 8
    MAINT = 9
    HELD = 10
    STRANDED = 11
    FREE = 12


ALLOCATED_BUCKETS: Final = (
    Bucket.ACTIVE,
    Bucket.IDLE_ALLOC,
    Bucket.SUSPENDED,
    Bucket.GANG_WAIT,
    Bucket.ALLOCATED,
)


class Absence(IntEnum):
    """Why a quantity has no value; numbers are those of ``flopwatch.v1.Absence``."""

    MISSING = 1
    NOT_SUPPORTED = 2
    FAILED = 3


class SlotState(IntEnum):
    """State of a slot in the inventory; numbers are those of ``flopwatch.v1.SlotState``."""

    EXPECTED = 1
    ONBOARDING = 2
    IN_SERVICE = 3
    RETIRED = 4


class Kind(Enum):
    """How a quantity combines over rows."""

    SUM = "sum"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One measured column. Attributes: name: with its unit last; meaning: one sentence."""

    name: str
    kind: Kind
    meaning: str


def _sums(**meanings: str) -> tuple[Quantity, ...]:
    return tuple(Quantity(name=n, kind=Kind.SUM, meaning=m) for n, m in meanings.items())


def _maxima(**meanings: str) -> tuple[Quantity, ...]:
    return tuple(Quantity(name=n, kind=Kind.MAX, meaning=m) for n, m in meanings.items())


KEY: Final = ("slot", "start_unix_ms", "job", "instance")

# Text columns; null where not known. Beside each, what it may hold.
TEXTS: Final = (
    "slot",  # place in the inventory: PCI address or a declared name
    "job",
    "instance",  # MIG instance, else null
    "sku",  # the full NVML name
    "device_uuid",
    "serial",
    "device_kind",  # gpu, cpu
    "team",
    "user",
    "workload_class",  # training inference rl_rollout eval interactive probe unknown
    "phase",  # steady startup checkpoint eval unknown
    "dtype",
    "dtype_confidence",  # declared, cluster, inferred
    "convention",  # causal_half full params_only
    "efficiency_method",  # cycle_counters gpm dcgm declared none
    "allocation_source",  # processes slurm kubernetes scenario file
)

# Card-time in whole weighted milliseconds, so that identities of shares hold exactly.
CARD_TIMES: Final = _sums(
    card_ms="duration × weight; a card's rows of one interval add up to its duration",
    covered_ms="card-time with an answer from the driver",
    counted_ms="card-time with SM activity, tensor activity, SM clock and its reference clock all known",
    resident_ms="card-time with a compute process on the card",
)

QUANTITIES: Final = (
    *_sums(
        sm_active_ms="S: time with at least one warp resident on an SM, averaged over SMs",
        tensor_active_ms="A: time any tensor pipe was active",
        hmma_active_ms="time the half-precision tensor pipe was active",
        imma_active_ms="time the integer tensor pipe was active",
        dfma_active_ms="time the double-precision tensor pipe was active",
        fp64_active_ms="time the FP64 pipe was active",
        fp32_active_ms="time the FP32 pipe was active",
        fp16_active_ms="time the FP16 pipe was active",
        dram_active_ms="time device memory was transferring, of its theoretical bandwidth",
        gpu_utilization_ms="time a kernel was resident (NVML utilisation; no measure of FLOPs)",
        memory_utilization_ms="time memory was read or written (NVML utilisation)",
        probing_ms="card-time with a probe of our own on the card; it counts as no activity",
        sm_active_clock_ms="Σ S × (f / f_ref) × dt, the product taken inside each reading",
        tensor_active_clock_ms="Σ A × (f / f_ref) × dt, the product taken inside each reading",
        sm_clock_mhz_seconds="Σ f × dt of the SM clock",
        throttled_power_ms="time slowed by the power limit",
        throttled_thermal_sw_ms="time slowed by software thermal control",
        throttled_thermal_hw_ms="time slowed by hardware thermal protection",
        throttled_power_brake_ms="time slowed by an external power brake",
        throttled_sync_boost_ms="time slowed to the slowest card of a sync-boost group",
        throttled_application_clock_ms="time held at an application clock below the maximum",
        capacity_flops="datasheet dense peak of the row's dtype × card-time",
        achievable_flops="measured ceiling of this card × card-time",
        u_flops="u × capacity, u = A × f / f_ref: what the tensor pipes did, in own-precision FLOPs",
        u_lo_flops="lower bound of u × capacity",
        u_hi_flops="upper bound of u × capacity",
        hardware_lo_flops="FLOPs executed if the slowest dtype that fits the counters ran",
        hardware_hi_flops="FLOPs executed if the fastest dtype that fits the counters ran",
        model_flops="model FLOPs that the job declared",
        steps_count="optimizer steps that the job finished, of the whole job, once on each of its cards",
        step_ms="card-time inside steps, as the job times them",
        tokens_count="tokens that the job declared, this card's share",
        reported_mfu_ms="Σ MFU as the job itself reports it × card-time, by its own convention and peak",
        reported_ms="card-time for which the job reported an MFU of its own",
        reported_flops="model FLOPs by the convention of the MFU that the job itself reports",
        energy_joules="energy of the board",
        pcie_tx_bytes="bytes sent by the card over PCIe",
        pcie_rx_bytes="bytes received by the card over PCIe",
        nvlink_tx_bytes="bytes sent over NVLink",
        nvlink_rx_bytes="bytes received over NVLink",
        ecc_corrected_count="memory errors corrected",
        ecc_uncorrected_count="memory errors not corrected",
    ),
    *_maxima(
        power_watts_max="highest power of the board",
        temperature_celsius_max="highest GPU temperature",
        memory_temperature_celsius_max="highest memory temperature",
        memory_used_bytes_max="most memory in use",
        memory_total_bytes_max="memory of the device",
    ),
)

HOST_QUANTITIES: Final = (
    *_sums(
        cpu_busy_ms="core-milliseconds the host's processors were busy",
        nic_tx_bytes="bytes sent over the network",
        nic_rx_bytes="bytes received over the network",
        agent_cpu_ms="core-milliseconds used by the agent and its children",
        rdma_tx_bytes="bytes sent over RDMA ports",
        rdma_rx_bytes="bytes received over RDMA ports",
        link_errors_count="errors of network and RDMA links: symbol errors, recoveries, link downs",
    ),
    *_maxima(
        cpu_count="logical processors",
        memory_used_bytes_max="most host memory in use",
        memory_total_bytes_max="host memory",
        agent_rss_bytes_max="resident memory of the agent and its children",
    ),
)

EXACT: Final = frozenset(
    {
        "capacity_flops",
        "achievable_flops",
        "model_flops",
        "steps_count",
        "step_ms",
        "tokens_count",
        "reported_mfu_ms",
        "reported_ms",
        "reported_flops",
        "ecc_corrected_count",
        "ecc_uncorrected_count",
        "memory_used_bytes_max",
        "memory_total_bytes_max",
    }
)
"""Quantities that are declared, looked up or counted one by one. Every other one is measured, and a row
holds it to 20 bits: within 5e-7 of what was summed, where the counters themselves are known to 5e-3."""

# Columns that are neither text nor quantity.
PLAIN: Final = ("start_unix_ms", "duration_ms", "weight", "bucket", "rogue")

COLUMNS: Final = (
    *PLAIN,
    *TEXTS,
    *(q.name for q in CARD_TIMES),
    *(q.name for q in QUANTITIES),
)
"""Every column of an interval row, apart from what the stream's Hello says (cluster, node)."""

QUANTITY_NAMES: Final = tuple(q.name for q in QUANTITIES)
INTERVAL_MS: Final = 10_000

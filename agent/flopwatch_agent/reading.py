"""A reading: what one source said of one device at one moment. The driver-level value type.

Sources (NVML, the host's processor, the simulator) make readings; `interval` folds consecutive readings
of a slot into interval rows. Everything after the reading is the same code for all of them.

Three kinds of field, told apart by the suffix of the name:

- a mean since the previous reading of the slot (``*_ratio``, ``sm_clock_mhz``, ``*_per_second``);
- a counter since some start (``*_total``): only differences count, a fall is a restart of the counter;
- a gauge (anything else): the value at ``taken_unix_ms``.

A field is a value or an Absence. Names left out are MISSING.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Bucket

FIELDS: Final = {
    # means since the previous reading
    "gpu_utilization_ratio": "a kernel was resident (NVML utilisation)",
    "memory_utilization_ratio": "memory was read or written (NVML utilisation)",
    "graphics_active_ratio": "GPM 1: a compute or graphics context was active",
    "sm_active_ratio": "GPM 2: SM cycles with a warp resident",
    "sm_occupancy_ratio": "GPM 3: warps resident, of the most that fit",
    "integer_active_ratio": "GPM 4: integer pipe",
    "tensor_active_ratio": "GPM 5: any tensor pipe",
    "dfma_active_ratio": "GPM 6: double-precision tensor pipe",
    "hmma_active_ratio": "GPM 7: half-precision tensor pipe",
    "dmma_active_ratio": "GPM 8: double-precision tensor pipe, as newer drivers name it",
    "imma_active_ratio": "GPM 9: integer tensor pipe",
    "dram_active_ratio": "GPM 10: of theoretical bandwidth",
    "fp64_active_ratio": "GPM 11: no tensor pipe",
    "fp32_active_ratio": "GPM 12: no tensor pipe",
    "fp16_active_ratio": "GPM 13: no tensor pipe",
    "sm_clock_mhz": "SM clock: cycles over time, else mean of the driver's buffer, else the value now",
    "pcie_tx_bytes_per_second": "sent by the card",
    "pcie_rx_bytes_per_second": "received by the card",
    "nvlink_tx_bytes_per_second": "sent",
    "nvlink_rx_bytes_per_second": "received",
    # counters
    "energy_joules_total": "energy of the board since the driver was loaded",
    "throttled_power_seconds_total": "power limit",
    "throttled_thermal_sw_seconds_total": "software thermal control",
    "throttled_thermal_hw_seconds_total": "hardware thermal protection",
    "throttled_power_brake_seconds_total": "external power brake",
    "throttled_sync_boost_seconds_total": "sync boost",
    "throttled_application_clock_seconds_total": "application clock",
    "ecc_corrected_total": "memory errors corrected",
    "ecc_uncorrected_total": "memory errors not corrected",
    "nvlink_errors_total": "recoveries of all NVLinks, else flow-control CRC errors",
    # gauges
    "memory_clock_mhz": "memory clock",
    "power_watts": "board power",
    "power_limit_watts": "enforced limit",
    "temperature_celsius": "GPU",
    "memory_temperature_celsius": "memory",
    "memory_used_bytes": "device memory in use",
    "memory_total_bytes": "device memory",
    "pcie_link_generation": "current",
    "pcie_link_width": "current",
    "pcie_link_generation_limit": "highest that card and slot can do together",
    "pcie_link_width_limit": "widest that card and slot can do together",
    "remapped_rows_pending": "1: rows of memory wait to be remapped at the next reset",
    "remapped_rows_failed": "1: a remapping of rows failed",
    "clock_event_reasons": "bitmask of the reasons for the clock now",
}
"""Every field a reading may carry, with its meaning; units are in the names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A card (or a host's processor) as the driver names it.

    Attributes:
        slot: place in the inventory: PCI address in lower case (``0000:18:00.0``), or a declared name.
        kind: ``gpu`` or ``cpu``.
        sku: the full NVML name; None when the driver does not say.
        sm_count: streaming multiprocessors, from the device and not from a table.
        driver_version: of the driver that reads it; its counters are calibrated under that one.
        instances: UUIDs of the MIG devices on it; empty where MIG is off.
        instance_weights: of each, its part of the card: slices of the MIG device over slices of the
            card. They may sum to less than 1: the rest is cut for nobody.
    """

    slot: str
    kind: str
    sku: str | None
    uuid: str | None = None
    serial: str | None = None
    minor: int | None = None
    sm_count: int | None = None
    clock_mhz_max: float | None = None
    driver_version: str | None = None
    instances: tuple[str, ...] = ()
    instance_weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A compute process on a device. pid is in the host's namespace."""

    pid: int
    started_unix_ms: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Who holds a card, or a part of it. The weights of a card's shares sum to 1.

    Attributes:
        source: ``processes``, ``scenario``, ``slurm``, ``kubernetes``, ``file``.
        instance: UUID of the MIG device held, one of ``Device.instances``: the fold gives it that device's
            weight and activity, and adds a FREE share for every instance that no share names. None: a
            part of the whole card. Any other text only tells shares of one job apart.
        model_flops_total: counter of model FLOPs this job declared for this card; None: no declaration.
        counters: column of the row → the job's counter of it for this card: steps, tokens and the like.
        waits_for: new processes, one of which must be there at the next reading too: otherwise the share is
            void from its beginning. Empty: it holds anyway.
        otherwise: who holds the card where all its shares are void.
    """

    bucket: Bucket
    weight: float = 1.0
    job: str | None = None
    team: str | None = None
    user: str | None = None
    workload_class: str | None = None
    phase: str | None = None
    dtype: str | None = None
    convention: str | None = None
    source: str | None = None
    rogue: bool = False
    resident: bool | None = None
    instance: str | None = None
    model_flops_total: float | None = None
    counters: Mapping[str, float] | None = None
    waits_for: frozenset[int] = frozenset()
    otherwise: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a source said of one device.

    Attributes:
        taken_unix_ms: wall clock, UTC.
        boottime_ns: CLOCK_BOOTTIME at the same moment; rates and durations come from it.
        processes: compute processes; None when the driver did not say.
        alive: False when the driver did not answer for this device: `values` is then empty.
        failure: what the driver said instead, e.g. ``unresponsive``, ``gpu_is_lost``; None when alive.
        method: where its activity comes from: ``gpm`` (means of the driver), ``cycle_counters`` (cycles
            over exact time), ``dcgm``. Says nothing where the activity is absent.
        disagreement: why cycle counters that the card has are not believed; None: nothing against them.
        instances: MIG device → the fields that are its own, as ratios of its own SMs; what it leaves out
            is the card's.
        probed_ns: boottime at which a probe of ours was last on the device (`probing.tags`); None: not
            since the reading before.
    """

    device: Device
    taken_unix_ms: int
    boottime_ns: int
    values: Mapping[str, Value] = field(default_factory=dict)
    processes: tuple[Process, ...] | None = None
    alive: bool = True
    failure: str | None = None
    method: str = "gpm"
    disagreement: str | None = None
    instances: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    probed_ns: int | None = None

"""DCGM's fields under dcgm-exporter's names: one table to read them and to show our readings by them.

Names are those of the exporter's default counters, the aliases those of DCGM 4's naming standard; ids
never changed. Units are the exporter's: percent, MHz, MiB, mJ. Left out on purpose:

- ``DCGM_FI_DEV_XID_ERRORS``: a gauge of the last Xid that never clears (dcgm-exporter issue 500), so it
  cannot tell a fault of today from one of last month. Xids are events, each with its time.
- ``DCGM_FI_DEV_*_VIOLATION``: µs or ns, by version. Ours are ``flopwatch_card_throttled_…_seconds_total``.

Sources: NVIDIA/dcgm-exporter ``etc/dcp-metrics-included.csv``, NVIDIA/DCGM ``dcgm_fields.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB_BYTES: Final = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DcgmField:
    """One of DCGM's fields.

    Attributes:
        id: DCGM's number.
        name: as dcgm-exporter's dashboards use it.
        field: of a reading.
        scale: DCGM's unit → the unit of the reading.
        alias: the newer name.
        help: of the exposition.
    """

    id: int
    name: str
    field: str
    help: str
    scale: float = 1.0
    alias: str | None = None

    @property
    def is_mean(self) -> bool:
        """Return whether it speaks for a stretch of time: DCGM's profiling fields do."""
        return self.id >= 1001


def _ratio(id: int, name: str, alias: str, field: str, help: str) -> DcgmField:
    return DcgmField(
        id=id,
        name=f"DCGM_FI_PROF_{name}_ACTIVE",
        alias=f"DCGM_FI_PROF_{alias}_UTIL_RATIO",
        field=f"{field}_ratio",
        help=f"Ratio of cycles {help}.",
    )


def _rate(id: int, name: str, help: str) -> DcgmField:
    return DcgmField(
        id=id,
        name=f"DCGM_FI_PROF_{name.upper()}_BYTES",
        field=f"{name}_bytes_per_second",
        help=f"{help} (in B/s).",
    )


def _device(id: int, name: str, field: str, help: str, scale: float = 1.0) -> DcgmField:
    return DcgmField(id=id, name=f"DCGM_FI_DEV_{name}", field=field, help=help, scale=scale)


DCGM_FIELDS: Final = (
    _device(100, "SM_CLOCK", "sm_clock_mhz", "SM clock frequency (in MHz)."),
    _device(101, "MEM_CLOCK", "memory_clock_mhz", "Memory clock frequency (in MHz)."),
    _device(140, "MEMORY_TEMP", "memory_temperature_celsius", "Memory temperature (in C)."),
    _device(150, "GPU_TEMP", "temperature_celsius", "GPU temperature (in C)."),
    _device(155, "POWER_USAGE", "power_watts", "Power draw (in W)."),
    _device(
        156, "TOTAL_ENERGY_CONSUMPTION", "energy_joules_total", "Energy since boot (in mJ).", 1e-3
    ),
    _device(164, "ENFORCED_POWER_LIMIT", "power_limit_watts", "Enforced power limit (in W)."),
    _device(203, "GPU_UTIL", "gpu_utilization_ratio", "GPU utilization (in %).", 1e-2),
    _device(204, "MEM_COPY_UTIL", "memory_utilization_ratio", "Memory utilization (in %).", 1e-2),
    _device(250, "FB_TOTAL", "memory_total_bytes", "Framebuffer memory (in MiB).", MIB_BYTES),
    _device(252, "FB_USED", "memory_used_bytes", "Framebuffer memory used (in MiB).", MIB_BYTES),
    _device(310, "ECC_SBE_VOL_TOTAL", "ecc_corrected_total", "Single-bit volatile ECC errors."),
    _device(311, "ECC_DBE_VOL_TOTAL", "ecc_uncorrected_total", "Double-bit volatile ECC errors."),
    _ratio(1001, "GR_ENGINE", "GR_ENGINE", "graphics_active", "the graphics engine is active"),
    _ratio(1002, "SM", "SM", "sm_active", "an SM has at least 1 warp assigned"),
    DcgmField(
        id=1003,
        name="DCGM_FI_PROF_SM_OCCUPANCY",
        alias="DCGM_FI_PROF_SM_OCCUPANCY_RATIO",
        field="sm_occupancy_ratio",
        help="Warps resident on an SM, of the most that fit.",
    ),
    _ratio(1004, "PIPE_TENSOR", "TENSOR", "tensor_active", "any tensor pipe is active"),
    _ratio(1005, "DRAM", "DRAM", "dram_active", "the device memory interface is active"),
    _ratio(1006, "PIPE_FP64", "FP64", "fp64_active", "the fp64 pipe is active"),
    _ratio(1007, "PIPE_FP32", "FP32", "fp32_active", "the fp32 pipe is active"),
    _ratio(1008, "PIPE_FP16", "FP16", "fp16_active", "the fp16 pipe is active"),
    _rate(1009, "pcie_tx", "Rate of data transmitted over PCIe"),
    _rate(1010, "pcie_rx", "Rate of data received over PCIe"),
    _rate(1011, "nvlink_tx", "Rate of data transmitted over NVLink"),
    _rate(1012, "nvlink_rx", "Rate of data received over NVLink"),
    _ratio(1013, "PIPE_TENSOR_IMMA", "IMMA", "imma_active", "the IMMA tensor pipe is active"),
    _ratio(1014, "PIPE_TENSOR_HMMA", "HMMA", "hmma_active", "the HMMA tensor pipe is active"),
    _ratio(1015, "PIPE_TENSOR_DFMA", "DFMA", "dfma_active", "the DFMA tensor pipe is active"),
    _ratio(1016, "PIPE_INT", "INT", "integer_active", "the integer pipe is active"),
)

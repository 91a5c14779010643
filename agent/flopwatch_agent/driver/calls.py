"""What is read of a card: one table, name → call → conversion.

The providers of a field stand in the order of preference: the first one that the card supports is
asked, and once it answered "not supported" the next one takes its place, until the cards are listed
anew. A provider that fails is not replaced: a failure is an answer too.

Fields that need the sample before (performance metrics, the clock buffer) have files of their own.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.library import SUCCESS, UNKNOWN, Library

SLOW_READS: Final = 10
"""Fields marked slow are read in every tenth reading, and hold in between."""

ALL_LINKS: Final = 0xFFFFFFFF
_KIB: Final = 1024.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """A value of nvmlDeviceGetFieldValues: all of a card's fields are one call.

    Attributes:
        name: of the reading.
        scale: the driver's unit → the unit of the name.
        per_second: the driver counts; the reading has the rate since the last one.
    """

    name: str
    id: int
    scope: int = 0
    scale: float = 1.0
    per_second: bool = False
    slow: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the reading fields that this gives."""
        return (self.name,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """A function (device, *args, out*).

    Attributes:
        out: type of what it fills.
        gives: (reading field, attribute of `out`, scale); attribute ``value`` for a plain number.
        version: written into ``out.version`` first, where the struct has one.
    """

    symbol: str
    out: type[Any]
    gives: tuple[tuple[str, str, float], ...]
    args: tuple[int, ...] = ()
    version: int | None = None
    slow: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the reading fields that this gives."""
        return tuple(name for name, _, _ in self.gives)

    def run(self, library: Library, handle: Any) -> tuple[int, Any]:
        """Return (return code, the filled out value)."""
        out = self.out()
        if self.version is not None:
            out.version = self.version
        return library.call(self.symbol, handle, *self.args, ctypes.byref(out)), out


Provider = Field | Call

PROVIDERS: Final[tuple[Provider, ...]] = (
    # counters and gauges of the one call for many fields
    Field(name="power_watts", id=pynvml.NVML_FI_DEV_POWER_INSTANT, scale=1e-3),
    Field(name="energy_joules_total", id=pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, scale=1e-3),
    Field(
        name="throttled_power_seconds_total", id=pynvml.NVML_FI_DEV_PERF_POLICY_POWER, scale=1e-9
    ),
    Field(
        name="throttled_thermal_sw_seconds_total",
        id=pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
        scale=1e-9,
    ),
    # Drivers before the split of the thermal reasons have the sum of them.
    Field(
        name="throttled_thermal_sw_seconds_total",
        id=pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL,
        scale=1e-9,
    ),
    Field(
        name="throttled_thermal_hw_seconds_total",
        id=pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
        scale=1e-9,
    ),
    Field(
        name="throttled_power_brake_seconds_total",
        id=pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
        scale=1e-9,
    ),
    Field(
        name="throttled_sync_boost_seconds_total",
        id=pynvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST,
        scale=1e-9,
    ),
    Field(name="memory_temperature_celsius", id=pynvml.NVML_FI_DEV_MEMORY_TEMP),
    Field(
        name="nvlink_tx_bytes_per_second",
        id=pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
        scope=ALL_LINKS,
        scale=_KIB,
        per_second=True,
    ),
    Field(
        name="nvlink_rx_bytes_per_second",
        id=pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        scope=ALL_LINKS,
        scale=_KIB,
        per_second=True,
    ),
    Field(name="ecc_corrected_total", id=pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL, slow=True),
    Field(name="ecc_uncorrected_total", id=pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL, slow=True),
    Field(name="remapped_rows_pending", id=pynvml.NVML_FI_DEV_REMAPPED_PENDING, slow=True),
    Field(name="remapped_rows_failed", id=pynvml.NVML_FI_DEV_REMAPPED_FAILURE, slow=True),
    Field(
        name="nvlink_errors_total",
        id=pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
        slow=True,
    ),
    Field(
        name="nvlink_errors_total",
        id=pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
        slow=True,
    ),
    Field(
        name="power_limit_watts",
        id=pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT,
        scale=1e-3,
        slow=True,
    ),
    # functions of their own
    Call(
        symbol="nvmlDeviceGetUtilizationRates",
        out=pynvml.c_nvmlUtilization_t,
        gives=(
            ("gpu_utilization_ratio", "gpu", 0.01),
            ("memory_utilization_ratio", "memory", 0.01),
        ),
    ),
    Call(
        symbol="nvmlDeviceGetMemoryInfo_v2",
        out=pynvml.c_nvmlMemory_v2_t,
        version=pynvml.nvmlMemory_v2,
        gives=(("memory_used_bytes", "used", 1.0), ("memory_total_bytes", "total", 1.0)),
    ),
    Call(
        symbol="nvmlDeviceGetMemoryInfo",  # counts what the driver keeps for itself as used
        out=pynvml.c_nvmlMemory_t,
        gives=(("memory_used_bytes", "used", 1.0), ("memory_total_bytes", "total", 1.0)),
    ),
    Call(
        symbol="nvmlDeviceGetTemperature",
        args=(pynvml.NVML_TEMPERATURE_GPU,),
        out=ctypes.c_uint,
        gives=(("temperature_celsius", "value", 1.0),),
    ),
    Call(
        symbol="nvmlDeviceGetClockInfo",
        args=(pynvml.NVML_CLOCK_MEM,),
        out=ctypes.c_uint,
        gives=(("memory_clock_mhz", "value", 1.0),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetCurrentClocksEventReasons",
        out=ctypes.c_ulonglong,
        gives=(("clock_event_reasons", "value", 1.0),),
    ),
    Call(
        symbol="nvmlDeviceGetCurrentClocksThrottleReasons",
        out=ctypes.c_ulonglong,
        gives=(("clock_event_reasons", "value", 1.0),),
    ),
    Call(
        symbol="nvmlDeviceGetPowerUsage",
        out=ctypes.c_uint,
        gives=(("power_watts", "value", 1e-3),),
    ),
    Call(
        symbol="nvmlDeviceGetTotalEnergyConsumption",
        out=ctypes.c_ulonglong,
        gives=(("energy_joules_total", "value", 1e-3),),
    ),
    Call(
        symbol="nvmlDeviceGetEnforcedPowerLimit",
        out=ctypes.c_uint,
        gives=(("power_limit_watts", "value", 1e-3),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetTotalEccErrors",
        args=(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC),
        out=ctypes.c_ulonglong,
        gives=(("ecc_corrected_total", "value", 1.0),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetTotalEccErrors",
        args=(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
        out=ctypes.c_ulonglong,
        gives=(("ecc_uncorrected_total", "value", 1.0),),
        slow=True,
    ),
    # Each of these two watches the bus for 20 ms before it answers: only where there are no metrics.
    Call(
        symbol="nvmlDeviceGetPcieThroughput",
        args=(pynvml.NVML_PCIE_UTIL_TX_BYTES,),
        out=ctypes.c_uint,
        gives=(("pcie_tx_bytes_per_second", "value", _KIB),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetPcieThroughput",
        args=(pynvml.NVML_PCIE_UTIL_RX_BYTES,),
        out=ctypes.c_uint,
        gives=(("pcie_rx_bytes_per_second", "value", _KIB),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetCurrPcieLinkGeneration",
        out=ctypes.c_uint,
        gives=(("pcie_link_generation", "value", 1.0),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetCurrPcieLinkWidth",
        out=ctypes.c_uint,
        gives=(("pcie_link_width", "value", 1.0),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetMaxPcieLinkGeneration",
        out=ctypes.c_uint,
        gives=(("pcie_link_generation_limit", "value", 1.0),),
        slow=True,
    ),
    Call(
        symbol="nvmlDeviceGetMaxPcieLinkWidth",
        out=ctypes.c_uint,
        gives=(("pcie_link_width_limit", "value", 1.0),),
        slow=True,
    ),
)

SM_CLOCK_NOW: Final = Call(
    symbol="nvmlDeviceGetClockInfo",
    args=(pynvml.NVML_CLOCK_SM,),
    out=ctypes.c_uint,
    gives=(("sm_clock_mhz", "value", 1.0),),
)
"""The SM clock where the driver keeps no buffer of it, or the buffer is empty."""

_FIELD_VALUE: Final = struct.Struct("IIqqIIQ")
"""c_nvmlFieldValue_t: id, scope, timestamp, latency, value type, return code, the value's eight bytes."""

_VALUES: Final[Mapping[int, Callable[[int], float]]] = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: lambda raw: float(
        struct.unpack("d", raw.to_bytes(8, sys.byteorder))[0]
    ),
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: lambda raw: float(raw & 0xFFFFFFFF),
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: float,
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: float,
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: lambda raw: float(ctypes.c_longlong(raw).value),
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: lambda raw: float(ctypes.c_int(raw & 0xFFFFFFFF).value),
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: lambda raw: float(raw & 0xFFFF),
}
"""Value type → the number in the low bytes of a little-endian value."""


class FieldBatch:
    """Some fields of one card, read with one call; the array is made once."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        self._values = (pynvml.c_nvmlFieldValue_t * max(1, len(fields)))()
        for slot, field in zip(self._values, fields, strict=False):
            slot.fieldId, slot.scopeId = field.id, field.scope

    def read(self, library: Library, handle: Any) -> list[tuple[Field, int, float]]:
        """Return (field, return code, value in the driver's unit); the value counts where code is 0."""
        if not self.fields:
            return []
        code = library.call(
            "nvmlDeviceGetFieldValues", handle, len(self.fields), ctypes.byref(self._values)
        )
        if code != SUCCESS:
            return [(field, code, 0.0) for field in self.fields]
        answers = []
        raw_values = _FIELD_VALUE.iter_unpack(self._values)
        for field, (*_, kind, answer, raw) in zip(self.fields, raw_values, strict=True):
            convert = _VALUES.get(kind)
            if answer == SUCCESS and convert is not None:
                answers.append((field, SUCCESS, convert(raw)))
            else:
                answers.append((field, answer or UNKNOWN, 0.0))
        return answers

"""The SM clock: the mean of the driver's own buffer of samples since the last reading."""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.library import INSUFFICIENT_SIZE, SUCCESS, UNSUPPORTED, Library

_SYMBOL: Final = "nvmlDeviceGetSamples"
_LAYOUTS: Final = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "Qd",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "QI4x",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "QQ",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "QQ",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "Qq",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "Qi4x",
}
_SAMPLES_FIRST: Final = 256
_SAMPLES_MAX: Final = 16_384
_EMPTY_READS_MAX: Final = 30
"""After so many empty answers all samples count as new: the clock of their stamps may have stepped back."""


class ClockBuffer:
    """The driver's clock samples of one card. `supported` turns False when there is no buffer."""

    def __init__(self, library: Library, handle: Any) -> None:
        self.supported = True
        self._library = library
        self._handle = handle
        self._seen_us = 0
        self._empty_reads = 0
        self._room = self._ask_room()
        self._samples = (pynvml.c_nvmlSample_t * self._room)()

    def _ask_room(self) -> int:
        value_type, count = ctypes.c_uint(), ctypes.c_uint()
        code = self._library.call(
            _SYMBOL,
            self._handle,
            pynvml.NVML_PROCESSOR_CLK_SAMPLES,
            ctypes.c_ulonglong(0),
            ctypes.byref(value_type),
            ctypes.byref(count),
            None,
        )
        self.supported = code not in UNSUPPORTED
        return min(max(count.value, _SAMPLES_FIRST), _SAMPLES_MAX)

    def mean_mhz(self) -> float | None:
        """Return the mean since the last call; None: no samples (an idle card), ask for the clock now."""
        if not self.supported:
            return None
        mean = self._mean_mhz()
        self._empty_reads = 0 if mean is not None else self._empty_reads + 1
        if self._empty_reads >= _EMPTY_READS_MAX:
            self._seen_us = self._empty_reads = 0
        return mean

    def _mean_mhz(self) -> float | None:
        value_type, count = ctypes.c_uint(), ctypes.c_uint(self._room)
        code = self._library.call(
            _SYMBOL,
            self._handle,
            pynvml.NVML_PROCESSOR_CLK_SAMPLES,
            ctypes.c_ulonglong(self._seen_us),
            ctypes.byref(value_type),
            ctypes.byref(count),
            self._samples,
        )
        self.supported = code not in UNSUPPORTED
        if code == INSUFFICIENT_SIZE and self._room < _SAMPLES_MAX:
            self._room *= 2
            self._samples = (pynvml.c_nvmlSample_t * self._room)()
        layout = _LAYOUTS.get(value_type.value)
        if code != SUCCESS or layout is None or not 0 < count.value <= self._room:
            return None
        raw = memoryview(self._samples).cast("B")[: count.value * 16]
        fresh = [(t, mhz) for t, mhz in struct.iter_unpack(layout, raw) if t > self._seen_us]
        if not fresh:
            return None
        self._seen_us = max(t for t, _ in fresh)
        clocks = [mhz for _, mhz in fresh if mhz > 0]
        return sum(clocks) / len(clocks) if clocks else None

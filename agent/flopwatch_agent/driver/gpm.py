"""GPU performance metrics: means over the time between two samples of a card.

The sample before is kept and consecutive ones are compared, so the means tile time without a hole.
What the library gets wrong or leaves open is defended against here:

- the request struct grew from 98 to 477 metrics without a new version: the largest one is allocated,
  one metric is asked per call, and the answer counts only where the id is echoed and the value, a NaN
  before, was written;
- a metric has a return code of its own beside that of the call;
- samples closer than the hardware's refresh give nothing: sooner than ``INTERVAL_NS_MIN`` no sample is
  taken and the next one covers the whole time.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.library import (
    NO_PERMISSION,
    SUCCESS,
    UNKNOWN,
    UNKNOWN_ID,
    UNSUPPORTED,
    Library,
)
from flopwatch_proto.rows import Absence

INTERVAL_NS_MIN: Final = 200_000_000
_PERCENT: Final = 0.01
_MIB: Final = 1024.0 * 1024.0

METRICS: Final = {
    "sm_active_ratio": (pynvml.NVML_GPM_METRIC_SM_UTIL, _PERCENT),
    "tensor_active_ratio": (pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, _PERCENT),
    "dfma_active_ratio": (pynvml.NVML_GPM_METRIC_DFMA_TENSOR_UTIL, _PERCENT),
    "hmma_active_ratio": (pynvml.NVML_GPM_METRIC_HMMA_TENSOR_UTIL, _PERCENT),
    "imma_active_ratio": (pynvml.NVML_GPM_METRIC_IMMA_TENSOR_UTIL, _PERCENT),
    "dram_active_ratio": (pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, _PERCENT),
    "fp64_active_ratio": (pynvml.NVML_GPM_METRIC_FP64_UTIL, _PERCENT),
    "fp32_active_ratio": (pynvml.NVML_GPM_METRIC_FP32_UTIL, _PERCENT),
    "fp16_active_ratio": (pynvml.NVML_GPM_METRIC_FP16_UTIL, _PERCENT),
    "pcie_tx_bytes_per_second": (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, _MIB),
    "pcie_rx_bytes_per_second": (pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, _MIB),
    "nvlink_rx_bytes_per_second": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, _MIB),
    "nvlink_tx_bytes_per_second": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, _MIB),
}
"""Reading field → (metric id, the driver's unit → the unit of the name)."""


class Gpm:
    """The metrics of one card.

    Attributes:
        names: reading fields that the card has metrics for; shrinks as metrics turn out unsupported.
        denied: the last sample was refused for lack of permission.
    """

    def __init__(self, library: Library, handle: Any) -> None:
        self.names: frozenset[str] = frozenset(METRICS)
        self.denied = False
        self._library = library
        self._handle = handle
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = 1
        # Views of the one metric asked for: the binding's own attribute access costs more than the call.
        first = pynvml.c_nvmlGpmMetricsGet_t.metrics.offset
        metric = pynvml.c_nvmlGpmMetric_t
        self._id = ctypes.c_uint.from_buffer(self._request, first + metric.metricId.offset)
        self._code = ctypes.c_uint.from_buffer(self._request, first + metric.nvmlReturn.offset)
        self._value = ctypes.c_double.from_buffer(self._request, first + metric.value.offset)
        self._samples = [sample for sample in (self._alloc(), self._alloc()) if sample is not None]
        self._taken_ns: int | None = None  # of the older sample; None: there is none yet
        if len(self._samples) < 2:
            self.names = frozenset()

    def _alloc(self) -> Any | None:
        sample = pynvml.c_nvmlGpmSample_t()
        code = self._library.call("nvmlGpmSampleAlloc", ctypes.byref(sample))
        return sample if code == SUCCESS else None

    def read(self, now_ns: int) -> dict[str, float | Absence]:
        """Take a sample and return the means since the one before.

        Empty for the first sample and for one that comes too soon; names that turn out not to be
        supported are left out and leave `names`.
        """
        if not self.names:
            return {}
        if self._taken_ns is not None and now_ns - self._taken_ns < INTERVAL_NS_MIN:
            return {}
        older, newer = self._samples
        code = self._library.call("nvmlGpmSampleGet", self._handle, newer)
        self.denied = code == NO_PERMISSION
        if code in UNSUPPORTED:
            self.names = frozenset()
            return {}
        if code != SUCCESS:
            # Keep the older sample: the next mean then covers this time too.
            return dict.fromkeys(self.names, Absence.FAILED)
        first = self._taken_ns is None
        self._samples = [newer, older]
        self._taken_ns = now_ns
        return {} if first else self._means(older, newer)

    def _means(self, older: Any, newer: Any) -> dict[str, float | Absence]:
        means: dict[str, float | Absence] = {}
        missing = set()
        self._request.sample1, self._request.sample2 = older, newer
        for name in self.names:
            metric, scale = METRICS[name]
            code, value = self._metric(metric)
            if code in UNKNOWN_ID:
                missing.add(name)
            elif code == SUCCESS:
                means[name] = value * scale
            else:
                self.denied |= code == NO_PERMISSION
                means[name] = Absence.FAILED
        if missing:
            self.names -= missing
        return means

    def _metric(self, metric: int) -> tuple[int, float]:
        self._id.value, self._code.value, self._value.value = metric, SUCCESS, math.nan
        code = self._library.call("nvmlGpmMetricsGet", ctypes.byref(self._request))
        if code == pynvml.NVML_ERROR_INVALID_ARGUMENT:
            code = UNKNOWN  # of the pair of samples; an unknown metric says so in its own code
        if code == SUCCESS:
            code = self._code.value
        value = self._value.value
        if code == SUCCESS and (self._id.value != metric or math.isnan(value)):
            code = UNKNOWN
        return int(code), value

    def close(self) -> None:
        """Free the samples."""
        for sample in self._samples:
            self._library.call("nvmlGpmSampleFree", sample)
        self._samples = []
        self.names = frozenset()

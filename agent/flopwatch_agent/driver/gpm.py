"""GPU performance metrics: means over the time between two samples of a card, or of a GPU instance.

The sample before is kept and consecutive ones are compared, so the means tile time without a hole.
What the library gets wrong or leaves open is defended against here:

- the request struct grew from 98 to 477 metrics without a new version: the largest one is allocated, no
  more metrics are asked at once than the smallest holds, and an answer counts only where the id is echoed
  and the value, a NaN before, was written; a library that refuses many at once is asked one by one;
- a metric has a return code of its own beside that of the call;
- samples closer than the hardware's refresh give nothing: sooner than ``INTERVAL_NS_MIN`` no sample is
  taken and the next one covers the whole time.

Which metrics there are is found out by the first pair and remembered until the cards are listed anew.
Where there are counters of cycles, `cycles` makes activity and clock of them.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.cycles import CYCLE_METRICS, REQUIRED, UTILISATION, Cycles
from flopwatch_agent.driver.library import (
    NO_PERMISSION,
    SUCCESS,
    UNKNOWN,
    UNKNOWN_ID,
    UNSUPPORTED,
    Library,
)
from flopwatch_proto.rows import Absence

INTERVAL_NS_MIN: Final = 150_000_000
"""Between one and two readings at the fastest: every second one has means, and on all cards the same ones."""
_PERCENT: Final = 0.01
_MIB: Final = 1024.0 * 1024.0

RATIOS: Final = {
    "graphics_active_ratio": (pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL, _PERCENT),
    "sm_active_ratio": (pynvml.NVML_GPM_METRIC_SM_UTIL, _PERCENT),
    "sm_occupancy_ratio": (pynvml.NVML_GPM_METRIC_SM_OCCUPANCY, _PERCENT),
    "integer_active_ratio": (pynvml.NVML_GPM_METRIC_INTEGER_UTIL, _PERCENT),
    "tensor_active_ratio": (pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, _PERCENT),
    "dfma_active_ratio": (pynvml.NVML_GPM_METRIC_DFMA_TENSOR_UTIL, _PERCENT),
    "hmma_active_ratio": (pynvml.NVML_GPM_METRIC_HMMA_TENSOR_UTIL, _PERCENT),
    "dmma_active_ratio": (pynvml.NVML_GPM_METRIC_DMMA_TENSOR_UTIL, _PERCENT),
    "imma_active_ratio": (pynvml.NVML_GPM_METRIC_IMMA_TENSOR_UTIL, _PERCENT),
    "dram_active_ratio": (pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, _PERCENT),
    "fp64_active_ratio": (pynvml.NVML_GPM_METRIC_FP64_UTIL, _PERCENT),
    "fp32_active_ratio": (pynvml.NVML_GPM_METRIC_FP32_UTIL, _PERCENT),
    "fp16_active_ratio": (pynvml.NVML_GPM_METRIC_FP16_UTIL, _PERCENT),
}
"""Reading field → (metric id, the driver's unit → the unit of the name); what a GPU instance has too."""

METRICS: Final = {
    **RATIOS,
    "pcie_tx_bytes_per_second": (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, _MIB),
    "pcie_rx_bytes_per_second": (pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, _MIB),
    "nvlink_rx_bytes_per_second": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, _MIB),
    "nvlink_tx_bytes_per_second": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, _MIB),
}
"""The same, and what only a whole card has."""

Means = dict[str, float | Absence]

_OF_CARD: Final = "nvmlGpmSampleGet"
_OF_INSTANCE: Final = "nvmlGpmMigSampleGet"
_ANSWER: Final = struct.Struct("IId24x")
"""c_nvmlGpmMetric_t: id, return code, value, and three names that nobody reads."""
_AT_ONCE_MAX: Final = 97
"""The smallest struct holds 98 metrics."""


class Request:
    """Asks for metrics of a pair of samples. One serves a card and all its instances: calls are serial."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._struct = pynvml.c_nvmlGpmMetricsGet_t()
        self._struct.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._pointer = ctypes.byref(self._struct)
        # Questions and answers are copied as bytes: the binding's own attribute access costs more than
        # the call.
        first = pynvml.c_nvmlGpmMetricsGet_t.metrics.offset
        self._metrics = memoryview(self._struct).cast("B")[first:]
        self._questions: dict[tuple[int, ...], bytes] = {}
        self._many = True

    def between(self, older: Any, newer: Any) -> None:
        """Ask about this pair from now on."""
        self._struct.sample1, self._struct.sample2 = older, newer

    def metrics(self, metrics: tuple[int, ...]) -> list[tuple[int, float]]:
        """Return of each (return code, value in the driver's unit); the value counts where the code is 0."""
        if self._many and 1 < len(metrics) <= _AT_ONCE_MAX:
            code, answers = self._ask(metrics)
            if code == SUCCESS:
                return answers
            answers = [self._one(metric) for metric in metrics]
            self._many = all(
                code != SUCCESS for code, _ in answers
            )  # else it is the number it refuses
            return answers
        return [self._one(metric) for metric in metrics]

    def _one(self, metric: int) -> tuple[int, float]:
        code, answers = self._ask((metric,))
        if code == pynvml.NVML_ERROR_INVALID_ARGUMENT:
            code = UNKNOWN  # of the pair of samples; an unknown metric says so in its own code
        return answers[0] if code == SUCCESS else (code, math.nan)

    def _ask(self, metrics: tuple[int, ...]) -> tuple[int, list[tuple[int, float]]]:
        question = self._questions.get(metrics)
        if question is None:
            question = b"".join(_ANSWER.pack(metric, SUCCESS, math.nan) for metric in metrics)
            self._questions[metrics] = question
        size = len(question)
        self._metrics[:size] = question
        self._struct.numMetrics = len(metrics)
        code = self._library.call("nvmlGpmMetricsGet", self._pointer)
        answers = []
        for metric, (echoed, own, value) in zip(
            metrics, _ANSWER.iter_unpack(self._metrics[:size]), strict=True
        ):
            if own == SUCCESS and (echoed != metric or value != value):
                own = UNKNOWN
            answers.append((own, value))
        return code, answers


@lru_cache(maxsize=256)
def _plan(names: frozenset[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return reading fields and their metrics, in one order."""
    ordered = tuple(name for name in METRICS if name in names)
    return ordered, tuple(METRICS[name][0] for name in ordered)


class Gpm:
    """The metrics of one card, or of one GPU instance of it.

    Attributes:
        names: reading fields that it has metrics for; shrinks as metrics turn out unsupported.
        denied: the last sample, or a metric of it, was refused for lack of permission.
        cycles: what its cycle counters say; None where it has none.
        method: of the last means: ``gpm`` or ``cycle_counters``.
    """

    def __init__(
        self,
        library: Library,
        handle: Any,
        request: Request,
        clock_ns: Callable[[], int],
        sm_count: int | None,
        gpu_instance: int | None = None,
    ) -> None:
        """Allocate the samples.

        Args:
            clock_ns: the clock of the readings.
            sm_count: streaming multiprocessors of the card, or of the GPU instance.
            gpu_instance: its number; None: the whole card.
        """
        self.names = frozenset(METRICS if gpu_instance is None else RATIOS)
        self.denied = False
        self.cycles: Cycles | None = Cycles(sm_count)
        self.method = "gpm"
        self._library = library
        self._request = request
        self._clock_ns = clock_ns
        self._target = (
            (_OF_CARD, handle)
            if gpu_instance is None
            else (_OF_INSTANCE, handle, ctypes.c_uint(gpu_instance))
        )
        self._counters = frozenset(CYCLE_METRICS)
        self._samples = [sample for sample in (self._alloc(), self._alloc()) if sample is not None]
        self._taken_ns: int | None = None  # reading of the older sample; None: there is none yet
        self._sampled_ns = 0  # when that sample really was taken
        if len(self._samples) < 2:
            self.names = frozenset()

    def _alloc(self) -> Any | None:
        sample = pynvml.c_nvmlGpmSample_t()
        code = self._library.call("nvmlGpmSampleAlloc", ctypes.byref(sample))
        return sample if code == SUCCESS else None

    @property
    def disagreement(self) -> str | None:
        """Return why its cycle counters are not believed; None: nothing against them."""
        return None if self.cycles is None else self.cycles.disagreement

    @property
    def wants_clock(self) -> bool:
        """Return whether the next reading needs a sampled SM clock: its own is not (to be) believed."""
        return self.cycles is None or self.cycles.wants_clock

    def read(self, now_ns: int, clock_mhz: float | None) -> Means:
        """Take a sample and return the means since the one before.

        Empty for the first sample and for one that comes too soon; names that turn out not to be
        supported are left out and leave `names`. With cycle counters ``sm_clock_mhz`` is among them.

        Args:
            now_ns: CLOCK_BOOTTIME.
            clock_mhz: SM clock since the last reading, from another origin; looked at where `wants_clock`.
        """
        if not self.names:
            return {}
        if self._taken_ns is not None and now_ns - self._taken_ns < INTERVAL_NS_MIN:
            return {}
        older, newer = self._samples
        code = self._library.call(*self._target, newer)
        sampled_ns = self._clock_ns()
        self.denied = code == NO_PERMISSION
        if code in UNSUPPORTED:
            self.names = frozenset()
            return {}
        if code != SUCCESS:
            if self._target[0] == _OF_INSTANCE:
                self.restart()  # the instance may be gone, and another come by its number
            # Else keep the older sample: the next mean then covers this time too.
            return dict.fromkeys(self.names, Absence.FAILED)
        before_ns, self._taken_ns = self._taken_ns, now_ns
        sampled_seconds = (sampled_ns - self._sampled_ns) / 1e9
        self._samples, self._sampled_ns = [newer, older], sampled_ns
        if before_ns is None:
            return {}
        self._request.between(older, newer)
        return self._means((now_ns - before_ns) / 1e9, sampled_seconds, clock_mhz)

    def restart(self) -> None:
        """Forget the sample before: what it was taken of is gone, though another bears its number."""
        self._taken_ns = None
        if self.cycles is not None:
            self.cycles.restart()

    def _means(self, seconds: float, sampled_seconds: float, clock_mhz: float | None) -> Means:
        """Return the means of the pair, from cycles where they can be believed."""
        self.method = "gpm"
        if self.cycles is None or self.cycles.disagreement is not None:
            return self._utilisation(self.names)
        counted = self.cycles.step(self._counts(), seconds, sampled_seconds)
        if not self._counters >= REQUIRED:
            self.cycles = None
            return self._utilisation(self.names)
        if counted is not None and not self.cycles.is_check:
            self.method = "cycle_counters"
            return {**self._utilisation(self.names.difference(counted)), **counted}
        means = self._utilisation(self.names)
        if counted is None:
            return means
        compared = {n: v for n in UTILISATION if isinstance(v := means.get(n), float)}
        if not self.cycles.check(counted, compared, clock_mhz):
            return means
        self.method = "cycle_counters"
        return {**means, **counted}

    def _counts(self) -> dict[int, float] | None:
        """Return the cycle counters at the newer sample; None where one of them failed."""
        counts = {}
        asked = tuple(self._counters)
        for metric, (code, value) in zip(asked, self._request.metrics(asked), strict=True):
            if code == SUCCESS:
                counts[metric] = value
            elif code in UNKNOWN_ID:
                self._counters -= {metric}
            else:
                return None
        return counts

    def _utilisation(self, names: frozenset[str]) -> Means:
        means: Means = {}
        missing = set()
        asked, metrics = _plan(names)
        for name, (code, value) in zip(asked, self._request.metrics(metrics), strict=True):
            if code == SUCCESS:
                means[name] = value * METRICS[name][1]
            elif code in UNKNOWN_ID:
                missing.add(name)
            else:
                self.denied |= code == NO_PERMISSION
                means[name] = Absence.FAILED
        if missing:
            self.names -= missing
        return means

    def close(self) -> None:
        """Free the samples."""
        for sample in self._samples:
            self._library.call("nvmlGpmSampleFree", sample)
        self._samples = []
        self.names = frozenset()

"""Raw GPM samples of one card, by this process: every metric by its number, with its return code."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.inventory import Listed, list_cards
from flopwatch_agent.driver.library import SUCCESS, UNKNOWN, Library, LibraryError

PERCENT_METRICS: Final = {
    2: "sm",
    4: "integer",
    5: "any_tensor",
    6: "dfma",
    7: "hmma",
    8: "dmma",
    9: "imma",
    10: "dram",
    11: "fp64",
    12: "fp32",
    13: "fp16",
}
"""Metric → name; means in percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sample and when it was taken. Attributes: code: of the call; boot_ns: just after it."""

    raw: Any
    code: int
    boot_ns: int
    latency_us: float


@contextmanager
def opened(index: int) -> Iterator[tuple[Library, Listed]]:
    """Open the driver in this process and find the card; close it at the end.

    Raises:
        LookupError: the driver lists no such card.
    """
    library = Library()
    try:
        cards, unreachable = list_cards(library)
        if index >= len(cards):
            raise LookupError(
                f"no card {index}: the driver opens {len(cards)} and refuses {unreachable}"
            )
        yield library, cards[index]
    finally:
        library.close()


class Sampler:
    """Takes samples. They are freed with the process: a check takes a few hundred at most."""

    def __init__(self, library: Library, handle: Any) -> None:
        self._library = library
        self._handle = handle
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version, self._request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 1

    def take(self) -> Sample:
        """Return a sample taken now; `code` says whether it holds anything."""
        raw = pynvml.c_nvmlGpmSample_t()
        code = self._call("nvmlGpmSampleAlloc", ctypes.byref(raw))
        began = time.perf_counter_ns()
        if code == SUCCESS:
            code = self._call("nvmlGpmSampleGet", self._handle, raw)
        took = (time.perf_counter_ns() - began) / 1e3
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return Sample(raw=raw, code=code, boot_ns=boot_ns, latency_us=took)

    def metric(self, older: Sample, newer: Sample, metric: int) -> tuple[int, float | None]:
        """Return (return code, value in the driver's unit); the value is None unless the code is 0."""
        if older.code or newer.code:
            return older.code or newer.code, None
        self._request.sample1, self._request.sample2 = older.raw, newer.raw
        answer = self._request.metrics[0]
        answer.metricId, answer.nvmlReturn, answer.value = metric, SUCCESS, math.nan
        code = self._call("nvmlGpmMetricsGet", ctypes.byref(self._request)) or int(
            answer.nvmlReturn
        )
        if code == SUCCESS and (answer.metricId != metric or math.isnan(answer.value)):
            code = UNKNOWN
        return code, float(answer.value) if code == SUCCESS else None

    def metrics(
        self, older: Sample, newer: Sample, metrics: Iterable[int]
    ) -> dict[int, tuple[int, float | None]]:
        """Return the answer of each metric."""
        return {metric: self.metric(older, newer, metric) for metric in metrics}

    def _call(self, symbol: str, *args: Any) -> int:
        try:
            return int(self._library.call(symbol, *args))
        except LibraryError as exc:
            return int(exc.code)


def code_text(code: int) -> str:
    """Return a return code as NVML names it."""
    return "ok" if code == SUCCESS else str(pynvml.NVMLError(code))

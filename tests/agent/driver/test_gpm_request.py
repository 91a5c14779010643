"""A library that takes one metric at a time, and one that takes many."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pynvml
import pytest

from flopwatch_agent.driver.gpm import Request


class FakeLibrary:
    """Answers metric n with n/10, id 99 with "not supported", and leaves id 98 unwritten."""

    def __init__(self, at_once_max: int) -> None:
        self.at_once_max = at_once_max
        self.calls = 0

    def call(self, symbol: str, pointer: Any) -> int:
        assert symbol == "nvmlGpmMetricsGet"
        self.calls += 1
        asked = ctypes.cast(pointer, ctypes.POINTER(pynvml.c_nvmlGpmMetricsGet_t)).contents
        if asked.numMetrics > self.at_once_max:
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        for i in range(asked.numMetrics):
            metric = asked.metrics[i]
            if metric.metricId == 99:
                metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
            elif metric.metricId != 98:
                metric.value = metric.metricId / 10
        return int(pynvml.NVML_SUCCESS)


@pytest.mark.parametrize("at_once_max", [1, 97])
def test_every_metric_has_its_own_answer(at_once_max: int) -> None:
    library = FakeLibrary(at_once_max)
    request = Request(library)  # type: ignore[arg-type]
    for _ in range(2):
        answers = request.metrics((5, 99, 7, 98))
        assert [code for code, _ in answers] == [
            pynvml.NVML_SUCCESS,
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_SUCCESS,
            pynvml.NVML_ERROR_UNKNOWN,
        ]
        assert (answers[0][1], answers[2][1]) == (0.5, 0.7)
        assert math.isnan(answers[3][1])
    assert library.calls == (1 + 2 * 4 if at_once_max == 1 else 2)


def test_a_pair_that_cannot_be_compared_is_a_failure_and_not_an_unknown_metric() -> None:
    request = Request(FakeLibrary(at_once_max=0))  # type: ignore[arg-type]
    assert [code for code, _ in request.metrics((5, 7))] == [pynvml.NVML_ERROR_UNKNOWN] * 2

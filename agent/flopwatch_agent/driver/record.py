"""Recording a driver: every call of the tables, on every card, with its answer and how long it took.

    python -m flopwatch_agent.driver.record FILE

writes ``{"driver": …, "cuda": …, "devices": [{"calls": {FUNCTION: [{"args": […], "return": CODE,
"value": …, "latency_us": …}, …]}}]}``. Values are as the library gives them, in its own units: structs
are objects, pairs are lists; a call that did not answer has no value. The arguments are those between
the device and what the call fills.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.calls import PROVIDERS, SM_CLOCK_NOW, Call, Field, FieldBatch
from flopwatch_agent.driver.gpm import METRICS
from flopwatch_agent.driver.inventory import list_cards
from flopwatch_agent.driver.library import SUCCESS, UNKNOWN, DriverUnusable, Library, LibraryError

COUNTERS: Final = tuple(range(248, 261))
"""Counters of cycles and bytes: all are recorded, though readings take cycles alone (`cycles`)."""

_TEXTS: Final = ("nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetSerial")
_NUMBERS: Final = (
    ("nvmlDeviceGetMinorNumber", ()),
    ("nvmlDeviceGetNumGpuCores", ()),
    ("nvmlDeviceGetMaxMigDeviceCount", ()),
    ("nvmlDeviceGetMaxClockInfo", (pynvml.NVML_CLOCK_SM,)),
)
_PAIRS: Final = ("nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMigMode")


class Recorder:
    """The calls of one card. Attributes: calls: function → its answers."""

    def __init__(self, library: Library, handle: Any) -> None:
        self.calls: dict[str, list[dict[str, Any]]] = {}
        self._library = library
        self._handle = handle

    def record(self, pause_seconds: float) -> dict[str, list[dict[str, Any]]]:
        """Make every call and return the answers.

        Args:
            pause_seconds: between the two samples of the performance metrics.
        """
        for symbol in _TEXTS:
            text = ctypes.create_string_buffer(96)
            code, took = self._timed(symbol, text, ctypes.c_uint(96))
            self._note(symbol, (), code, took, text.value.decode("utf-8", "replace"))
        for symbol, args in _NUMBERS:
            self._call(Call(symbol=symbol, args=args, out=ctypes.c_uint, gives=()))
        for symbol in _PAIRS:
            first, second = ctypes.c_uint(), ctypes.c_uint()
            code, took = self._timed(symbol, ctypes.byref(first), ctypes.byref(second))
            self._note(symbol, (), code, took, [first.value, second.value])
        pci = Call(symbol="nvmlDeviceGetPciInfo_v3", out=pynvml.nvmlPciInfo_t, gives=())
        # The preferred of two functions for one thing comes last: whoever replays the file takes it.
        tabled = [p for p in PROVIDERS if isinstance(p, Call)]
        for call in (pci, SM_CLOCK_NOW, *reversed(tabled)):
            self._call(call)
        self._fields(tuple(p for p in PROVIDERS if isinstance(p, Field)))
        self._gpm(pause_seconds)
        return self.calls

    def _timed(self, symbol: str, *args: Any) -> tuple[int, float]:
        began = time.perf_counter_ns()
        try:
            code = self._library.call(symbol, self._handle, *args)
        except LibraryError as exc:
            code = exc.code
        return code, (time.perf_counter_ns() - began) / 1000

    def _note(
        self, symbol: str, args: Sequence[int], code: int, latency_us: float, value: Any
    ) -> None:
        answer = {
            "args": list(args),
            "return": code,
            "value": value if code == SUCCESS else None,
            "latency_us": round(latency_us, 1),
        }
        self.calls.setdefault(symbol, []).append(answer)

    def _call(self, call: Call) -> None:
        out = call.out()
        if call.version is not None:
            out.version = call.version
        code, took = self._timed(call.symbol, *call.args, ctypes.byref(out))
        self._note(call.symbol, call.args, code, took, _plain(out))

    def _fields(self, fields: tuple[Field, ...]) -> None:
        began = time.perf_counter_ns()
        try:
            answers = FieldBatch(fields).read(self._library, self._handle)
        except LibraryError as exc:
            answers = [(field, exc.code, 0.0) for field in fields]
        took = (time.perf_counter_ns() - began) / 1000
        value = [
            {
                "fieldId": field.id,
                "scopeId": field.scope,
                "nvmlReturn": code,
                "value": number if code == SUCCESS else None,
            }
            for field, code, number in answers
        ]
        self._note("nvmlDeviceGetFieldValues", (), SUCCESS, took, value)

    def _gpm(self, pause_seconds: float) -> None:
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 1
        samples = [pynvml.c_nvmlGpmSample_t(), pynvml.c_nvmlGpmSample_t()]
        if any(self._library.call("nvmlGpmSampleAlloc", ctypes.byref(s)) for s in samples):
            return
        try:
            for i, sample in enumerate(samples):
                if i:
                    time.sleep(pause_seconds)
                code, took = self._timed("nvmlGpmSampleGet", sample)
                self._note("nvmlGpmSampleGet", (), code, took, None)
            request.sample1, request.sample2 = samples
            for metric in (*(m for m, _ in METRICS.values()), *COUNTERS):
                self._metric(request, metric)
        finally:
            for sample in samples:
                self._library.call("nvmlGpmSampleFree", sample)

    def _metric(self, request: Any, metric: int) -> None:
        answer = request.metrics[0]
        answer.metricId, answer.nvmlReturn, answer.value = metric, SUCCESS, float("nan")
        began = time.perf_counter_ns()
        try:
            code = self._library.call("nvmlGpmMetricsGet", ctypes.byref(request))
        except LibraryError as exc:
            code = exc.code
        took = (time.perf_counter_ns() - began) / 1000
        code = code or answer.nvmlReturn
        if code == SUCCESS and (answer.metricId != metric or answer.value != answer.value):
            code = UNKNOWN
        self._note("nvmlGpmMetricsGet", (metric,), code, took, answer.value)


def _plain(out: Any) -> Any:
    if not isinstance(out, ctypes.Structure):
        return out.value
    return {name: getattr(out, name) for name, *_ in out._fields_}


def record(library: Library, pause_seconds: float = 1.0) -> dict[str, Any]:
    """Return the recording of every card that can be opened."""
    cards, _ = list_cards(library)
    cuda = ctypes.c_int()
    code = library.call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
    return {
        "driver": library.text("nvmlSystemGetDriverVersion"),
        "nvml": library.text("nvmlSystemGetNVMLVersion"),
        "cuda": cuda.value if code == SUCCESS else None,
        "devices": [
            {"calls": Recorder(library, card.handle).record(pause_seconds)} for card in cards
        ],
    }


def main() -> int:
    """Write a recording of this host's driver to the file named on the command line."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m flopwatch_agent.driver.record FILE\n")
        return 2
    try:
        library = Library()
    except DriverUnusable as exc:
        sys.stderr.write(f"{exc.failure.call}: {exc.failure.text}\n")
        return 1
    try:
        recording = record(library)
    finally:
        library.close()
    Path(sys.argv[1]).write_text(json.dumps(recording, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""NVIDIA's library: every function by name, answering its return code.

A function that the library does not have answers FUNCTION_NOT_FOUND, which callers treat as "not
supported": drivers differ in what they export, and a lazily bound call to a missing function kills the
process. Only two kinds of answer are raised, because every caller would have to unwind for them:

LibraryError
├── DriverUnusable   the whole driver: another process has to open it afresh
└── DeviceLost       one card: the others go on
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.messages import Failure

SUCCESS: Final = pynvml.NVML_SUCCESS
NO_PERMISSION: Final = pynvml.NVML_ERROR_NO_PERMISSION
NOT_FOUND: Final = pynvml.NVML_ERROR_NOT_FOUND
INSUFFICIENT_SIZE: Final = pynvml.NVML_ERROR_INSUFFICIENT_SIZE
TIMEOUT: Final = pynvml.NVML_ERROR_TIMEOUT
UNKNOWN: Final = pynvml.NVML_ERROR_UNKNOWN

UNSUPPORTED: Final = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
    }
)
"""Return codes that mean: this device or driver does not have it."""

UNKNOWN_ID: Final = UNSUPPORTED | {pynvml.NVML_ERROR_INVALID_ARGUMENT}
"""The same of an id (field, metric, sensor) asked for the first time: an old driver does not know it."""

_STATES: Final = {
    pynvml.NVML_ERROR_UNINITIALIZED: "lost",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "absent",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "absent",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "mismatch",
}
_LOST: Final = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "gpu_is_lost",
    pynvml.NVML_ERROR_GPU_NOT_FOUND: "gpu_is_lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset_required",
}
_KERNEL_MODULE: Final = Path("/proc/driver/nvidia/version")
_MAPS: Final = Path("/proc/self/maps")
_CONTROL_DEVICE: Final = Path("/dev/nvidiactl")
_VERSION: Final = re.compile(r"\b\d+\.\d+(\.\d+)?\b")
_SONAME: Final = re.compile(r"libnvidia-ml\.so\.(\d+\.\d+(?:\.\d+)?)")


class LibraryError(Exception):
    """A return code that ends more than one call. Attributes: symbol, code."""

    def __init__(self, symbol: str, code: int) -> None:
        super().__init__(f"{symbol} answered {code}")
        self.symbol = symbol
        self.code = code


class DriverUnusable(LibraryError):
    """The driver as a whole; `failure` is what to tell the parent."""

    @property
    def failure(self) -> Failure:
        """Return the message for the parent."""
        text = pynvml.NVMLError._errcode_to_string.get(self.code, f"code {self.code}")
        if self.code == UNKNOWN and (refusal := refused_device()):
            text = f"{text}; {refusal}"
        return Failure(
            state=_STATES.get(self.code, "lost"),
            call=self.symbol,
            code=self.code,
            text=text,
            versions=versions(),
        )


class DeviceLost(LibraryError):
    """One card; `failure` names it as a reading does."""

    @property
    def failure(self) -> str:
        """Return ``gpu_is_lost`` or ``reset_required``."""
        return _LOST.get(self.code, "gpu_is_lost")


class Library:
    """The library, opened. Calls are serial: the metrics functions are not safe beside each other."""

    def __init__(self) -> None:
        """Open the driver.

        Raises:
            DriverUnusable: no library, no driver, versions that do not fit, or any other refusal.
        """
        try:
            pynvml.nvmlInitWithFlags(0)
        except pynvml.NVMLError as exc:
            raise DriverUnusable("nvmlInitWithFlags", exc.value) from exc
        self._functions: dict[str, Callable[..., int] | None] = {}

    def function(self, symbol: str) -> Callable[..., int] | None:
        """Return the function, or None where this library does not have it; looked for once."""
        if symbol not in self._functions:
            found: Callable[..., int] | None
            try:
                # By item, not by attribute: a function object of our own, not the binding's.
                found = pynvml.nvmlLib[symbol]
            except AttributeError:
                found = None
            self._functions[symbol] = found
        return self._functions[symbol]

    def call(self, symbol: str, *args: Any) -> int:
        """Return the function's return code.

        Raises:
            DriverUnusable: the driver as a whole is gone.
            DeviceLost: the card is.
        """
        function = self.function(symbol)
        if function is None:
            return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        code = function(*args)
        if code == SUCCESS:
            return code
        if code in _STATES:
            raise DriverUnusable(symbol, code)
        if code in _LOST:
            raise DeviceLost(symbol, code)
        return code

    def text(self, symbol: str, *handle: Any, size: int = 96) -> str | None:
        """Return what a function writes into a buffer, or None where it does not answer."""
        buffer = ctypes.create_string_buffer(size)
        code = self.call(symbol, *handle, buffer, ctypes.c_uint(size))
        return buffer.value.decode("utf-8", "replace") if code == SUCCESS else None

    def number(self, symbol: str, *args: Any) -> int | None:
        """Return the one unsigned number that a function answers, or None."""
        out = ctypes.c_uint()
        return out.value if self.call(symbol, *args, ctypes.byref(out)) == SUCCESS else None

    def close(self) -> None:
        """Let go of the driver; it may be gone already."""
        if (shutdown := self.function("nvmlShutdown")) is not None:
            shutdown()


def versions(module: Path = _KERNEL_MODULE, maps: Path = _MAPS) -> str | None:
    """Return the versions of the library that this process has loaded and of the kernel's module."""
    found = {"library": _library_version(maps), "kernel module": _version_in(module)}
    return ", ".join(f"{name} {text}" for name, text in found.items() if text) or None


def refused_device(control: Path = _CONTROL_DEVICE) -> str | None:
    """Return why the driver's device cannot be opened, where that is a refusal.

    A container loses its devices when systemd rewrites its device rules (``daemon-reload``); the driver
    then answers "unknown error" to everything.
    """
    try:
        os.close(os.open(control, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as exc:
        return f"{control}: {exc.strerror}: a container lost its devices, start it again"
    except OSError:
        pass
    return None


def _library_version(maps: Path) -> str | None:
    """Ask the library, which answers also where it refuses to start; else the name of its file."""
    with contextlib.suppress(AttributeError, TypeError):
        buffer = ctypes.create_string_buffer(96)
        code = pynvml.nvmlLib["nvmlSystemGetNVMLVersion"](buffer, ctypes.c_uint(len(buffer)))
        if code == SUCCESS:
            return buffer.value.decode("ascii", "replace").partition(".")[2] or None
    with contextlib.suppress(OSError):
        for line in maps.read_text().splitlines():
            if found := _SONAME.search(line):
                return found[1]
    return None


def _version_in(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        if found := _VERSION.search(path.read_text()):
            return found[0]
    return None

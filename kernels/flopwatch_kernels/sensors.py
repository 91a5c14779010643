"""Clock, power, temperature and energy of the device under a probe.

A sensor answers with what it can read and None for the rest; a reading that fails is None too. A
`Watch` asks it ten times a second while the device computes.
"""

import importlib
import math
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from flopwatch_kernels.errors import ProbeError

_PERIOD_SECONDS: Final = 0.1
_ENERGY_SECONDS_MIN: Final = 1.0  # NVML and RAPL counters step every 1..100 ms
_THROTTLES: Final = {
    "power": ("PERF_POLICY_POWER",),
    "thermal_sw": ("CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN", "PERF_POLICY_THERMAL"),
    "thermal_hw": ("CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",),
    "power_brake": ("CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",),
    "sync_boost": ("PERF_POLICY_SYNC_BOOST",),
}
"""Reason for a low clock -> NVML's field of its ns counter, newest first: older drivers have one
thermal counter."""

_RAPL_PACKAGE: Final = re.compile(r"intel-rapl:\d+")  # the name on AMD as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a device. Attributes: clock in MHz, power in W, temperature in degrees C;
    None where the device does not say."""

    clock_mhz: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A device over a window: mean clock (MHz), mean power (W), highest temperature (degrees C),
    energy (J), None where not known; seconds below the wanted clock by reason, as far as known."""

    clock_mhz: float | None
    power_watts: float | None
    temperature_celsius: float | None
    energy_joules: float | None
    throttle_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which piece of hardware it is, and what drives it. Attributes: serial: of the board;
    driver_version: e.g. "595.58.03"; None where not known."""

    serial: str | None = None
    driver_version: str | None = None


def told(who: Identity, seen: Summary) -> dict[str, Any]:
    """What every `ProbeResult` says of the device and of how it was meanwhile."""
    return {
        "serial": who.serial,
        "driver_version": who.driver_version,
        "sm_clock_mhz": seen.clock_mhz,
        "power_watts": seen.power_watts,
        "temperature_celsius": seen.temperature_celsius,
        "energy_joules": seen.energy_joules,
        "throttle_seconds": dict(seen.throttle_seconds),
    }


class Sensor(Protocol):
    """What a `Watch` needs of a device."""

    def read(self) -> Reading:
        """The device now."""

    def energy(self) -> tuple[tuple[float, float | None], ...] | None:
        """Cumulative counters as (joules, wraps at joules or None); None where there are none."""

    def throttled_seconds(self) -> Mapping[str, float]:
        """Cumulative seconds below the wanted clock by reason; empty where nobody counts."""

    def identity(self) -> Identity:
        """Which piece of hardware it is."""


class CpuSensor:
    """A host's processors, from /proc and /sys."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._cpus = root / "sys/devices/system/cpu"
        self._cpuinfo = root / "proc/cpuinfo"
        self._powercap = root / "sys/class/powercap"

    def read(self) -> Reading:
        """Mean core clock; power comes from the energy counters, temperature is not read."""
        return Reading(clock_mhz=self._clock_mhz())

    def energy(self) -> tuple[tuple[float, float | None], ...] | None:
        """RAPL package counters, J; None without them or without the right to read them."""
        counters = []
        for package in sorted(self._powercap.glob("intel-rapl:*")):
            if not _RAPL_PACKAGE.fullmatch(package.name):
                continue  # a part of a package: its energy is in the package's own
            used = _read_number(package / "energy_uj")
            if used is None:
                return None
            wraps = _read_number(package / "max_energy_range_uj")
            counters.append((used / 1e6, None if wraps is None else wraps / 1e6))
        return tuple(counters) or None

    def throttled_seconds(self) -> Mapping[str, float]:
        """Nothing: no counter of a processor says why it is slow."""
        return {}

    def identity(self) -> Identity:
        """Nothing: a processor has no serial number that may be read."""
        return Identity()

    def model_name(self) -> str | None:
        """The processor's name, or None where the kernel prints none (most of aarch64)."""
        for line in self._cpuinfo_lines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or None
        return None

    def _clock_mhz(self) -> float | None:
        scaled = [
            khz / 1000
            for path in self._cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
            if (khz := _read_number(path)) is not None
        ]
        if scaled:
            return statistics.fmean(scaled)
        listed = [
            float(line.partition(":")[2])
            for line in self._cpuinfo_lines()
            if line.startswith("cpu MHz")
        ]
        return statistics.fmean(listed) if listed else None

    def _cpuinfo_lines(self) -> Iterable[str]:
        try:
            return self._cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ()


class NvmlSensor:
    """One NVIDIA card, through NVML; every call that the driver refuses reads as None."""

    def __init__(self, selector: str) -> None:
        """Args: selector: the card's index or UUID. Raises: ProbeError: NVML has no such card."""
        self._nvml: Any = importlib.import_module("pynvml")
        try:
            self._nvml.nvmlInit()
            self._card: Any = (
                self._nvml.nvmlDeviceGetHandleByIndex(int(selector))
                if selector.isdigit()
                else self._nvml.nvmlDeviceGetHandleByUUID(selector)
            )
        except self._nvml.NVMLError as exc:
            raise ProbeError(
                f"NVML does not know --device cuda:{selector} ({exc}): check nvidia-smi -L"
            ) from exc

    def read(self) -> Reading:
        """SM clock, board power and GPU temperature."""
        nvml, card = self._nvml, self._card
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(card))
        return Reading(
            clock_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=self._ask(
                lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
            ),
        )

    def energy(self) -> tuple[tuple[float, float | None], ...] | None:
        """The card's counter since the driver was loaded, J."""
        millijoules = self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._card))
        return None if millijoules is None else ((millijoules / 1000, None),)

    def throttled_seconds(self) -> Mapping[str, float]:
        """The driver's counters of time below the wanted clock; what it does not count is left out."""
        found = {}
        for reason, fields in _THROTTLES.items():
            for name in fields:
                nanoseconds = self._field(f"NVML_FI_DEV_{name}")
                if nanoseconds is not None:
                    found[reason] = nanoseconds / 1e9
                    break
        return found

    def identity(self) -> Identity:
        """Serial number of the board and version of the driver."""
        nvml = self._nvml
        return Identity(
            serial=self._ask_text(lambda: nvml.nvmlDeviceGetSerial(self._card)),
            driver_version=self._ask_text(nvml.nvmlSystemGetDriverVersion),
        )

    def pcie_link(self) -> tuple[int, int] | None:
        """Generation and lanes of the PCIe link as it runs now: an idle one is slow."""
        nvml, card = self._nvml, self._card
        generation = self._ask(lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(card))
        width = self._ask(lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(card))
        return None if generation is None or width is None else (int(generation), int(width))

    def uuid(self) -> str:
        """The card's UUID, "GPU-..."."""
        return str(self._nvml.nvmlDeviceGetUUID(self._card))

    def compute_pids(self) -> tuple[int, ...] | None:
        """Processes that hold a compute context on the card; None where NVML does not say."""
        try:
            found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._card)
        except self._nvml.NVMLError:
            return None
        return tuple(int(process.pid) for process in found)

    def _field(self, name: str) -> float | None:
        """A field value by the name of its constant, which an older binding may lack."""
        number = getattr(self._nvml, name, None)
        if number is None:
            return None
        try:
            [answer] = self._nvml.nvmlDeviceGetFieldValues(self._card, [number])
        except self._nvml.NVMLError:
            return None
        return None if answer.nvmlReturn else float(answer.value.ullVal)

    def _ask_text(self, call: Callable[[], Any]) -> str | None:
        try:
            said = call()
        except self._nvml.NVMLError:
            return None
        return said.decode(errors="replace") if isinstance(said, bytes) else str(said)

    def _ask(self, call: Callable[[], Any]) -> float | None:
        try:
            return float(call())
        except self._nvml.NVMLError:
            return None


class NoSensor:
    """A device that nothing can be read of."""

    def read(self) -> Reading:
        """Nothing."""
        return Reading()

    def energy(self) -> None:
        """Nothing."""
        return None

    def throttled_seconds(self) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def identity(self) -> Identity:
        """Nothing."""
        return Identity()


class Watch:
    """Samples a sensor in a thread for the time of a `with` block; `summary()` afterwards."""

    def __init__(self, sensor: Sensor, period_seconds: float = _PERIOD_SECONDS) -> None:
        self._sensor = sensor
        self._period_seconds = period_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="probe-watch", daemon=True)
        self._readings: list[Reading] = []
        self._energy_before: tuple[tuple[float, float | None], ...] | None = None
        self._energy_after: tuple[tuple[float, float | None], ...] | None = None
        self._throttled_before: Mapping[str, float] = {}
        self._throttled_after: Mapping[str, float] = {}
        self._started_at = 0.0
        self.seconds = 0.0

    def __enter__(self) -> "Watch":
        self._throttled_before = self._sensor.throttled_seconds()
        self._energy_before = self._sensor.energy()
        self._started_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._started_at
        self._energy_after = self._sensor.energy()
        self._throttled_after = self._sensor.throttled_seconds()
        self._stop.set()
        self._thread.join()

    def newest(self) -> Reading:
        """The last look at the device; an empty one before the first."""
        return self._readings[-1] if self._readings else Reading()

    def summary(self) -> Summary:
        """The window's means, highest temperature and energy."""
        temperatures = _known(r.temperature_celsius for r in self._readings)
        energy_joules = None
        if self.seconds >= _ENERGY_SECONDS_MIN:
            energy_joules = energy_between(self._energy_before, self._energy_after)
        power_watts = _mean(_known(r.power_watts for r in self._readings))
        if power_watts is None and energy_joules is not None:
            power_watts = energy_joules / self.seconds
        return Summary(
            clock_mhz=_mean(_known(r.clock_mhz for r in self._readings)),
            power_watts=power_watts,
            temperature_celsius=max(temperatures) if temperatures else None,
            energy_joules=energy_joules,
            throttle_seconds={
                reason: after - self._throttled_before[reason]
                for reason, after in self._throttled_after.items()
                if after >= self._throttled_before.get(reason, math.inf)
            },
        )

    def _sample(self) -> None:
        while True:
            self._readings.append(self._sensor.read())
            if self._stop.wait(self._period_seconds):
                return


def energy_between(
    before: tuple[tuple[float, float | None], ...] | None,
    after: tuple[tuple[float, float | None], ...] | None,
) -> float | None:
    """Joules between two readings of the same counters; None where one is missing or ran back.

    A counter that wrapped once is unwrapped with its range.
    """
    if before is None or after is None or len(before) != len(after):
        return None
    total = 0.0
    for (old, _), (new, wraps) in zip(before, after, strict=True):
        used = new - old
        if used < 0 and wraps is not None:
            used += wraps
        if used < 0:
            return None
        total += used
    return total


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _read_number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None

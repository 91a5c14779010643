"""What a CPU says of itself, read from a made-up /proc and /sys."""

import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from flopwatch_kernels.sensors import (
    CpuSensor,
    Identity,
    NoSensor,
    NvmlSensor,
    Reading,
    Watch,
    energy_between,
)


def write(root: Path, files: dict[str, str]) -> CpuSensor:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return CpuSensor(root)


def test_a_host_that_says_nothing_reads_as_none_and_never_zero(tmp_path: Path) -> None:
    sensor = write(tmp_path, {})
    assert sensor.read() == Reading()
    assert sensor.energy() is None
    assert sensor.model_name() is None


def test_the_clock_is_the_mean_of_cpufreq(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"
    sensor = write(
        tmp_path,
        {cpu.format(0): "2000000\n", cpu.format(1): "3000000\n", "proc/cpuinfo": "cpu MHz\t: 1\n"},
    )
    assert sensor.read().clock_mhz == 2500


def test_without_cpufreq_the_clock_is_the_mean_of_cpuinfo(tmp_path: Path) -> None:
    text = "model name\t: Some CPU\ncpu MHz\t\t: 2600.5\n\nmodel name\t: Some CPU\ncpu MHz\t\t: 2599.5\n"
    sensor = write(tmp_path, {"proc/cpuinfo": text})
    assert sensor.read().clock_mhz == 2600
    assert sensor.model_name() == "Some CPU"


def test_energy_counts_packages_and_not_their_parts(tmp_path: Path) -> None:
    rapl = "sys/class/powercap/"
    sensor = write(
        tmp_path,
        {
            rapl + "intel-rapl:0/energy_uj": "5000000\n",
            rapl + "intel-rapl:0/max_energy_range_uj": "262143000000\n",
            rapl + "intel-rapl:0:0/energy_uj": "4000000\n",
            rapl + "intel-rapl:1/energy_uj": "7000000\n",
        },
    )
    assert sensor.energy() == ((5.0, 262143.0), (7.0, None))


def test_a_counter_that_may_not_be_read_makes_the_energy_unknown(tmp_path: Path) -> None:
    sensor = write(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
    assert sensor.energy() is None


def test_a_counter_that_wrapped_is_unwrapped_and_one_that_ran_back_is_unknown() -> None:
    assert energy_between(((90.0, 100.0),), ((15.0, 100.0),)) == 25
    assert energy_between(((1.0, None), (2.0, None)), ((4.0, None), (6.0, None))) == 7
    assert energy_between(((90.0, None),), ((15.0, None),)) is None
    assert energy_between(None, ((15.0, None),)) is None
    assert energy_between(((1.0, None),), ((1.0, None), (2.0, None))) is None


class Fake:
    """A device with a rising temperature and a counter of ten joules per look."""

    def __init__(self) -> None:
        self._temperatures = itertools.chain((40.0, 60.0), itertools.repeat(50.0))
        self._joules = itertools.count(0, 10)
        self._throttled = iter(
            ({"power": 3.0, "reset": 9.0}, {"power": 3.5, "reset": 1.0, "new": 7.0})
        )

    def read(self) -> Reading:
        return Reading(clock_mhz=1830.0, temperature_celsius=next(self._temperatures))

    def energy(self) -> tuple[tuple[float, float | None], ...]:
        return ((float(next(self._joules)), None),)

    def throttled_seconds(self) -> dict[str, float]:
        return next(self._throttled)

    def identity(self) -> Identity:
        return Identity()


def test_a_watch_keeps_means_and_the_highest_temperature() -> None:
    with Watch(Fake(), period_seconds=0.001) as watch:
        while len(watch._readings) < 3:
            pass
    summary = watch.summary()
    assert summary.clock_mhz == 1830
    assert summary.temperature_celsius == 60
    assert summary.power_watts is None
    assert watch.newest().clock_mhz == 1830


def test_time_below_the_clock_is_a_difference_and_a_counter_that_ran_back_or_came_is_unknown() -> (
    None
):
    with Watch(Fake(), period_seconds=0.001) as watch:
        pass
    assert watch.summary().throttle_seconds == {"power": 0.5}


def test_energy_over_a_short_window_is_unknown_and_over_a_long_one_gives_power() -> None:
    with Watch(Fake(), period_seconds=0.001) as watch:
        pass
    assert watch.summary().energy_joules is None
    watch.seconds = 2.0
    assert watch.summary().energy_joules == 10
    assert watch.summary().power_watts == pytest.approx(5)


def test_a_device_without_sensors_reads_as_none() -> None:
    with Watch(NoSensor(), period_seconds=0.001) as watch:
        pass
    watch.seconds = 5.0
    summary = watch.summary()
    assert (summary.clock_mhz, summary.power_watts, summary.energy_joules) == (None, None, None)


class Driver(ModuleType):
    """A stand-in for pynvml that knows one card and refuses its power reading."""

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As in pynvml."""

    NVML_FI_DEV_PERF_POLICY_POWER = 74
    NVML_FI_DEV_PERF_POLICY_THERMAL = 75

    def nvmlDeviceGetFieldValues(self, card: str, fields: list[int]) -> list[SimpleNamespace]:
        if fields == [75]:
            return [SimpleNamespace(nvmlReturn=3, value=SimpleNamespace(ullVal=0))]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(ullVal=1_500_000_000))]

    def nvmlDeviceGetSerial(self, card: str) -> bytes:
        return b"1650123"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "595.58.03"

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"card {index}"

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetClockInfo(self, card: str, clock: int) -> int:
        return 1755

    def nvmlDeviceGetTemperature(self, card: str, sensor: int) -> int:
        return 61

    def nvmlDeviceGetTotalEnergyConsumption(self, card: str) -> int:
        return 5500

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[object]:
        raise self.NVMLError("Insufficient Permissions")


def test_a_reading_that_the_driver_refuses_is_none_beside_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver("pynvml"))
    card = NvmlSensor("0")
    assert card.read() == Reading(clock_mhz=1755, power_watts=None, temperature_celsius=61)
    assert card.energy() == ((5.5, None),)
    assert card.throttled_seconds() == {"power": 1.5}
    assert card.identity() == Identity(serial="1650123", driver_version="595.58.03")
    assert card.compute_pids() is None

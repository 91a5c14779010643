"""The host's processor, read from a made-up kernel, and the choice of sources."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from flopwatch_agent.config import AgentConfig
from flopwatch_agent.reading import FIELDS
from flopwatch_agent.sources import NoDevice, Source, SourceReport
from flopwatch_agent.sources.processor import PackageEnergy, ProcessorSource
from flopwatch_agent.sources.registry import SOURCES, SourceEntry, start_sources
from flopwatch_proto.rows import Absence


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    put(tmp_path / "proc/cpuinfo", "processor\t: 0\nmodel name\t: Paper CPU 9000\ncpu MHz : 1.0")
    for number, khz in enumerate((2_000_000, 3_000_000)):
        put(tmp_path / f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq", str(khz))
    put(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "3500000")
    for number, name in enumerate(("package-0", "package-1", "psys")):
        zone = tmp_path / f"sys/class/powercap/intel-rapl:{number}"
        put(zone / "name", name)
        put(zone / "energy_uj", "1000000")
        put(zone / "max_energy_range_uj", "10000000")
    return tmp_path


async def test_the_processor_is_one_device_with_what_the_kernel_says(kernel: Path) -> None:
    source = ProcessorSource(proc_root=kernel / "proc", sys_root=kernel / "sys")
    await source.start()
    await source.read()
    put(kernel / "sys/class/powercap/intel-rapl:0/energy_uj", "4000000")
    (reading,) = (await source.read()).readings
    assert (reading.device.slot, reading.device.kind) == ("cpu", "cpu")
    assert reading.device.sku == "Paper CPU 9000"
    assert reading.device.clock_mhz_max == 3500
    assert reading.values["sm_clock_mhz"] == 2500
    assert reading.values["energy_joules_total"] == 3.0
    assert reading.values["power_watts"] > 0
    assert reading.values["memory_total_bytes"] >= reading.values["memory_used_bytes"] > 0
    assert reading.values["gpu_utilization_ratio"] is Absence.NOT_SUPPORTED
    assert reading.values.keys() == FIELDS.keys()


async def test_energy_that_nobody_may_read_is_not_supported(kernel: Path) -> None:
    put(kernel / "sys/class/powercap/intel-rapl:1/energy_uj", "")
    source = ProcessorSource(proc_root=kernel / "proc", sys_root=kernel / "sys")
    await source.start()
    (reading,) = (await source.read()).readings
    assert reading.values["energy_joules_total"] is Absence.NOT_SUPPORTED
    assert reading.values["power_watts"] is Absence.NOT_SUPPORTED


def test_a_counter_of_energy_that_wraps_goes_on(kernel: Path) -> None:
    energy = PackageEnergy(kernel / "sys/class/powercap")
    assert energy.read() == 0.0
    put(kernel / "sys/class/powercap/intel-rapl:0/energy_uj", "500000")
    put(kernel / "sys/class/powercap/intel-rapl:2/energy_uj", "9000000")
    assert energy.read() == 9.5


class Found:
    """A source with nothing in it."""

    name = "found"

    async def start(self) -> None:
        return

    async def read(self) -> SourceReport:
        return SourceReport()

    async def close(self) -> None:
        return


class Empty(Found):
    """A source for something that this host does not have."""

    name = "empty"

    async def start(self) -> None:
        raise NoDevice("nothing here")


@pytest.mark.parametrize(
    ("first", "enabled", "expected"),
    [
        (Found, {}, ["found"]),
        (Empty, {}, ["processor"]),
        (Found, {"processor": True}, ["found", "processor"]),
        (Found, {"first": False}, ["processor"]),
        (Empty, {"processor": False}, []),
    ],
)
async def test_the_processor_stands_in_where_there_is_no_accelerator(
    first: type[Source], enabled: dict[str, bool], expected: list[str]
) -> None:
    entries = (
        SourceEntry(name="first", build=lambda config: first()),
        SourceEntry(name="processor", build=lambda config: ProcessorSource(), fallback=True),
    )
    config = cast("AgentConfig", SimpleNamespace(sources=enabled))
    assert [source.name for source in await start_sources(config, entries)] == expected


def test_the_registry_names_every_source_as_it_names_itself() -> None:
    assert [entry.name for entry in SOURCES] == [
        entry.build(AgentConfig()).name for entry in SOURCES
    ]

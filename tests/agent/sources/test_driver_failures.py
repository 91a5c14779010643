"""Every row of the table of driver failures: the right state, never a wrong number, the others unharmed, and
recovery without a restart of the agent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from fakenvml import Script, build, device, env, mig
from flopwatch_agent.driver.library import refused_device, versions
from flopwatch_agent.reading import Reading
from flopwatch_agent.release import RELEASED, STUCK, Window
from flopwatch_agent.sources import SourceReport
from flopwatch_agent.sources.abandoned import Abandoned
from flopwatch_agent.sources.nvml import CHECK_READS, PCI_READS, NvmlSource
from flopwatch_proto.v1 import telemetry_pb2 as pb
from nvml_source import (
    IMPATIENT,
    SLOT_0,
    SLOT_1,
    Make,
    failures,
    has_event,
    pci_card,
    read_until,
)

POWER_WATTS = 72.0


def check_numbers(reading: Reading) -> None:
    """A reading is dark and empty, or it says what the scripted driver says."""
    if not reading.alive:
        assert reading.values == {}
        assert reading.failure
        return
    assert reading.values["power_watts"] == POWER_WATTS
    assert reading.values["temperature_celsius"] == 31


async def watch(
    source: NvmlSource, wanted: Callable[[SourceReport], bool], healthy: int | None = None
) -> tuple[SourceReport, list[pb.Event]]:
    """Read until it is as wanted; every reading is checked, and the healthy card's in particular."""

    def checked(report: SourceReport) -> bool:
        for reading in report.readings:
            check_numbers(reading)
        if healthy is not None:
            assert report.readings[healthy].failure is None
        return wanted(report)

    return await read_until(source, checked)


def states(report: SourceReport) -> tuple[str | None, list[str | None]]:
    return report.driver_state, failures(report)


WHOLE_DRIVER = {
    "lost": ("error * UNINITIALIZED", "lost", "driver_lost"),
    "not loaded": ("error * DRIVER_NOT_LOADED", "absent", "driver_not_loaded"),
    "mismatch": ("error * LIB_RM_VERSION_MISMATCH", "mismatch", "driver_mismatch"),
    "devices taken away": ("error * UNKNOWN", "lost", "driver_lost"),
}


@pytest.mark.parametrize("case", WHOLE_DRIVER)
async def test_trouble_of_the_whole_driver_is_a_state_and_passes(
    make: Make, script: Script, case: str
) -> None:
    line, state, failure = WHOLE_DRIVER[case]
    source = make()
    await source.start()
    script.add(line)
    report, events = await watch(source, lambda r: r.driver_state == state)
    assert failures(report) == [failure, failure]
    for _ in range(10):  # one child after the other fails: the state stands and is told once
        report = await source.read()
        assert states(report) == (state, [failure, failure])
        events += report.events
        await asyncio.sleep(0.02)
    assert [e.kind for e in events] == [f"driver_{state}"]
    script.remove(line)
    report, events = await watch(source, lambda r: failures(r) == [None, None])
    assert (report.driver_state, events) == ("ok", [])


ONE_CARD = {
    "lost": ("device 1 lost", "gpu_is_lost", "card_lost"),
    "wants a reset": ("device 1 error * RESET_REQUIRED", "reset_required", "reset_required"),
    "answers nothing": ("device 1 error * UNKNOWN", "no_answer", "card_lost"),
    "not listed": ("device 1 absent", "gpu_is_lost", "card_lost"),
}


@pytest.mark.parametrize("case", ONE_CARD)
async def test_trouble_of_one_card_leaves_the_other_alone(
    make: Make, script: Script, case: str
) -> None:
    line, failure, kind = ONE_CARD[case]
    leap_seconds = 0.0
    source = make(leap=lambda: leap_seconds)
    await source.start()
    await source.read()
    script.add(line)
    report, events = await watch(source, lambda r: failures(r)[1] == failure, healthy=0)
    assert report.driver_state == "ok"
    assert [(e.kind, e.slot) for e in events if e.slot] == [(kind, SLOT_1)]
    assert (await source.read()).events == ()
    script.remove(line)
    leap_seconds = 600.0
    report, events = await watch(source, lambda r: failures(r) == [None, None])
    assert [e.kind for e in events if e.kind != "count_changed"] == []


async def test_a_card_that_hangs_is_left_to_its_child_and_the_others_are_read(
    make: Make, script: Script
) -> None:
    source = make(deadline_seconds=4.0)
    await source.start()
    hanging = source.child_pid
    script.add("device 1 hang nvmlDeviceGetTemperature")
    report, events = await watch(source, lambda r: failures(r) == [None, "unresponsive"])
    assert report.driver_state == "ok"
    assert [(e.kind, e.slot) for e in events] == [("unresponsive", SLOT_1)]
    assert source.child_pid != hanging
    for _ in range(3):
        report = await source.read()
        check_numbers(report.readings[0])
        assert states(report) == ("ok", [None, "unresponsive"])
    script.remove("device 1 hang nvmlDeviceGetTemperature")
    report, events = await watch(source, lambda r: failures(r) == [None, None], healthy=0)
    assert events == []
    assert hanging is not None
    assert not psutil.pid_exists(hanging)


@contextmanager
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """What a process in uninterruptible sleep looks like: SIGKILL is sent, and nothing happens."""
    spared: set[int] = set()
    with monkeypatch.context() as patch:
        patch.setattr(
            asyncio.subprocess.Process,
            "kill",
            lambda process: spared.add(process.pid),
            raising=True,
        )
        yield spared
    for pid in spared:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_children_that_no_signal_ends_are_left_behind_and_after_some_no_more_are_started(
    make: Make, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.write(device(0))
    impatient = {**IMPATIENT, "deadline_seconds": 1.5, "terminate_after_seconds": 1.6}
    source = make(**{**impatient, "kill_after_seconds": 1.8}, abandoned_max=2)
    await source.start()
    with unkillable(monkeypatch) as spared:
        line = "hang * deaf"
        script.add(line)
        report, events = await watch(source, has_event("driver_given_up"))
        assert states(report) == ("unresponsive", ["unresponsive"])
        assert len(spared) == 2
        assert [e.kind for e in events] == ["unresponsive", "driver_given_up"]
        for _ in range(3):
            assert (await source.read()).events == ()
            assert source.child_pid is None
        # The count outlives the agent.
        another = make(**impatient, abandoned_max=2)
        await another.start()
        assert another.child_pid is None
        script.remove(line)
    # The calls returned: the children are gone, and the driver is tried again.
    report, _ = await watch(source, lambda r: failures(r) == [None])
    assert report.driver_state == "ok"
    assert json.loads((tmp_path / "abandoned.json").read_text())["children"] == []


def test_abandoned_children_belong_to_one_boot(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    boot = proc / "sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("first\n")
    abandoned = Abandoned(tmp_path / "file", proc)
    abandoned.add(7)
    assert Abandoned(tmp_path / "file", proc).pids == (7,)
    boot.write_text("second\n")
    assert Abandoned(tmp_path / "file", proc).pids == ()
    (tmp_path / "file").write_text("{")
    assert Abandoned(tmp_path / "file", proc).pids == ()


def has_instances(count: int) -> Callable[[SourceReport], bool]:
    return lambda report: len(report.readings[0].device.instances) == count


async def test_a_child_that_hangs_on_when_its_agent_is_gone_counts_for_the_next(
    tmp_path: Path,
) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "600")
    path = tmp_path / "abandoned.json"
    before = Abandoned(path)
    before.started(child.pid)
    assert before.pids == ()
    after = Abandoned(path)
    assert [*after.pids] == [child.pid]
    unasked = Abandoned(path)
    child.kill()
    await child.wait()
    assert [*after.pids] == []
    assert [*unasked.pids] == []  # also where nobody looked while it was there
    assert Abandoned(path).pids == ()


async def test_mig_devices_that_change_meanwhile_are_listed_anew_without_a_card_going_dark(
    make: Make, script: Script
) -> None:
    source = make()
    await source.start()
    for count in (2, 3, 0):
        instances = [mig(0, n, gi=n + 1) for n in range(count)]
        script.write(device(0, mig_mode=int(count > 0)), *instances, device(1))
        report, events = await watch(source, has_instances(count), healthy=1)
        assert failures(report) == [None, None]
        assert [(e.kind, e.slot, e.code) for e in events] == [("mig_changed", SLOT_0, count)]


async def test_a_child_that_dies_at_the_start_does_not_mean_that_there_are_no_cards(
    make: Make, script: Script
) -> None:
    script.add("latency nvmlInit 3000")
    source = make()
    starting = asyncio.create_task(source.start())
    async with asyncio.timeout(60):
        while (pid := source.child_pid) is None:
            await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    script.remove("latency nvmlInit 3000")
    await starting
    assert failures(await source.read()) == [None, None]
    assert source.child_pid != pid


async def test_persistence_that_is_off_is_told_once(make: Make, script: Script) -> None:
    script.write(device(0, persistence=0), device(1, persistence=0))
    source = make()
    await source.start()
    assert [e.kind for e in (await source.read()).events] == ["persistence_off"]
    pid = source.child_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    _, events = await watch(source, lambda r: source.child_pid not in (pid, None))
    assert events == []


async def test_xids_are_heard_again_after_the_event_set_failed(make: Make, script: Script) -> None:
    source = make()
    await source.start()
    await source.read()
    line = "error nvmlEventSetWait UNKNOWN"
    script.add(line)
    await asyncio.sleep(1.2)  # a wait that began before lasts a second
    script.remove(line)
    heard: list[int] = []
    async with asyncio.timeout(60):
        while 79 not in heard:
            script.fire_xid(0, 79)
            heard += [e.code for e in (await source.read()).events]
            await asyncio.sleep(0.2)


async def test_a_driver_without_newer_functions_is_read_as_far_as_it_goes(
    make: Make, script: Script, tmp_path_factory: pytest.TempPathFactory
) -> None:
    older = build(
        tmp_path_factory.getbasetemp() / "fakenvml",
        missing=(
            "nvmlEventSetCreate",
            "nvmlDeviceGetFieldValues",
            "nvmlGpmSampleGet",
            "nvmlDeviceGetComputeRunningProcesses_v3",
        ),
    )
    source = make(env(older, script))
    await source.start()
    report, events = await watch(source, lambda r: failures(r) == [None, None])
    assert (report.driver_state, events) == ("ok", [])


async def test_the_pci_bus_is_compared_with_the_driver_all_the_time(
    make: Make, tmp_path: Path
) -> None:
    for slot in (SLOT_0, SLOT_1):
        pci_card(tmp_path, slot)
    source = make()
    await source.start()
    assert (await source.read()).events == ()
    pci_card(tmp_path, "0000:1a:00.0")
    told = [event for _ in range(2 * PCI_READS) for event in (await source.read()).events]
    assert [(e.kind, e.code) for e in told] == [("count_changed", 2)]
    assert "3" in told[0].text


async def test_a_child_with_too_many_descriptors_is_replaced_without_a_reading_lost(
    make: Make,
) -> None:
    source = make(fds_max=1)
    await source.start()
    first = source.child_pid
    for _ in range(CHECK_READS):
        assert failures(await source.read()) == [None, None]
    await source.read()
    assert source.child_pid != first


async def test_a_window_lets_go_of_a_hanging_driver_too_and_ends_when_taken_back(
    make: Make, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.write(device(0))
    source = make(**IMPATIENT)
    await source.start()
    window = Window(tmp_path / "release")
    with unkillable(monkeypatch):
        script.add("hang * deaf")
        await watch(source, lambda r: r.driver_state == "unresponsive")
        line = window.ask(600.0)
        report, _ = await watch(source, lambda r: r.driver_state == "released")
        assert failures(report) == ["released"]
        assert window.answer_to(line) == STUCK
        script.remove("hang * deaf")
    window.end()
    await watch(source, lambda r: failures(r) == [None])
    assert not window.is_held
    line = window.ask(600.0)
    await watch(source, lambda r: r.driver_state == "released")
    assert window.answer_to(line) == RELEASED


async def test_a_window_that_ended_while_no_agent_ran_is_forgotten_at_the_start(
    make: Make, tmp_path: Path
) -> None:
    long_ago = Window(tmp_path / "release", now=lambda: 0.0)
    long_ago.ask(1.0)
    long_ago.answer(RELEASED)
    source = make()
    await source.start()
    assert (await source.read()).driver_state == "ok"
    assert not long_ago.is_held
    assert not long_ago.path.exists()


def test_a_window_of_another_boot_of_yesterday_or_of_anybody_is_none(tmp_path: Path) -> None:
    now = 1_000.0
    path = tmp_path / "release"
    window = Window(path, now=lambda: now, boot="this")
    Window(path, now=lambda: now, boot="other").ask(60.0)
    assert window.open_until() is None
    window.ask(60.0)
    assert window.open_until() == 1_060.0
    now = 1_061.0
    assert window.open_until() is None
    path.write_text("this 99999999\n")  # longer than anybody may ask for
    assert window.open_until() is None
    path.write_text("this soon\n")
    assert window.open_until() is None
    now = 1_000.0
    window.ask(60.0)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert window.open_until() is None


def test_both_versions_of_a_driver_that_does_not_fit_are_named(tmp_path: Path) -> None:
    module = tmp_path / "version"
    module.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n"
    )
    maps = tmp_path / "maps"
    maps.write_text("7f0-7f1 r-xp 0 08:01 1 /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06\n")
    assert versions(module, maps) == "library 580.65.06, kernel module 575.57.08"
    module.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    assert versions(module, tmp_path / "none") == "kernel module 550.54.15"
    assert versions(tmp_path / "none", tmp_path / "none") is None


async def test_a_driver_that_does_not_fit_is_told_with_the_version_of_the_library(
    make: Make, script: Script
) -> None:
    source = make()
    await source.start()
    await source.read()
    script.add("error nvmlDeviceGetTemperature LIB_RM_VERSION_MISMATCH")
    _, events = await watch(source, lambda r: r.driver_state == "mismatch")
    assert "library 595.58.03" in events[-1].text


def test_a_signal_asks_for_ten_minutes_and_never_fails(tmp_path: Path) -> None:
    now = 1_000.0
    window = Window(tmp_path / "release", now=lambda: now, boot="this")
    window.ask_by_signal()
    assert window.open_until() == 1_600.0
    (tmp_path / "file").write_text("")
    Window(tmp_path / "file" / "release").ask_by_signal()


def test_a_device_that_a_container_lost_is_named(tmp_path: Path) -> None:
    control = tmp_path / "nvidiactl"
    assert refused_device(control) is None  # not there: another trouble
    control.write_text("")
    assert refused_device(control) is None

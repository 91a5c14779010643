"""The agent's side of the driver: real children, a fake library, short deadlines."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from fakenvml import Script, device, mig
from flopwatch_agent.release import Window
from flopwatch_agent.sources import NoDevice
from flopwatch_agent.sources.nvml import CHECK_READS, LOST_RECYCLE_SECONDS
from flopwatch_proto.rows import Absence
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


async def test_every_card_has_a_reading(make: Make) -> None:
    source = make()
    await source.start()
    report = await source.read()
    assert report.driver_state == "ok"
    assert [reading.device.slot for reading in report.readings] == [SLOT_0, SLOT_1]
    first = report.readings[0]
    assert (first.device.kind, first.device.sku) == ("gpu", "NVIDIA H100 80GB HBM3")
    assert first.device.driver_version == "595.58.03"  # counters are calibrated under a driver
    assert first.values["power_watts"] == 72.0
    assert report.readings[1].values["nvlink_tx_bytes_per_second"] is Absence.NOT_SUPPORTED
    assert first.processes == ()
    assert first.alive


async def test_a_driver_that_hangs_is_data_while_the_agent_goes_on(
    make: Make, script: Script
) -> None:
    source = make(**IMPATIENT)
    await source.start()
    turns = 0

    async def live() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    living = asyncio.create_task(live())
    script.add("hang nvmlDeviceGetTemperature")
    report, events = await read_until(source, lambda r: r.driver_state == "unresponsive")
    assert turns > 10
    living.cancel()
    assert failures(report) == ["unresponsive", "unresponsive"]
    assert report.readings[0].values == {}
    # First it looks as if one card hangs; the second child shows that it is the driver.
    assert [(event.kind, event.slot) for event in events] == [
        ("unresponsive", SLOT_0),
        ("unresponsive", ""),
    ]
    # While a reply is out, nobody waits for it a second time.
    again = await source.read()
    assert failures(again) == ["unresponsive", "unresponsive"]
    assert again.events == ()


async def test_a_driver_that_answers_again_is_read_again(make: Make, script: Script) -> None:
    source = make(**{**IMPATIENT, "terminate_after_seconds": 30.0, "kill_after_seconds": 60.0})
    await source.start()
    script.add("hang nvmlDeviceGetTemperature")
    await read_until(source, lambda r: r.driver_state == "unresponsive")
    pid = source.child_pid
    script.remove("hang nvmlDeviceGetTemperature")
    report, _ = await read_until(source, lambda r: failures(r) == [None, None])
    assert report.driver_state == "ok"
    assert source.child_pid == pid


async def test_a_lost_card_is_told_once_and_keeps_its_place(make: Make, script: Script) -> None:
    source = make()
    await source.start()
    script.add("device 1 lost")
    report, events = await read_until(source, lambda r: "gpu_is_lost" in failures(r))
    assert failures(report) == [None, "gpu_is_lost"]
    assert report.driver_state == "ok"
    assert [(e.kind, e.slot) for e in events] == [("card_lost", SLOT_1)]
    assert (await source.read()).events == ()


async def test_a_card_that_the_driver_stops_listing_keeps_its_place(
    make: Make, script: Script
) -> None:
    source = make()
    await source.start()
    script.add("device 1 absent")
    report, events = await read_until(source, has_event("count_changed"))
    told = {(e.kind, e.slot, e.code) for e in events}
    assert told == {("card_lost", SLOT_1, 0), ("count_changed", "", 1)}
    assert failures(report) == [None, "gpu_is_lost"]


async def test_a_driver_upgraded_under_us_is_a_state_and_passes(make: Make, script: Script) -> None:
    source = make()
    await source.start()
    script.add("error * LIB_RM_VERSION_MISMATCH")
    report, events = await read_until(source, lambda r: r.driver_state == "mismatch")
    assert failures(report) == ["driver_mismatch", "driver_mismatch"]
    for _ in range(20):
        report = await source.read()
        events += report.events
        assert report.driver_state == "mismatch"
        await asyncio.sleep(0.02)
    assert [(e.kind, e.code) for e in events] == [("driver_mismatch", 18)]
    script.remove("error * LIB_RM_VERSION_MISMATCH")
    report, _ = await read_until(source, lambda r: r.driver_state == "ok")
    assert failures(report) == [None, None]


async def test_a_driver_that_never_fitted_still_gives_the_cards_of_the_bus_a_place(
    make: Make, script: Script, tmp_path: Path
) -> None:
    pci_card(tmp_path, SLOT_0, driver="nvidia")
    pci_card(tmp_path, SLOT_1)
    pci_card(tmp_path, "0000:1a:00.0", driver="vfio-pci")
    pci_card(tmp_path, "0000:1b:00.0", vendor="0x1002")
    script.add("error nvmlInit LIB_RM_VERSION_MISMATCH")
    source = make()
    await source.start()
    report = await source.read()
    assert [reading.device.slot for reading in report.readings] == [SLOT_0, SLOT_1]
    assert failures(report) == ["driver_mismatch", "driver_mismatch"]


async def test_a_card_of_the_bus_that_the_driver_does_not_list_is_an_event(
    make: Make, tmp_path: Path
) -> None:
    for slot in (SLOT_0, SLOT_1, "0000:1a:00.0"):
        pci_card(tmp_path, slot)
    source = make()
    await source.start()
    events = (await source.read()).events
    assert [(e.kind, e.code) for e in events] == [("count_changed", 2)]
    assert "3" in events[0].text


async def test_a_host_without_a_driver_and_without_a_card_has_no_device(
    make: Make, tmp_path: Path
) -> None:
    nowhere = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    with pytest.raises(NoDevice):
        await make(nowhere).start()


async def test_a_card_without_a_driver_is_there_and_does_not_answer(
    make: Make, tmp_path: Path
) -> None:
    pci_card(tmp_path, SLOT_0)
    source = make({**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    await source.start()
    report = await source.read()
    assert report.driver_state == "absent"
    assert failures(report) == ["driver_not_loaded"]


async def test_a_change_of_mig_devices_is_an_event_and_lists_them_anew(
    make: Make, script: Script
) -> None:
    source = make()
    await source.start()
    script.write(device(0, mig_mode=1), mig(0, 0, gi=1), mig(0, 1, gi=2), device(1))
    _, events = await read_until(source, has_event("mig_changed"))
    assert [(e.kind, e.slot, e.code) for e in events] == [("mig_changed", SLOT_0, 2)]
    report = await source.read()
    assert len(report.readings[0].device.instances) == 2


async def test_an_xid_is_an_event_of_its_card(make: Make, script: Script) -> None:
    source = make()
    await source.start()
    await source.read()
    script.fire_xid(0, 79).fire_xid(1, 13)
    heard: list[pb.Event] = []
    while len(heard) < 2:
        _, events = await read_until(source, has_event("xid"))
        heard += events
    assert {(e.kind, e.slot, e.code) for e in heard} == {("xid", SLOT_0, 79), ("xid", SLOT_1, 13)}
    assert all(event.time_unix_ms > 0 for event in heard)


async def test_denied_metrics_are_told_once_a_card_with_the_remedy(
    make: Make, script: Script
) -> None:
    script.add("error nvmlGpmSampleGet NO_PERMISSION")
    source = make()
    await source.start()
    report, events = await read_until(source, has_event("gpm_denied"))
    events += (await source.read()).events
    assert [(e.kind, e.slot, e.code) for e in events] == [
        ("gpm_denied", SLOT_0, 4),
        ("gpm_denied", SLOT_1, 4),
    ]
    assert "CAP_SYS_ADMIN" in events[0].text
    assert report.readings[0].values["sm_active_ratio"] is Absence.FAILED


async def test_a_killed_child_is_replaced(make: Make) -> None:
    source = make()
    await source.start()
    killed = source.child_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    report, _ = await read_until(source, lambda r: source.child_pid not in (killed, None))
    assert failures(report) == [None, None]
    assert report.driver_state == "ok"


async def test_a_bloated_child_is_replaced_without_a_reading_lost(make: Make) -> None:
    source = make(rss_bytes_max=1)
    await source.start()
    first = source.child_pid
    for _ in range(CHECK_READS):
        assert failures(await source.read()) == [None, None]
    assert source.child_pid != first


async def test_a_lost_card_is_looked_for_again_by_a_new_child(make: Make, script: Script) -> None:
    leap_seconds = 0.0
    source = make(leap=lambda: leap_seconds)
    await source.start()
    first = source.child_pid
    script.add("device 1 lost")
    await read_until(source, lambda r: "gpu_is_lost" in failures(r))
    assert source.child_pid == first
    leap_seconds = LOST_RECYCLE_SECONDS[0]
    await source.read()
    assert source.child_pid is None
    script.remove("device 1 lost")
    report, _ = await read_until(source, lambda r: failures(r) == [None, None])
    assert report.driver_state == "ok"


async def test_a_released_driver_has_no_child_until_the_time_is_over(
    make: Make, tmp_path: Path
) -> None:
    source = make()
    await source.start()
    pid = source.child_pid
    assert pid is not None
    window = Window(tmp_path / "release")
    line = window.ask(1.5)
    report, events = await read_until(source, lambda r: r.driver_state == "released")
    assert failures(report) == ["released", "released"]
    assert window.answer_to(line) == "released"
    assert not psutil.pid_exists(pid)
    report, more = await read_until(source, lambda r: r.driver_state == "ok")
    assert failures(report) == [None, None]
    assert [*events, *more] == []
    assert not window.is_held
    assert not window.path.exists()

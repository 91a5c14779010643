"""The kernel log: journalctl as a child, /dev/kmsg, and neither."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from flopwatch_agent.sources import NoDevice
from flopwatch_agent.sources.kernel_log import KernelLog
from flopwatch_proto.v1 import telemetry_pb2 as pb
from nvml_source import SLOT_0, pci_card

XID = "NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
FOLLOW = """
import os, sys, time
if "-f" not in sys.argv:
    print("{}")
    sys.exit(0)
open(sys.argv[1] + ".calls", "a").write(" ".join(sys.argv[2:]) + "\\n")
log = open(sys.argv[1], "rb")
while True:
    line = log.readline()
    if line == b"die\\n":
        sys.exit(1)
    os.write(1, line) if line else time.sleep(0.01)
"""

Make = Callable[..., KernelLog]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    pci_card(tmp_path, SLOT_0)
    made: list[KernelLog] = []

    def make_source(*journalctl: str, kmsg: Path = tmp_path / "none") -> KernelLog:
        source = KernelLog(
            journalctl=journalctl or ("no-such-command",),
            kmsg=kmsg,
            pci_root=tmp_path / "pci",
            backoff_seconds=(0.01, 0.05),
        )
        made.append(source)
        return source

    yield make_source
    for source in made:
        await source.close()


def entry(message: object, *, cursor: str = "s=1", at_us: int = 1_790_000_000_123_456) -> bytes:
    fields = {"MESSAGE": message, "__REALTIME_TIMESTAMP": str(at_us), "__CURSOR": cursor}
    return json.dumps(fields).encode() + b"\n"


async def events(source: KernelLog, count: int) -> list[pb.Event]:
    told: list[pb.Event] = []
    async with asyncio.timeout(30):
        while len(told) < count:
            told += (await source.read()).events
            await asyncio.sleep(0.01)
    return told


async def test_xids_come_from_journalctl_and_go_on_after_it_died(
    make: Make, tmp_path: Path
) -> None:
    log, script = tmp_path / "log", tmp_path / "journalctl.py"
    script.write_text(FOLLOW)
    log.write_bytes(
        entry(XID)
        + b"no JSON\n"
        + entry("usb 1-1: new device")
        + entry([*XID.replace("79", "48").encode()], cursor="s=2")  # bytes: it was not UTF-8
        + entry(None)
        + entry("x" * 300_000)
        + entry(XID.replace("79", "95"), cursor="s=3")
    )
    source = make(sys.executable, str(script), str(log))
    await source.start()
    told = await events(source, 3)
    assert [(e.kind, e.slot, e.code) for e in told] == [
        ("xid", SLOT_0, 79),
        ("xid", SLOT_0, 48),
        ("xid", SLOT_0, 95),
    ]
    assert told[0].time_unix_ms == 1_790_000_000_123
    assert source.dropped_total >= 2
    with log.open("ab") as more:
        more.write(b"die\n")
    calls = log.with_suffix(".calls")
    async with asyncio.timeout(30):
        while len(calls.read_text().splitlines()) < 2:
            await asyncio.sleep(0.01)
    first, second = calls.read_text().splitlines()[:2]
    assert "-n 0" in first
    assert "--after-cursor s=3" in second
    children = psutil.Process().children()
    await source.close()
    assert not [c for c in children if c.is_running() and str(script) in " ".join(c.cmdline())]


async def test_kmsg_is_read_where_there_is_no_journal(make: Make, tmp_path: Path) -> None:
    kmsg = tmp_path / "kmsg"
    os.mkfifo(kmsg)  # like /dev/kmsg it gives what was written since it was opened, or nothing
    writer = os.open(kmsg, os.O_RDWR | os.O_NONBLOCK)
    source = make(kmsg=kmsg)
    # A pipe cannot be sought in; the source must say that it has nothing, and not fail.
    await source.start()
    (told,) = (await source.read()).events
    assert told.kind == "kernel_log_unreadable"
    os.close(writer)


async def test_a_kmsg_record_has_its_line_and_its_time(make: Make, tmp_path: Path) -> None:
    kmsg = tmp_path / "kmsg"
    kmsg.write_text("")
    source = make(kmsg=kmsg)
    await source.start()
    assert (await source.read()).events == ()
    with kmsg.open("a") as log:
        log.write(f"4,1234,5140900,-;{XID}\n SUBSYSTEM=pci\n")
    (told,) = await events(source, 1)
    assert (told.code, told.slot) == (79, SLOT_0)
    assert told.time_unix_ms > 0


async def test_a_host_without_cards_has_no_use_for_the_log(tmp_path: Path) -> None:
    with pytest.raises(NoDevice):
        await KernelLog(pci_root=tmp_path / "none").start()

"""An NVML source on the fake driver: short deadlines, and what tests ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flopwatch_agent.sources import SourceReport
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_proto.v1 import telemetry_pb2 as pb

SLOT_0, SLOT_1 = "0000:18:00.0", "0000:19:00.0"
LIMITS: dict[str, Any] = {
    "deadline_seconds": 10.0,
    "backoff_first_seconds": 0.01,
    "backoff_seconds_max": 0.05,
}
IMPATIENT: dict[str, Any] = {
    **LIMITS,
    "deadline_seconds": 2.0,
    "terminate_after_seconds": 2.2,
    "kill_after_seconds": 2.6,
    "quit_seconds": 1.0,
}

Make = Callable[..., NvmlSource]


def pci_card(root: Path, slot: str, *, vendor: str = "0x10de", driver: str | None = None) -> None:
    """A card in the kernel's list of PCI devices."""
    place = root / "pci" / slot
    place.mkdir(parents=True)
    (place / "vendor").write_text(vendor + "\n")
    (place / "class").write_text("0x030200\n")
    if driver is not None:
        (root / driver).mkdir(exist_ok=True)
        (place / "driver").symlink_to(root / driver)


async def read_until(
    source: NvmlSource, wanted: Callable[[SourceReport], bool]
) -> tuple[SourceReport, list[pb.Event]]:
    """The first report that is wanted, and the events of all up to it."""
    events: list[pb.Event] = []
    async with asyncio.timeout(60):
        while True:
            report = await source.read()
            events += report.events
            if wanted(report):
                return report, events
            await asyncio.sleep(0.02)


def failures(report: SourceReport) -> list[str | None]:
    return [reading.failure for reading in report.readings]


def has_event(kind: str) -> Callable[[SourceReport], bool]:
    return lambda report: any(event.kind == kind for event in report.events)

"""This host, as a bring-up looks at it: driver, cards, probes under guard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from flopwatch.api import Api
from flopwatch.bringup.node import Probed
from flopwatch.bringup.stages import Check, failed, passed
from flopwatch.cli import doctor
from flopwatch.cli.probe_hook import locks
from flopwatch_agent.clock import Clock, SystemClock
from flopwatch_agent.probing.guard import Guard, Order, Refused
from flopwatch_agent.probing.inbox import Inbox, Record
from flopwatch_agent.reading import Reading
from flopwatch_agent.sources import NoDevice, Source
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_agent.sources.pci import nvidia_slots
from flopwatch_agent.sources.processor import ProcessorSource
from flopwatch_collector import inventory as record
from flopwatch_collector import inventory_diff
from flopwatch_proto.errors import FlopwatchError, UsageError

WALL_SECONDS: Final = 300.0
LOOK_SECONDS: Final = 5.0
"""After the start of a sustained load the link is looked at."""


class Here:
    """This host.

    Args:
        cpu: accept the processor; there are no cards.
        rehearsal: load the processor in the cards' place, and keep nothing.
        data: data directory of this host's agent.
        inventory: (file, cluster, node); None: there is none.
        api: address of a collector, or None.
    """

    def __init__(
        self,
        *,
        cpu: bool,
        rehearsal: bool,
        data: Path,
        inventory: tuple[Path, str, str] | None,
        api: str | None,
        clock: Clock | None = None,
    ) -> None:
        self.cpu = cpu
        self.rehearsal = rehearsal
        self.driver_version: str | None = None
        self._data = data
        self._inventory = inventory
        self._api = api
        self._clock = clock or SystemClock()
        self._guard = Guard(self._clock)
        self._loaded: dict[str, Reading] = {}

    def driver(self) -> list[Check]:
        """As `flopwatch doctor` finds it."""
        if self.cpu:
            return [passed("the processor alone was asked for")]
        findings = doctor.cards(os.environ, doctor.ask_nvml)
        if self.rehearsal:  # a driver that only answers has no device files
            findings = [finding for finding in findings if finding.name != "permissions"]
        wrong = [f for f in findings if f.state == "failed"]
        text = "; ".join(f.text for f in findings if f.state == "ok")
        return [failed(f"{f.name}: {f.text}") for f in wrong] or [passed(text)]

    def pci(self) -> Sequence[str] | None:
        """The kernel's list; a rehearsal's cards are not on it."""
        return None if self.cpu or self.rehearsal else nvidia_slots()

    def readings(self) -> Sequence[Reading]:
        """One reading of each card.

        Raises:
            UsageError: there is none.
        """
        source: Source = ProcessorSource() if self.cpu else NvmlSource()
        try:
            return asyncio.run(_read(source))
        except NoDevice as exc:
            raise UsageError(
                f"no card to accept: {exc}; --device cpu accepts the processor"
            ) from exc

    def inventory(self) -> Sequence[record.Slot] | None:
        """The node's slots, as they stand."""
        if self._inventory is None:
            return None
        path, cluster, node = self._inventory
        now_unix_ms = self._clock.wall_unix_ns() // 1_000_000
        stands = inventory_diff.at(record.load(path), now_unix_ms).values()
        return [slot for slot in stands if (slot.cluster, slot.node) == (cluster, node)]

    def probe(self, card: Reading, kind: str, peer: Reading | None, *, sustained: bool) -> Probed:
        """Probe under guard; what is measured goes to the agent of this host."""
        order = Order(
            device="cpu" if self.cpu else card.device.uuid or "",
            peer="" if peer is None else peer.device.uuid or "",
            kind=kind,
            sustained=sustained,
            policy="bringup",
            wall_seconds=WALL_SECONDS,
            locks=str(locks()),
            data="" if self.rehearsal else str(self._data),
            measured="cpu" if self.rehearsal else "",
        )
        look = threading.Timer(LOOK_SECONDS, self._look, (card.device.slot,))
        if sustained and not self.cpu:
            look.start()
        try:
            found = self._guard.run(order)
        except (Refused, FlopwatchError) as exc:
            return None, str(exc)
        finally:
            look.cancel()
            if look.is_alive():
                look.join()
        self.driver_version = found.record.driver_version or self.driver_version
        return found.result, found.record.reason or found.record.outcome

    def under_load(self, slot: str) -> Reading | None:
        """What the card said five seconds into its sustained load."""
        return self._loaded.get(slot)

    def fleet(self) -> dict[str, Any] | None:
        """The fleet's ceilings.

        Raises:
            FlopwatchError: the collector does not answer.
        """
        if self._api is None:
            return None
        answer: dict[str, Any] = Api(self._api).get("/api/v1/ceilings").data
        return answer

    def tell(self, verdicts: Sequence[Record]) -> None:
        """Leave the verdicts to the agent of this host. Raises: UsageError: they cannot be kept."""
        for verdict in verdicts:
            Inbox(self._data).put(verdict)

    def _look(self, slot: str) -> None:
        with contextlib.suppress(FlopwatchError, NoDevice):
            for reading in self.readings():
                self._loaded[reading.device.slot] = reading


async def _read(source: Source) -> list[Reading]:
    await source.start()
    try:
        return sorted((await source.read()).readings, key=lambda reading: reading.device.slot)
    finally:
        await source.close()

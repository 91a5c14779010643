"""NVIDIA cards, through the driver child.

Whatever happens to the driver, `read` answers within the deadline, and every card that was ever seen has
a reading: a lost one, a silent driver and a driver that does not fit are readings with ``alive=False``.
Trouble is told as an event once, when it begins (`trouble`).

One card at which a child hangs is left to that child, and another child reads the others. If that one
hangs too, it is the driver that hangs, and not the card.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from flopwatch_agent.driver.messages import (
    DeviceReading,
    EventsReply,
    EventsRequest,
    Failure,
    InventoryReply,
    InventoryRequest,
    ReadReply,
    ReadRequest,
    Reply,
)
from flopwatch_agent.reading import Device, Reading
from flopwatch_agent.release import RELEASED, STUCK, Window
from flopwatch_agent.sources import NoDevice, SourceReport
from flopwatch_agent.sources.abandoned import Abandoned
from flopwatch_agent.sources.child import ChildGone, ChildLimits, ChildSilent, DriverChild
from flopwatch_agent.sources.pci import PCI_ROOT, PciCards
from flopwatch_agent.sources.said import device_of, reading_of
from flopwatch_agent.sources.trouble import RESET_REQUIRED, Trouble

_log = structlog.get_logger()

CHECK_READS: Final = 60
"""Size of the child is looked at in every such reading."""

PCI_READS: Final = 10
"""The PCI bus is looked at in every such reading."""

LOST_RECYCLE_SECONDS: Final = (30.0, 300.0)
"""A process that saw a card get lost keeps seeing it lost: a new one looks again, ever less often."""

_SECOND_SECONDS: Final = 2.5
"""The second child shows within that whether it is the card that hangs or the driver: within 10 s in all."""

_START_SECONDS: Final = 0.1
_FRUITLESS_LOST: Final = 3
_FAILURES: Final = {
    "absent": "driver_not_loaded",
    "mismatch": "driver_mismatch",
    "lost": "driver_lost",
    "unresponsive": "unresponsive",
}
_GPM_REMEDY: Final = (
    "GPU performance metrics are denied: run the agent as root or with CAP_SYS_ADMIN, "
    "or load the nvidia module with NVreg_RestrictProfilingToAdminUsers=0"
)


@dataclass(slots=True, kw_only=True)
class _Hung:
    """A card at which a child hangs.

    Attributes:
        child: the one that hangs; None: it is gone, and the card waits to be tried again.
        retry_at: on the source's clock; counts once the child is gone.
    """

    slot: str
    child: DriverChild | None
    retry_at: float = 0.0


class NvmlSource:
    """The cards of this host's NVIDIA driver."""

    name = "nvml"

    def __init__(
        self,
        *,
        limits: ChildLimits | None = None,
        environment: Mapping[str, str] | None = None,
        pci_root: Path = PCI_ROOT,
        clock: Callable[[], float] = time.monotonic,
        window: Window | None = None,
        abandoned: Abandoned | None = None,
    ) -> None:
        """Make the source; nothing runs before `start`.

        Args:
            environment: of the child; None: this process's own.
            clock: seconds, for deadlines.
            window: where an operator asks for the cards; None: nobody can.
            abandoned: children that hang in the driver since the last boot.
        """
        self._limits = limits or ChildLimits()
        self._environment = environment
        self._abandoned = abandoned or Abandoned()
        self._clock = clock
        self._child = self._another_child()
        self._hung: _Hung | None = None
        self._pci = PciCards(pci_root)
        self._counts: tuple[int, int] | None = None
        self._window = window
        self._released = False
        self._let_go = RELEASED
        self._known: dict[str, Device] = {}
        self._denied: set[str] = set()
        self._listed: int | None = None
        self._listed_generation = 0
        self._trouble = Trouble()
        self._reads = 0
        self._recycle_at: float | None = None
        self._recycle_seconds = LOST_RECYCLE_SECONDS[0]

    @property
    def driver_state(self) -> str:
        """Return ``ok absent unresponsive mismatch lost released``."""
        return self._trouble.driver_state

    @property
    def devices(self) -> tuple[Device, ...]:
        """Return every card ever seen, in the order of the slots."""
        return tuple(self._known[slot] for slot in sorted(self._known))

    @property
    def child_pid(self) -> int | None:
        """Return the pid of the driver child, or None."""
        return self._child.pid

    async def start(self) -> None:
        """Start the child, and list the cards.

        Raises:
            NoDevice: neither the driver nor the PCI bus has an NVIDIA card.
        """
        if self._window is not None and self._window.open_until() is None:
            self._window.close()  # of an agent that ended while it was open
        await self._cycle()
        while self._listed is None and self.driver_state == "ok":
            # The child ended before it answered, which says nothing of the cards; three of them do.
            await asyncio.sleep(_START_SECONDS)
            await self._cycle()
        slots = self._pci.slots()
        if not self._known and not slots and self.driver_state in ("absent", "ok"):
            await self.close()
            raise NoDevice("no NVIDIA driver and no NVIDIA card on the PCI bus")
        if not self._known:
            self._known = {s: Device(slot=s, kind="gpu", sku=None) for s in slots}
        self._compare_counts()

    async def read(self) -> SourceReport:
        """Return a reading of every card; never later than the deadline allows."""
        readings = await self._cycle()
        events = self._trouble.take()
        return SourceReport(readings=readings, events=events, driver_state=self.driver_state)

    async def close(self) -> None:
        """End the children."""
        await self._child.close()
        if self._hung is not None and self._hung.child is not None:
            await self._hung.child.close()

    # ---- one cycle

    async def _cycle(self) -> tuple[Reading, ...]:
        if await self._stands_aside():
            return self._dark(RELEASED)
        await self._mind_the_hung()
        try:
            reply = await self._ask(self._clock() + self._patience_seconds())
        except ChildSilent as silent:
            if not self._leave_at(silent):
                self._trouble.silent(silent)
            return self._dark("unresponsive")
        except ChildGone as gone:
            if self._child.fruitless >= _FRUITLESS_LOST and self.driver_state == "ok":
                self._trouble.enter("lost", text=str(gone))
            return self._dark(_FAILURES.get(self.driver_state, "driver_restarting"))
        finally:
            self._take_late(self._child)
        if isinstance(reply, Failure):
            self._trouble.fail(reply)
            return self._dark(_FAILURES.get(reply.state, "driver_lost"))
        assert isinstance(reply, ReadReply)
        return await self._answered(reply)

    async def _ask(self, until: float) -> Reply:
        """Return the reply to a read; the cards are listed first where that is due."""
        if self._child.pid is None or self._listed_generation != self._child.generation:
            skip = () if self._hung is None else (self._hung.slot,)
            reply = await self._child.ask(InventoryRequest(skip=skip), until)
            if not isinstance(reply, InventoryReply):
                return reply
            self._list(reply)
        return await self._child.ask(ReadRequest(), until)

    async def _answered(self, reply: ReadReply) -> tuple[Reading, ...]:
        self._child.praise()
        self._trouble.hopeful()
        if self._hung is None:
            self._abandoned.praise()
        self._reads += 1
        self._trouble.xids(reply.events)
        readings = {r.slot: self._reading(r) for r in reply.devices if r.slot in self._known}
        for slot in self._known.keys() - readings.keys():
            failure = "unresponsive"
            if self._hung is None or slot != self._hung.slot:
                failure = "gpu_is_lost"
                self._trouble.lose(slot, failure)
            readings[slot] = self._failed(slot, failure)
        alive = any(reading.alive for reading in readings.values())
        self._trouble.enter("ok" if alive or not readings else "lost")
        if reply.stale:
            self._listed_generation = 0
        if self._reads % PCI_READS == 0:
            self._compare_counts()
        if self._is_due_for_another():
            await self._recycle()
        return tuple(readings[slot] for slot in sorted(readings))

    def _patience_seconds(self) -> float:
        deadline = self._limits.deadline_seconds
        return deadline if self._hung is None else min(deadline, max(deadline / 2, _SECOND_SECONDS))

    # ---- children

    def _another_child(self) -> DriverChild:
        self._listed_generation = 0
        return DriverChild(self._limits, self._environment, self._clock, self._abandoned)

    def _is_due_for_another(self) -> bool:
        now = self._clock()
        if not self._trouble.lost:
            self._recycle_at, self._recycle_seconds = None, LOST_RECYCLE_SECONDS[0]
        elif self._recycle_at is None:
            self._recycle_at = now + self._recycle_seconds
        elif now >= self._recycle_at:
            self._recycle_at = None
            self._recycle_seconds = min(2 * self._recycle_seconds, LOST_RECYCLE_SECONDS[1])
            return True
        return self._reads % CHECK_READS == 0 and self._child.is_bloated()

    async def _recycle(self) -> bool:
        """End the child after it told its events; False where it cannot be ended."""
        if self._child.pid is None:
            return True
        try:
            until = self._clock() + self._limits.deadline_seconds
            reply = await self._child.ask(EventsRequest(), until)
        except (ChildSilent, ChildGone):
            reply = None
        if isinstance(reply, EventsReply):
            self._trouble.xids(reply.events)
        return await self._child.quit()

    def _leave_at(self, silent: ChildSilent) -> bool:
        """Leave the child to the card it hangs at, where the driver can be tried without that card."""
        if self._hung is not None or silent.at not in self._known or len(self._known) == 1:
            return False
        self._hung = _Hung(slot=silent.at, child=self._child)
        self._child = self._another_child()
        text = f"the driver has not answered for this card for {silent.seconds:.0f} s"
        self._trouble.tell("unresponsive", slot=silent.at, text=text)
        return True

    async def _mind_the_hung(self) -> None:
        """See whether the child that hangs at a card came back, or is gone and the card due again."""
        hung = self._hung
        if hung is None:
            return
        if hung.child is None:
            room = len(self._abandoned.pids) + 1 < self._limits.abandoned_max
            if room and self._clock() >= hung.retry_at:
                self._hung, self._listed_generation = None, 0
            return
        try:
            if not await hung.child.is_over():
                return
            answered = hung.child.pid is not None
        except ChildGone:
            answered = False
        self._take_late(hung.child)
        await hung.child.close()
        if answered:
            self._hung, self._listed_generation = None, 0
        else:
            hung.child, hung.retry_at = None, self._clock() + LOST_RECYCLE_SECONDS[1]

    async def _stands_aside(self) -> bool:
        """Return whether the cards are released; at the edges of the window let go of them, or return."""
        if self._window is None:
            return False
        if self._window.open_until() is None:
            if self._released:
                self._released = False
                self._window.close()
                self._abandoned.clear()
                self._trouble.hopeful()
            return False
        if not self._released:
            self._released = True
            ended = await self._recycle()
            if self._hung is not None and self._hung.child is not None:
                ended &= await self._hung.child.close()
            self._hung = None
            self._let_go = RELEASED if ended else STUCK
            self._trouble.enter(RELEASED)
        self._window.answer(self._let_go)
        return True

    # ---- what the child said

    def _compare_counts(self) -> None:
        """Tell when the PCI bus has other cards than the driver lists, once for each difference."""
        listed = self._listed if self._listed is not None else len(self._known)
        counts = (len(self._pci.slots()), listed)
        if counts != self._counts and counts[0] and counts[0] != counts[1]:
            text = f"the PCI bus has {counts[0]} cards, the driver lists {counts[1]}"
            self._trouble.tell("count_changed", code=counts[1], text=text)
        self._counts = counts

    def _list(self, reply: InventoryReply) -> None:
        """Compare the driver's list of cards with what is known, and take it over."""
        listed = {info.slot: device_of(info, reply.driver_version) for info in reply.devices}
        if self._listed is not None and len(listed) != self._listed:
            text = f"the driver lists {len(listed)} cards, before {self._listed}"
            self._trouble.tell("count_changed", code=len(listed), text=text)
        for slot, device in listed.items():
            before = self._known.get(slot)
            if before is not None and before.instances != device.instances:
                text = f"{len(before.instances)} MIG devices became {len(device.instances)}"
                self._trouble.tell("mig_changed", slot=slot, code=len(device.instances), text=text)
        for slot in self._known.keys() - listed.keys():
            self._trouble.lose(slot, "not listed any more")
        if any(info.persistence == 0 for info in reply.devices):
            text = "persistence mode is off: cards are slow to open, and forget their settings"
            self._trouble.tell_once("persistence_off", text=text)
        self._known.update(listed)
        self._listed = len(listed)
        self._listed_generation = self._child.generation
        _log.info(
            "driver_listed", cards=len(listed), driver=reply.driver_version, nvml=reply.nvml_version
        )

    def _reading(self, said: DeviceReading) -> Reading:
        if said.failure is not None:
            self._trouble.lose(said.slot, said.failure)
        else:
            self._trouble.find(said.slot)
        if said.gpm_denied and said.slot not in self._denied:
            self._denied.add(said.slot)
            self._trouble.tell("gpm_denied", slot=said.slot, code=4, text=_GPM_REMEDY)
        return reading_of(said, self._known[said.slot])

    def _take_late(self, child: DriverChild) -> None:
        """Take the events of a reply that came after its deadline; its readings are old."""
        late, child.late = child.late, None
        if isinstance(late, (ReadReply, EventsReply)):
            self._trouble.xids(late.events)

    def _dark(self, failure: str) -> tuple[Reading, ...]:
        return tuple(self._failed(slot, failure) for slot in sorted(self._known))

    def _failed(self, slot: str, failure: str) -> Reading:
        lost = slot in self._trouble.lost and failure not in (RELEASED, RESET_REQUIRED)
        return Reading(
            device=self._known[slot],
            taken_unix_ms=time.time_ns() // 1_000_000,
            boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            alive=False,
            failure="gpu_is_lost" if lost else failure,
        )

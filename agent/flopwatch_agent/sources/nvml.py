"""NVIDIA cards, through the driver child.

Whatever happens to the driver, `read` answers within the deadline, and every card that was ever seen has
a reading: a lost one, a silent driver and a driver that does not fit are readings with ``alive=False``.
Trouble is told as an event once, when it begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from flopwatch_agent.driver.messages import (
    DeviceInfo,
    DeviceReading,
    DriverEvent,
    EventsReply,
    EventsRequest,
    Failure,
    InventoryReply,
    InventoryRequest,
    ReadReply,
    ReadRequest,
    Reply,
)
from flopwatch_agent.reading import Device, Process, Reading
from flopwatch_agent.sources import NoDevice, SourceReport
from flopwatch_agent.sources.child import ChildGone, ChildLimits, ChildSilent, DriverChild
from flopwatch_agent.sources.pci import PCI_ROOT, nvidia_slots
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

_log = structlog.get_logger()

CHECK_READS: Final = 60
"""Size of the child is looked at in every such reading."""

LOST_RECYCLE_SECONDS: Final = 300.0
"""A process that saw a card get lost keeps seeing it lost: so often a new one looks again."""

_FATAL_XIDS: Final = frozenset({48, 79, 95})
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


class NvmlSource:
    """The cards of this host's NVIDIA driver.

    Attributes:
        driver_state: ``ok absent unresponsive mismatch lost released``.
    """

    name = "nvml"

    def __init__(
        self,
        *,
        limits: ChildLimits | None = None,
        environment: Mapping[str, str] | None = None,
        pci_root: Path = PCI_ROOT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the source; nothing runs before `start`.

        Args:
            environment: of the child; None: this process's own.
            clock: seconds, for deadlines.
        """
        self.driver_state = "ok"
        self._limits = limits or ChildLimits()
        self._child = DriverChild(self._limits, environment, clock)
        self._pci_root = pci_root
        self._clock = clock
        self._known: dict[str, Device] = {}
        self._lost: set[str] = set()
        self._denied: set[str] = set()
        self._listed: int | None = None
        self._listed_generation = 0
        self._events: list[pb.Event] = []
        self._reads = 0
        self._child_since = 0.0
        self._released_until: float | None = None

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
        await self._cycle()
        slots = nvidia_slots(self._pci_root)
        if not self._known and not slots and self.driver_state in ("absent", "ok"):
            await self.close()
            raise NoDevice("no NVIDIA driver and no NVIDIA card on the PCI bus")
        if not self._known:
            self._known = {s: Device(slot=s, kind="gpu", sku=None) for s in slots}
        elif len(slots) > len(self._known):
            text = f"the PCI bus has {len(slots)} cards, the driver lists {len(self._known)}"
            self._tell("count_changed", code=len(self._known), severity="warning", text=text)

    async def read(self) -> SourceReport:
        """Return a reading of every card; never later than the deadline allows."""
        readings = await self._cycle()
        events, self._events = tuple(self._events), []
        return SourceReport(readings=readings, events=events, driver_state=self.driver_state)

    async def release(self, seconds: float) -> None:
        """Let go of the driver for a while, so that cards can be reset or cut anew."""
        await self._recycle()
        self._released_until = self._clock() + seconds
        self._enter("released")

    async def close(self) -> None:
        """End the child."""
        await self._child.quit()

    # ---- one cycle

    async def _cycle(self) -> tuple[Reading, ...]:
        if self._released_until is not None:
            if self._clock() < self._released_until:
                return self._dark("released")
            self._released_until = None
        try:
            reply = await self._ask(self._clock() + self._limits.deadline_seconds)
        except ChildSilent as silent:
            self._enter("unresponsive", text=_silence_text(silent))
            return self._dark("unresponsive")
        except ChildGone as gone:
            if self._child.fruitless >= _FRUITLESS_LOST and self.driver_state == "ok":
                self._enter("lost", text=str(gone))
            return self._dark(_FAILURES.get(self.driver_state, "driver_restarting"))
        finally:
            self._take_late()
        if isinstance(reply, Failure):
            self._enter(reply.state, code=reply.code, text=_failure_text(reply))
            return self._dark(_FAILURES.get(reply.state, "driver_lost"))
        assert isinstance(reply, ReadReply)
        return await self._answered(reply)

    async def _ask(self, until: float) -> Reply:
        """Return the reply to a read; the cards are listed first where that is due."""
        if self._child.pid is None or self._listed_generation != self._child.generation:
            reply = await self._child.ask(InventoryRequest(), until)
            if not isinstance(reply, InventoryReply):
                return reply
            self._child_since = self._clock()
            self._list(reply)
        return await self._child.ask(ReadRequest(), until)

    async def _answered(self, reply: ReadReply) -> tuple[Reading, ...]:
        self._child.praise()
        self._reads += 1
        self._take_events(reply.events)
        readings = {r.slot: self._reading(r) for r in reply.devices if r.slot in self._known}
        for slot in self._known.keys() - readings.keys():
            self._lose(slot, "gpu_is_lost")
            readings[slot] = self._failed(slot, "gpu_is_lost")
        alive = any(reading.alive for reading in readings.values())
        self._enter("ok" if alive or not readings else "lost")
        if reply.stale:
            self._listed_generation = 0
        if await self._is_due_for_another():
            await self._recycle()
        return tuple(readings[slot] for slot in sorted(readings))

    async def _is_due_for_another(self) -> bool:
        if self._lost and self._clock() - self._child_since >= LOST_RECYCLE_SECONDS:
            return True
        return self._reads % CHECK_READS == 0 and self._child.is_bloated()

    async def _recycle(self) -> None:
        """End the child after it told its events; the next cycle starts another."""
        if self._child.pid is None:
            return
        try:
            until = self._clock() + self._limits.deadline_seconds
            reply = await self._child.ask(EventsRequest(), until)
        except (ChildSilent, ChildGone):
            reply = None
        if isinstance(reply, EventsReply):
            self._take_events(reply.events)
        await self._child.quit()

    # ---- what the child said

    def _list(self, reply: InventoryReply) -> None:
        """Compare the driver's list of cards with what is known, and take it over."""
        listed = {info.slot: _device(info) for info in reply.devices}
        if self._listed is not None and len(listed) != self._listed:
            text = f"the driver lists {len(listed)} cards, before {self._listed}"
            self._tell("count_changed", code=len(listed), severity="error", text=text)
        for slot, device in listed.items():
            before = self._known.get(slot)
            if before is not None and before.instances != device.instances:
                text = f"{len(before.instances)} MIG devices became {len(device.instances)}"
                self._tell("mig_changed", slot=slot, code=len(device.instances), text=text)
        for slot in self._known.keys() - listed.keys():
            self._lose(slot, "not listed any more")
        self._known.update(listed)
        self._listed = len(listed)
        self._listed_generation = self._child.generation
        _log.info(
            "driver_listed", cards=len(listed), driver=reply.driver_version, nvml=reply.nvml_version
        )

    def _reading(self, said: DeviceReading) -> Reading:
        if said.failure is not None:
            self._lose(said.slot, said.failure)
        else:
            self._lost.discard(said.slot)
        if said.gpm_denied and said.slot not in self._denied:
            self._denied.add(said.slot)
            self._tell("gpm_denied", slot=said.slot, code=4, severity="warning", text=_GPM_REMEDY)
        values: dict[str, Value] = {n: Absence(code) for n, code in said.absences.items()}
        values.update(said.values)
        return Reading(
            device=self._known[said.slot],
            taken_unix_ms=said.taken_unix_ms,
            boottime_ns=said.boottime_ns,
            values=values,
            processes=None
            if said.processes is None
            else tuple(
                Process(pid=p.pid, started_unix_ms=p.started_unix_ms, memory_bytes=p.memory_bytes)
                for p in said.processes
            ),
            alive=said.failure is None,
            failure=said.failure,
        )

    def _take_late(self) -> None:
        late, self._child.late = self._child.late, None
        if isinstance(late, (ReadReply, EventsReply)):
            self._take_events(late.events)

    def _take_events(self, events: list[DriverEvent]) -> None:
        for event in events:
            text = f"Xid {event.code}"
            if event.gpu_instance is not None:
                text += f" in GPU instance {event.gpu_instance}"
            self._tell(
                "xid",
                slot=event.slot,
                code=event.code,
                severity="fatal" if event.code in _FATAL_XIDS else "error",
                text=text,
                time_unix_ms=event.time_unix_ms,
            )

    # ---- trouble

    def _lose(self, slot: str, why: str) -> None:
        if slot not in self._lost:
            self._lost.add(slot)
            self._tell("card_lost", slot=slot, severity="fatal", text=why)

    def _enter(self, state: str, *, code: int = 0, text: str = "") -> None:
        """Change the driver's state; a change for the worse is an event."""
        if state == self.driver_state:
            return
        self.driver_state = state
        log = _log.info if state in ("ok", "absent", "released") else _log.warning
        log("driver_state", state=state, text=text)
        if state == "unresponsive":
            self._tell("unresponsive", code=code, severity="error", text=text)
        elif state in ("absent", "mismatch", "lost"):
            self._tell(f"driver_{state}", code=code, severity="error", text=text)

    def _tell(
        self,
        kind: str,
        *,
        slot: str = "",
        code: int = 0,
        severity: str = "info",
        text: str = "",
        time_unix_ms: int | None = None,
    ) -> None:
        event = pb.Event(
            slot=slot,
            time_unix_ms=_now_unix_ms() if time_unix_ms is None else time_unix_ms,
            kind=kind,
            code=code,
            severity=severity,
            text=text,
        )
        self._events.append(event)

    def _dark(self, failure: str) -> tuple[Reading, ...]:
        return tuple(self._failed(slot, failure) for slot in sorted(self._known))

    def _failed(self, slot: str, failure: str) -> Reading:
        return Reading(
            device=self._known[slot],
            taken_unix_ms=_now_unix_ms(),
            boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            alive=False,
            failure="gpu_is_lost" if slot in self._lost and failure != "released" else failure,
        )


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


def _device(info: DeviceInfo) -> Device:
    return Device(
        slot=info.slot,
        kind="gpu",
        sku=info.sku,
        uuid=info.uuid,
        serial=info.serial,
        minor=info.minor,
        sm_count=info.sm_count,
        clock_mhz_max=info.clock_mhz_max,
        instances=info.instances,
    )


def _silence_text(silent: ChildSilent) -> str:
    text = f"the driver has not answered for {silent.seconds:.0f} s"
    return f"{text}; no more children are started" if silent.stopped else text


def _failure_text(failure: Failure) -> str:
    text = f"{failure.call}: {failure.text}"
    return f"{text} (kernel module: {failure.versions})" if failure.versions else text

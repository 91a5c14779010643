"""What the NVML source has to tell: the driver's state, and cards that are lost. Trouble is told once.

    ok ◄──► unresponsive · absent · mismatch · lost · released

A change for the worse is an event, and so is a card that goes; a state that stays is silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_agent.driver.messages import DriverEvent, Failure
from flopwatch_agent.sources.child import ChildSilent
from flopwatch_proto.v1 import telemetry_pb2 as pb

RESET_REQUIRED: Final = "reset_required"

_log = structlog.get_logger()


class Trouble:
    """The state and the events not yet taken.

    Attributes:
        driver_state: ``ok absent unresponsive mismatch lost released``.
        lost: slots of the cards that the driver gave up or does not list any more.
    """

    def __init__(self) -> None:
        self.driver_state = "ok"
        self.lost: set[str] = set()
        self._events: list[pb.Event] = []
        self._told: set[str] = set()

    def take(self) -> tuple[pb.Event, ...]:
        """Return the events since the last call."""
        events, self._events = tuple(self._events), []
        return events

    def enter(self, state: str, *, code: int = 0, text: str = "") -> None:
        """Change the driver's state."""
        if state == self.driver_state:
            return
        self.driver_state = state
        log = _log.info if state in ("ok", "absent", "released") else _log.warning
        log("driver_state", state=state, text=text)
        if state == "unresponsive":
            self.tell("unresponsive", code=code, text=text)
        elif state in ("absent", "mismatch", "lost"):
            self.tell(f"driver_{state}", code=code, text=text)

    def fail(self, failure: Failure) -> None:
        """Enter the state that the driver's own word means."""
        text = f"{failure.call}: {failure.text}"
        if failure.versions:
            text = f"{text} ({failure.versions})"
        self.enter(failure.state, code=failure.code, text=text)

    def silent(self, silent: ChildSilent) -> None:
        """The driver does not answer; for good, where no more children are started."""
        text = f"the driver has not answered for {silent.seconds:.0f} s"
        self.enter("unresponsive", text=text)
        if silent.stopped:
            text = f"{text}; too many children hang in it, no more are started"
            self.tell_once("driver_given_up", text=text)

    def hopeful(self) -> None:
        """Children may be started again: should they hang again, that is told anew."""
        self._told.discard("driver_given_up")

    def lose(self, slot: str, why: str) -> None:
        """A card is gone, or wants a reset before it works again."""
        if slot in self.lost:
            return
        self.lost.add(slot)
        kind = RESET_REQUIRED if why == RESET_REQUIRED else "card_lost"
        self.tell(kind, slot=slot, text=why)

    def find(self, slot: str) -> None:
        """A card answers."""
        self.lost.discard(slot)

    def xids(self, events: Iterable[DriverEvent]) -> None:
        """Tell what the driver's event set said."""
        for event in events:
            text = f"Xid {event.code}"
            if event.gpu_instance is not None:
                text += f" in GPU instance {event.gpu_instance}"
            self.tell(
                "xid", slot=event.slot, code=event.code, text=text, time_unix_ms=event.time_unix_ms
            )

    def tell_once(self, kind: str, *, text: str) -> None:
        """Add an event about the host that has not been told yet."""
        if kind not in self._told:
            self._told.add(kind)
            self.tell(kind, text=text)

    def tell(
        self,
        kind: str,
        *,
        slot: str = "",
        code: int = 0,
        text: str = "",
        time_unix_ms: int | None = None,
    ) -> None:
        """Add an event."""
        now_unix_ms = wall_unix_ms(SystemClock())
        self._events.append(
            pb.Event(
                slot=slot,
                time_unix_ms=now_unix_ms if time_unix_ms is None else time_unix_ms,
                kind=kind,
                code=code,
                text=text[:1000],
            )
        )

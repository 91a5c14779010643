"""What the next payload will hold: rows, events and declarations, until they are in the spool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from flopwatch_agent.events.catalogue import explained
from flopwatch_agent.events.once import Once
from flopwatch_agent.reading import Device
from flopwatch_agent.sources.host import HostReading, host_rows
from flopwatch_proto.codec import IntervalRow, encode_rows
from flopwatch_proto.v1 import telemetry_pb2 as pb

EVENTS_MAX: Final = 1_000
HOST_READINGS_MAX: Final = 1_000


@dataclass(slots=True, kw_only=True)
class Outgoing:
    """Collects; `take` empties it. What is bounded drops its oldest and counts.

    Attributes:
        node, dtype: of the slots it declares.
        newest: the rows of the last payload.
        dropped_events: events that found no room.
    """

    node: str
    dtype: str
    interval_ms: int
    newest: pb.IntervalRows = field(default_factory=pb.IntervalRows)
    dropped_events: int = 0
    _rows: list[IntervalRow] = field(default_factory=list)
    _events: list[pb.Event] = field(default_factory=list)
    _once: Once = field(default_factory=Once)
    _slots: list[pb.SlotDeclaration] = field(default_factory=list)
    _probes: list[pb.Probe] = field(default_factory=list)
    _hosts: list[HostReading] = field(default_factory=list)
    _declared: dict[str, Device] = field(default_factory=dict)

    @property
    def repeated_events(self) -> int:
        """Events that said what another origin had told already, and were left out."""
        return self._once.repeated_total

    def add_rows(self, rows: Iterable[IntervalRow]) -> None:
        """Take rows that the fold has completed."""
        self._rows += rows

    def tell(self, events: Iterable[pb.Event]) -> None:
        """Take events, one of two that say the same, explained by the catalogue; the oldest give way."""
        self._events += (explained(event) for event in self._once.fresh(events))
        if (excess := len(self._events) - EVENTS_MAX) > 0:
            self.dropped_events += excess
            del self._events[:excess]

    def add_probes(self, probes: Iterable[pb.Probe]) -> None:
        """Take results of probes."""
        self._probes += probes

    def add_host(self, reading: HostReading) -> None:
        """Take a reading of the host; it becomes a row with the one before."""
        self._hosts.append(reading)
        del self._hosts[:-HOST_READINGS_MAX]

    def declare(self, device: Device, from_unix_ms: int) -> None:
        """Put a slot in service from its first reading on, and say when its card is another."""
        before = self._declared.get(device.slot)
        if before is not None and _identity(before) == _identity(device):
            return
        self._declared[device.slot] = device
        self._slots.append(
            pb.SlotDeclaration(
                node=self.node,
                slot=device.slot,
                sku=device.sku or "",
                device_uuid=device.uuid or "",
                serial=device.serial or "",
                device_kind=device.kind,
                dtype=self.dtype,
                state=pb.SLOT_STATE_IN_SERVICE,
                from_unix_ms=from_unix_ms,
            )
        )

    def take(self) -> pb.Payload | None:
        """Return everything as one payload; None where there is nothing."""
        payload = pb.Payload(slots=self._slots, events=self._events, probes=self._probes)
        self.newest = encode_rows(self._rows) if self._rows else pb.IntervalRows()
        if self._rows:
            payload.intervals.CopyFrom(self.newest)
        if len(self._hosts) > 1:
            payload.hosts.CopyFrom(host_rows(self._hosts, self.interval_ms))
            del self._hosts[:-1]
        self._rows, self._events, self._slots, self._probes = [], [], [], []
        return payload if payload.ByteSize() else None


def _identity(device: Device) -> Sequence[str | None]:
    return (device.uuid, device.sku, device.serial)

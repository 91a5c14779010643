"""The words that sources of allocation speak: who holds which card. Values only.

A *teller* is a source that knows of the whole host (Slurm, a kubelet, a file). Its *word* names *holders* at
*places*; a place is a card as that source names it, and meets the card that the driver names in `on_card`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from flopwatch_agent.reading import Device
from flopwatch_proto.v1 import telemetry_pb2 as pb

MINOR: Final = "minor"
GRES: Final = "gres"
UUID: Final = "uuid"
SLOT: Final = "slot"


@dataclass(frozen=True, slots=True)
class Place:
    """A card as a source names it.

    Attributes:
        kind: ``minor`` of its device file, ``gres`` (Slurm's index: the place in order of PCI addresses),
            ``uuid`` of a card or MIG device, ``slot``.
        name: a number for the first two; texts in lower case.
    """

    kind: Literal["minor", "gres", "uuid", "slot"]
    name: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a card, by one source's word.

    Attributes:
        job: as the scheduler names it.
        partition, qos, namespace: what the workload's class may be told by.
        owners: marks of the control groups whose processes are this holder's (`cgroup.Marks`); empty
            where they are not known, and then no process is taken for a stranger.
        weight: against other holders of the same place.
        suspended: the scheduler has stopped it and left it its cards.
        yields: it runs a scheduler of its own, whose word stands before its.
    """

    job: str
    team: str | None = None
    user: str | None = None
    partition: str | None = None
    qos: str | None = None
    namespace: str | None = None
    workload_class: str | None = None
    owners: frozenset[str] = frozenset()
    weight: float = 1.0
    suspended: bool = False
    yields: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What a teller said.

    Attributes:
        held: place → its holders.
        unplaced: hold cards here, nobody can say which.
        only: the places it speaks for; None: for every card of the host.
        by_environ: no control groups tell whose a process is; its own environment may.
    """

    held: Mapping[Place, tuple[Holder, ...]] = field(default_factory=dict)
    unplaced: tuple[Holder, ...] = ()
    only: frozenset[Place] | None = None
    by_environ: bool = False


def told(kind: str, text: str, unix_ms: int, slot: str = "") -> pb.Event:
    """Return an event."""
    return pb.Event(slot=slot, time_unix_ms=unix_ms, kind=kind, text=text[:1000])


class SilentError(Exception):
    """A teller that should speak does not; the text says why."""


class Teller(Protocol):
    """A source that knows who holds the cards of this host.

    Attributes:
        required: configured to speak; otherwise it counts from its first word on.
    """

    name: str
    required: bool

    async def ask(self) -> Word | None:
        """Return its word; None where this host is none of its nodes.

        Raises:
            SilentError: it should speak and does not.
        """
        ...

    def events(self) -> Sequence[pb.Event]:
        """Return what is worth telling since the last call."""
        ...


Held = tuple[Holder, str | None]
"""A holder, and the MIG device that it holds (None: the card)."""


def speaks_for(word: Word, device: Device, rank: int) -> bool:
    """Return whether the word is about this card."""
    return word.only is None or any(_instance(p, device, rank) is not _OTHER for p in word.only)


def on_card(word: Word, device: Device, rank: int) -> tuple[Held, ...]:
    """Return who holds a card by a word.

    Args:
        rank: the card's place among the host's cards in order of PCI addresses.
    """
    found: list[Held] = []
    for place, holders in word.held.items():
        instance = _instance(place, device, rank)
        if instance is not _OTHER:
            found += ((holder, instance) for holder in holders)
    return tuple(found)


_OTHER: Final = "another card"


def _instance(place: Place, device: Device, rank: int) -> str | None:
    """Return the MIG device of the card that a place names, None for the card, else `_OTHER`."""
    if place.kind == MINOR:
        same = place.name == device.minor
    elif place.kind == GRES:
        same = place.name == rank
    elif place.kind == SLOT:
        same = place.name == device.slot.lower()
    else:
        for instance in device.instances:
            if place.name == instance.lower():
                return instance
        same = device.uuid is not None and place.name == device.uuid.lower()
    return None if same else _OTHER

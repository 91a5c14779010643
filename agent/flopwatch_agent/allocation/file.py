"""A file that says who holds which card, where no scheduler does: leases by hand.

    [[hold]]
    slot = "0000:18:00.0"        # or uuid = "GPU-…" or "MIG-…"
    job = "lease-17"             # left out: the card is free, whatever runs on it
    team = "pretraining"

TOML, or JSON with the same keys where the name ends in ``.json``. Strict: an unknown key, a missing place
or a place named twice is an error. It is read again when it changes; a new version that is wrong is told,
and the one before stays in force. It speaks for the cards that it names and for no other.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from flopwatch_agent.allocation.holders import SLOT, UUID, Holder, Place, Word, told
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_agent.config import WorkloadClass
from flopwatch_proto.errors import UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb

_BYTES_MAX: Final = 4 * 1024 * 1024


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry. Attributes: slot, uuid: exactly one of them."""

    slot: str | None = None
    uuid: str | None = None
    job: str | None = None
    team: str | None = None
    user: str | None = None
    workload_class: WorkloadClass | None = None

    def __post_init__(self) -> None:
        if (self.slot is None) == (self.uuid is None):
            raise ValueError("an entry has either slot or uuid")
        if self.job is None and (self.team or self.user or self.workload_class):
            raise ValueError("an entry without a job is a free card: it has no team, user or class")

    def place(self) -> Place:
        """Return the card."""
        if self.slot is not None:
            return Place(SLOT, self.slot.lower())
        return Place(UUID, (self.uuid or "").lower())


class _Holds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    hold: list[Hold] = []


class HoldFile:
    """The teller ``file``.

    Raises:
        UsageError: the file is wrong as it is now.
    """

    name = "file"
    required = True

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._version: tuple[int, int, int] | None = None
        self._events: deque[pb.Event] = deque(maxlen=64)
        try:
            self._version, self._word = self._read()
        except (OSError, ValueError) as exc:
            raise UsageError(f"[allocation] file = {str(path)!r}: {exc}") from exc

    async def ask(self) -> Word:
        """Return the file's word; see `Teller.ask`."""
        try:
            if _version(os.stat(self._path)) != self._version:
                self._version, self._word = self._read()
        except (OSError, ValueError) as exc:
            self._tell(exc)
        return self._word

    def events(self) -> tuple[pb.Event, ...]:
        """Return what is wrong with the file's new version, once."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def _read(self) -> tuple[tuple[int, int, int], Word]:
        with self._path.open("rb") as file:
            version = _version(os.fstat(file.fileno()))
            data = file.read(_BYTES_MAX + 1)
        if len(data) > _BYTES_MAX:
            raise ValueError(f"larger than {_BYTES_MAX} bytes")
        return version, parse(data, json=self._path.suffix == ".json")

    def _tell(self, exc: Exception) -> None:
        text = f"{self._path}: {exc}; what it said before stays in force"
        try:
            version = _version(os.stat(self._path))
        except OSError:
            version = (0, 0, 0)
        if version == self._version:
            return
        self._version = version
        self._events.append(told("allocation_file", text, wall_unix_ms(self._clock)))


def parse(data: bytes, *, json: bool) -> Word:
    """Return the word of a file's text.

    Raises:
        ValueError: the file is wrong; the text says where.
    """
    decode = msgspec.json.decode if json else msgspec.toml.decode
    try:
        holds = decode(data, type=_Holds).hold
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ValueError(str(exc)) from exc
    held: dict[Place, tuple[Holder, ...]] = {}
    only: set[Place] = set()
    for hold in holds:
        place = hold.place()
        if place in only:
            raise ValueError(f"{place.name} is named twice")
        only.add(place)
        if hold.job is not None:
            held[place] = (
                Holder(
                    job=hold.job,
                    team=hold.team,
                    user=hold.user,
                    workload_class=hold.workload_class,
                ),
            )
    return Word(held=held, only=frozenset(only))


def _version(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns

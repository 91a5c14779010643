"""Who holds a card: one word out of all sources, and the shares that follow from it.

    Slurm ─┐                        who holds it ──┐
    kubelet ─┼─► voices ─► said ─►                 ├─► parts ─► shares
    file ──┘                        processes ─────┘
                                    (whose they are, strangers)

- Precedence: Slurm, the kubelet, the file, processes. The first that names a holder counts; where all that
  speak name nobody the card is free, whatever runs on it. Processes count only where nobody else speaks.
- A process that is no holder's makes its card ROGUE, never allocated; from the second round of questions on
  that it outlasts, as a job's first process may be seen before the job is.
- Where the teller of a card has been silent for too long, or somebody holds a card and nobody can say
  which, a card that nobody is known to hold is UNSEEN: it is not known, and free would be a lie.
- Tellers that name different jobs for two intervals are a ``meter_dispute``; the first still counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from flopwatch_agent.allocation.activity import Activity
from flopwatch_agent.allocation.holders import Held, Holder, told
from flopwatch_agent.allocation.names import JobNames
from flopwatch_agent.allocation.parts import Part, parts
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.allocation.strangers import Owners, Present, sort_out
from flopwatch_agent.allocation.voices import Said, Voices
from flopwatch_agent.jobs import JobTable, device_key
from flopwatch_agent.labels import Labels
from flopwatch_agent.reading import Device, Reading, Share
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

_SLOTS_MAX: Final = 1_024


@dataclass(slots=True, kw_only=True)
class _Card:
    """What is remembered of a card.

    Attributes:
        state: of the voices when `said` was made.
        pids: the last that the driver listed; None before it did.
        disputed_ns: since when tellers differ.
        strangers: process → the round of questions in which it was first seen.
    """

    device: Device
    said: Said
    state: tuple[int | bool, ...]
    pids: tuple[int, ...] | None = None
    disputed_ns: int | None = None
    dispute_told: bool = False
    strangers: dict[int, int] = field(default_factory=dict)
    rogue_told: bool = False


class Resolve:
    """The allocation of a host with any number of tellers.

    Args:
        classify: a holder → its workload class by configuration, or None.
        interval_ms: length of a row.
    """

    name = "resolve"

    def __init__(
        self,
        voices: Voices,
        processes: Processes,
        owners: Owners,
        labels_of: Callable[[int], Labels],
        classify: Callable[[Holder], str | None],
        interval_ms: int,
    ) -> None:
        self._voices = voices
        self._processes = processes
        self._owners = owners
        self._classify = classify
        self._interval_ns = interval_ms * 1_000_000
        self._activity = Activity()
        self._names = JobNames(labels_of)
        self._cards: dict[str, _Card] = {}
        self._ranks: dict[str, int] = {}
        self._events: deque[pb.Event] = deque(maxlen=256)

    async def refresh(self) -> None:
        """Ask the tellers."""
        await self._voices.ask()

    def events(self) -> Sequence[pb.Event]:
        """Return disputes, strangers and silences since the last call."""
        events = [*self._events, *self._voices.events()]
        self._events.clear()
        return events

    def shares(self, reading: Reading, jobs: JobTable) -> tuple[Share, ...]:
        """Return who holds the reading's card from that reading on; weights sum to 1."""
        if reading.device.kind != "gpu":
            return self._processes.shares(reading, jobs)
        card = self._card(reading)
        said = card.said
        if not said.source:
            return self._processes.shares(reading, jobs)
        marks = self._owners.marks(reading.device.slot, card.pids or (), by_environ=said.by_environ)
        held = said.held or _by_process(said, marks.values())
        present = sort_out(held, marks, said.unplaced)
        self._dispute(card, reading)
        if not held and (said.silent or said.unplaced):
            self._activity.buckets(reading, {})
            resident = None if card.pids is None else bool(card.pids)
            return (Share(bucket=Bucket.UNSEEN, source=said.source, resident=resident),)
        rogue = self._rogue(card, reading, present)
        found = parts(held, reading.device)
        buckets = self._activity.buckets(reading, _held_by_somebody(card, present, found))
        shares = [self._share(part, card, present, buckets, jobs) for part in found]
        self._names.keep(reading.device.slot, [holder.job for holder, _ in held])
        if rogue:
            _mark_rogue(shares)
        return tuple(shares)

    def _share(
        self,
        part: Part,
        card: _Card,
        present: Present,
        buckets: Mapping[str | None, Bucket],
        jobs: JobTable,
    ) -> Share:
        holder, source = part.holder, card.said.source
        if holder is None:
            return Share(
                bucket=Bucket.FREE,
                weight=part.weight,
                instance=part.instance,
                source=source,
                resident=bool(card.pids) and part.weight == 1.0,
            )
        pids = present.own.get(holder.job, ())
        here = _is_here(card, present, holder)
        bucket = buckets[part.instance] if here else Bucket.IDLE_ALLOC
        slot, device = card.device.slot, device_key(card.device)
        labels = self._names.labels(device, holder.job, pids, jobs)
        counters = self._names.counters(slot, device, holder.job, pids, jobs)
        return Share(
            bucket=Bucket.SUSPENDED if holder.suspended else bucket,
            weight=part.weight,
            job=holder.job,
            instance=part.instance,
            team=holder.team or labels.team,
            user=holder.user or labels.user,
            workload_class=self._classify(holder) or labels.workload_class,
            phase=labels.phase,
            dtype=labels.dtype,
            convention=labels.convention,
            source=source,
            resident=None if card.pids is None else here,
            model_flops_total=(counters or {}).get("model_flops"),
            counters=counters,
        )

    def _card(self, reading: Reading) -> _Card:
        """Return what is known of the reading's card, as of now."""
        device, state = reading.device, self._voices.state()
        if device.slot not in self._ranks and len(self._ranks) < _SLOTS_MAX:
            slots = sorted((*self._ranks, device.slot))
            self._ranks = {slot: rank for rank, slot in enumerate(slots)}
            self._cards.clear()
        card = self._cards.get(device.slot)
        if card is None:
            said = self._voices.said(device, self._ranks.get(device.slot, -1))
            card = self._cards[device.slot] = _Card(device=device, said=said, state=state)
        elif card.state != state or (card.device is not device and card.device != device):
            card.said = self._voices.said(device, self._ranks.get(device.slot, -1))
            card.state = state
        card.device = device
        if reading.processes is not None:
            card.pids = tuple(sorted({process.pid for process in reading.processes}))
        return card

    def _dispute(self, card: _Card, reading: Reading) -> None:
        if not card.said.dispute:
            card.disputed_ns, card.dispute_told = None, False
            return
        if card.disputed_ns is None:
            card.disputed_ns = reading.boottime_ns
        if card.dispute_told or reading.boottime_ns - card.disputed_ns < 2 * self._interval_ns:
            return
        card.dispute_told = True
        text = f"{card.said.dispute}; the first counts"
        self._events.append(told("meter_dispute", text, reading.taken_unix_ms, reading.device.slot))

    def _rogue(self, card: _Card, reading: Reading, present: Present) -> bool:
        """Return whether there is a stranger that a word asked for after it came does not know either."""
        rounds = self._voices.rounds
        card.strangers = {pid: card.strangers.get(pid, rounds) for pid in present.strangers}
        known = [pid for pid, since in card.strangers.items() if rounds - since >= 2]
        if known and not card.rogue_told:
            holders = ", ".join(sorted({h.job for h, _ in card.said.held})) or "nobody"
            who, source = self._owners.describe(known[0]), card.said.source
            text = f"{who} is on a card that {source} gave to {holders}"
            self._events.append(told("rogue", text, reading.taken_unix_ms, reading.device.slot))
        card.rogue_told = bool(known)
        return bool(known)


def _by_process(said: Said, marks: Iterable[frozenset[str] | None]) -> tuple[Held, ...]:
    """Return the holders that only their processes can place, on a card that nobody else is named for."""
    here = frozenset(mark for marked in marks if marked for mark in marked)
    return tuple((holder, None) for holder in said.unplaced if holder.owners & here)


def _is_here(card: _Card, present: Present, holder: Holder) -> bool:
    """Return whether a process of a holder is on its card; the driver's silence is no absence."""
    return card.pids is None or holder.job in present.own or present.somebody


def _held_by_somebody(
    card: _Card, present: Present, found: Iterable[Part]
) -> dict[str | None, bool]:
    """Return the MIG devices held (None: the card), and whether a process of a holder is there."""
    held: dict[str | None, bool] = {}
    for part in found:
        if part.holder is not None:
            here = _is_here(card, present, part.holder)
            held[part.instance] = held.get(part.instance, False) or here
    return held


def _mark_rogue(shares: list[Share]) -> None:
    """Put the flag on the free part of the card where there is one: nobody there answers for it."""
    at = next((i for i, share in enumerate(shares) if share.bucket is Bucket.FREE), 0)
    free = shares[at].bucket is Bucket.FREE
    shares[at] = replace(shares[at], rogue=True, resident=True if free else shares[at].resident)

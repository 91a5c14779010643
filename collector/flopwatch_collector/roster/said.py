"""What a scheduler says of a cluster, before it is a message; and the message. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, cast

from flopwatch_proto.codec import Strings
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

ROSTER_HOLDS_MS: Final = 5 * 60_000
WARNINGS_MAX: Final = 1_000
_RESERVED: Final = "reservation:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One entry of a roster. Attributes: why: the reason in words, for people who compare."""

    node: str
    bucket: Bucket
    slot: str = ""
    job: str = ""
    team: str = ""
    user: str = ""
    workload_class: str = ""
    weight: float = 1.0
    why: str = ""

    def at(self, slot: str) -> Word:
        """Return the same said of a slot."""
        return replace(self, slot=slot)

    def reserved(self, names: str) -> Word:
        """Return it with the reservations that hold the card, for who excuses some of them."""
        if self.bucket != Bucket.HELD or not names:
            return self
        return replace(self, workload_class=_RESERVED + names)

    def as_part(self, bucket: Bucket, weight: float, why: str) -> Word:
        """Return a part of it that is in another bucket."""
        return replace(self, bucket=bucket, weight=weight, why=why)


def reservations_of(workload_class: str) -> tuple[str, ...]:
    """Return the reservations that hold a card, by the class of its time."""
    if not workload_class.startswith(_RESERVED):
        return ()
    return tuple(name.strip() for name in workload_class.removeprefix(_RESERVED).split(","))


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Something that makes a roster less than the truth.

    Attributes:
        kind: one word, the kind of the event; node: empty where it is of the cluster.
        action: the first step towards its end.
    """

    kind: str
    node: str
    text: str
    action: str


@dataclass(slots=True, kw_only=True)
class Said:
    """What a scheduler says at one moment.

    Attributes:
        words: per (slot, job); of the slots that it speaks for, each exactly once by weight.
        pending_jobs, pending_cards: those that wait for cards.
        silent: node → rosters running in which it did not respond.
        unknown_nodes: nodes with cards of which flopwatch knows no slot.
        unlisted_free_cards: free cards in slots without a word.
        hidden_cards, hidden_nodes: allocated to jobs that whoever asked may not see.
    """

    source: str
    words: list[Word] = field(default_factory=list)
    pending_jobs: int = 0
    pending_cards: int = 0
    unlisted_free_cards: float = 0.0
    silent: dict[str, int] = field(default_factory=dict)
    unknown_nodes: list[str] = field(default_factory=list)
    hidden_cards: int = 0
    hidden_nodes: int = 0
    doubts: list[Doubt] = field(default_factory=list)

    def doubt(self, kind: str, node: str, text: str, action: str) -> None:
        """Note a doubt; no more than a bounded number is kept."""
        if len(self.doubts) < WARNINGS_MAX:
            self.doubts.append(Doubt(kind=kind, node=node, text=text, action=action))

    def message(self, taken_unix_ms: int) -> pb.Roster:
        """Return it as a roster that holds for 5 minutes."""
        strings = Strings()
        message = pb.Roster(
            source=self.source,
            taken_unix_ms=taken_unix_ms,
            valid_until_unix_ms=taken_unix_ms + ROSTER_HOLDS_MS,
            pending_jobs=self.pending_jobs,
            pending_cards=self.pending_cards,
        )
        free_cards = self.unlisted_free_cards
        for word in self.words:
            message.node.append(strings.add(word.node))
            message.slot.append(strings.add(word.slot))
            message.bucket.append(cast("pb.Bucket", int(word.bucket)))
            message.job.append(strings.add(word.job))
            message.team.append(strings.add(word.team))
            message.user.append(strings.add(word.user))
            message.workload_class.append(strings.add(word.workload_class))
            message.weight.append(word.weight)
            free_cards += word.weight if word.bucket == Bucket.FREE else 0.0
        message.free_cards = free_cards
        message.strings.extend(strings.list())
        return message

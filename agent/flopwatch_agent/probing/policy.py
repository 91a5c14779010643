"""When a card may be probed by itself. Pure; a refusal is a reason in words.

A card may be probed only while nobody holds it: no compute process, no scheduler's or operator's claim, for
`Limits.idle_ms`, with a driver that answers. One card of a host at a time, in the host's own turn (so that a
rack's power does not step), and within the card's budget.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flopwatch_agent.probing.budget import Account, budget_ms
from flopwatch_agent.reading import Reading, Share
from flopwatch_proto.rows import Bucket

STALE_MS: Final = 3_000
"""A card last read longer ago than this is not known to be idle."""

GAP_MS: Final = 30_000
"""Longer without a reading, and somebody may have come and gone: the wait begins anew."""

RETRY_MS: Final = 3_600_000
"""After a probe that was aborted."""

_LAST_NUMBER: Final = re.compile(r"(.*?)(\d+)\D*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of probing.

    Attributes:
        idle_ms: how long a card is free before it is probed.
        wall_ms: longest time of one probe; what is reserved of the budget before it starts.
        budget_ratio: of a card's time.
        every_ms: between two probes of a kind.
        turns: how many turns there are; neighbours in a rack have different ones.
    """

    idle_ms: int = 300_000
    wall_ms: int = 25_000
    budget_ratio: float = 0.001
    every_ms: int = 86_400_000
    turns: int = 64

    @property
    def turn_ms(self) -> int:
        """Return the length of a turn: a probe that starts in its first half ends within it."""
        return 2 * self.wall_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class CardState:
    """What is known of a card.

    Attributes:
        driver: version of the driver that reads it; None where it does not say.
        occupied: why somebody may be on it, None where it is nobody's.
        free_since_ns: boottime since when it is nobody's.
        read_ns: boottime of the newest reading.
    """

    device: str
    driver: str | None = None
    occupied: str | None
    free_since_ns: int
    read_ns: int


class Watch:
    """Remembers since when each card is nobody's."""

    def __init__(self) -> None:
        self._cards: dict[str, CardState] = {}

    @property
    def cards(self) -> Mapping[str, CardState]:
        """Return slot → state."""
        return self._cards

    def see(self, reading: Reading, shares: Sequence[Share]) -> None:
        """Take a reading and who holds the card from it on."""
        slot, device = reading.device.slot, reading.device
        before = self._cards.get(slot)
        reason = occupied(reading, shares)
        since = reading.boottime_ns
        if (
            before is not None
            and reason is None
            and before.occupied is None
            and before.device == device.uuid
            and 0 <= reading.boottime_ns - before.read_ns <= GAP_MS * 1_000_000
        ):
            since = before.free_since_ns
        self._cards[slot] = CardState(
            device=device.uuid or "",
            driver=device.driver_version,
            occupied=reason,
            free_since_ns=since,
            read_ns=reading.boottime_ns,
        )


def occupied(reading: Reading, shares: Sequence[Share]) -> str | None:
    """Return why the card may be somebody's from a reading on; None: it is nobody's.

    Args:
        reading: without the processes of a probe of ours (`tags.Tags.tagged`).
    """
    device = reading.device
    if device.kind != "gpu" or not device.uuid:
        return "not a card with a name"
    if not reading.alive:
        return f"its driver does not answer: {reading.failure}"
    if device.instances:
        return "cut into MIG devices"
    if reading.processes is None:
        return "the driver does not list its processes"
    if reading.processes:
        return f"process {reading.processes[0].pid} is on it"
    for share in shares:
        if share.bucket is not Bucket.FREE or share.rogue or share.job is not None:
            return f"{share.bucket.name} by {share.source or 'nobody'}" + (
                f", job {share.job}" if share.job else ""
            )
    return None if shares else "nobody said who holds it"


def refusal(
    card: CardState,
    account: Account,
    limits: Limits,
    *,
    now_ns: int,
    now_unix_ms: int,
    node: str,
    released: bool = False,
    busy: str | None = None,
) -> str | None:
    """Return why the card may not be probed now; None: it may.

    Args:
        now_ns, now_unix_ms: boottime and wall clock.
        released: an operator has the cards.
        busy: what is being probed on this host.
    """
    if released:
        return "the cards are released to an operator"
    if busy is not None:
        return f"{busy} is being probed"
    if card.occupied is not None:
        return card.occupied
    if now_ns - card.read_ns > STALE_MS * 1_000_000:
        return "not read lately"
    if now_ns - card.free_since_ns < limits.idle_ms * 1_000_000:
        return "not idle for long enough"
    if not in_turn(node, now_unix_ms, limits):
        return "not this host's turn"
    if not account.affords(limits.wall_ms, now_unix_ms, budget_ms(limits.budget_ratio)):
        return "its budget is spent"
    return None


def due(
    account: Account,
    plan: Sequence[str],
    limits: Limits,
    now_unix_ms: int,
    retry_ms: int = RETRY_MS,
) -> str | None:
    """Return the first of what is planned that is due, the one longest ago first; None: nothing is."""
    found: list[tuple[int, str]] = []
    for what in plan:
        last = account.last(what)
        wait_ms = 0 if last is None else retry_ms if last.aborted else limits.every_ms
        since_ms = 0 if last is None else last.start_unix_ms
        if last is None or now_unix_ms - since_ms >= wait_ms or since_ms > now_unix_ms:
            found.append((since_ms, what))
    return min(found)[1] if found else None


def in_turn(node: str, now_unix_ms: int, limits: Limits) -> bool:
    """Whether a probe that starts now ends within the host's own turn."""
    turn, into_ms = divmod(now_unix_ms, limits.turn_ms)
    return turn % limits.turns == turn_of(node, limits.turns) and (
        into_ms + limits.wall_ms <= limits.turn_ms
    )


def turn_of(node: str, turns: int) -> int:
    """Return a host's turn, 0 … turns - 1: nodes whose names count up take turns that count up."""
    match = _LAST_NUMBER.fullmatch(node)
    stem, number = (match[1], int(match[2])) if match is not None else (node, 0)
    digest = hashlib.sha256(stem.encode()).digest()
    return (int.from_bytes(digest[:8], "big") + number) % turns

"""Where flopwatch and a scheduler say different things of a cluster's cards, and why. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from flopwatch_collector.roster.said import Said, Word
from flopwatch_proto.rows import ALLOCATED_BUCKETS

_ALIKE: Final = {
    **{bucket.name: "allocated" for bucket in ALLOCATED_BUCKETS},
    "FREE": "free",
    "STRANDED": "free",
    "MISSING": "lost",
    "FAILED": "lost",
    "MAINT": "maintenance",
    "HELD": "held",
    "UNSEEN": "unseen",
}
"""What both must agree on. Which cards are at work, or too few on their node, no scheduler counts."""

Cards = Sequence[Mapping[str, Any]]
"""`cards_list` of a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a scheduler says now.

    Attributes:
        source: its name, as it stands in the output.
        held: node → job → cards it holds there; None: it holds some, or parts of some.
        unhealthy: node → cards that the scheduler does not give out, as they do not work.
    """

    source: str
    said: Said
    held: Mapping[str, Mapping[str, float | None]]
    unhealthy: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A card, or a node where ``slot`` is None, of which both say different things.

    Attributes:
        flopwatch, other: what each says; None: nothing.
    """

    node: str
    slot: str | None
    flopwatch: str | None
    other: str | None
    reason: str

    def shown(self, source: str) -> dict[str, str | None]:
        """Return it as an object, with the scheduler's name instead of ``other``."""
        return {source if k == "other" else k: v for k, v in asdict(self).items()}


def nodes_to_ask(listed: Iterable[Mapping[str, Any]], told: Told) -> list[str]:
    """Return the nodes to compare card by card: those whose numbers differ, then those with jobs."""
    theirs = _states_by_node(told.said.words)
    differ, held = [], []
    for node in listed:
        name, mine = node["node"], _states(node["cards"])
        if name in theirs and mine != theirs[name]:
            differ.append(name)
        elif mine["allocated"] or told.held.get(name) or told.unhealthy.get(name):
            held.append(name)
    return [*differ, *held]


def card_differences(details: Mapping[str, Cards], told: Told) -> list[Difference]:
    """Return what differs on these nodes: state and job by card, or by node where no card can be named."""
    words: dict[tuple[str, str], list[Word]] = {}
    for word in told.said.words:
        words.setdefault((word.node, word.slot), []).append(word)
    differences = []
    for node, cards in details.items():
        unnamed = []
        for card in cards:
            said = words.get((node, card["slot"]))
            if said is None:
                unnamed.append(card)
                continue
            found = _card_difference(node, card, said, told.source)
            if found is not None:
                differences.append(found)
        if unnamed:
            differences.extend(_node_differences(node, unnamed, told))
    return differences


def strangers(told: Told, slots: Mapping[str, object]) -> list[Difference]:
    """Return nodes that only one of both knows."""
    said = told.said
    known = {*(word.node for word in said.words), *told.held}
    doubted = {doubt.node for doubt in said.doubts}
    return [
        *(
            Difference(
                node=node,
                slot=None,
                flopwatch=None,
                other="has cards",
                reason="in no inventory and without an agent: its cards are not counted",
            )
            for node in said.unknown_nodes
        ),
        *(
            Difference(
                node=node,
                slot=None,
                flopwatch="has cards",
                other=None,
                reason=f"{told.source} does not list it: its cards count, and it can give them to nobody",
            )
            for node in slots
            if node not in known and node not in doubted
        ),
    ]


def summary(listed: Iterable[Mapping[str, Any]], told: Told) -> dict[str, dict[str, int]]:
    """Return cards by state, as each says it; the scheduler's are those that it can name."""
    mine: Counter[str] = Counter()
    for node in listed:
        mine += _states(node["cards"])
    theirs: Counter[str] = Counter()
    for states in _states_by_node(told.said.words).values():
        theirs += states
    return {"flopwatch": dict(sorted(mine.items())), told.source: dict(sorted(theirs.items()))}


def _card_difference(
    node: str, card: Mapping[str, Any], said: Sequence[Word], source: str
) -> Difference | None:
    """Return in what a card differs from the scheduler's words of it: its state, else its job."""
    word = max(said, key=lambda one: one.weight)
    mine, theirs = _ALIKE.get(card["bucket"] or ""), _ALIKE[word.bucket.name]
    if mine != theirs:
        return Difference(
            node=node,
            slot=card["slot"],
            flopwatch=card["bucket"],
            other=word.bucket.name,
            reason=_reason(card, word, source),
        )
    jobs = sorted({one.job for one in said if one.job})
    if mine != "allocated" or not jobs or card.get("row") is None or card["job"] in jobs:
        return None
    return Difference(
        node=node,
        slot=card["slot"],
        flopwatch=f"job {card['job']}" if card["job"] else "no job",
        other=" ".join(["job", *jobs]),
        reason=f"its agent's last row, from {card['row']['start']}, is by "
        f"{card.get('allocation_source') or 'nobody'}; {source}: {word.why}",
    )


def _node_differences(node: str, cards: Cards, told: Told) -> list[Difference]:
    """Return in what the cards differ that the scheduler counts on a node and cannot name."""
    mine = Counter(card["job"] for card in cards if _ALIKE.get(card["bucket"] or "") == "allocated")
    theirs = told.held.get(node, {})
    unseen = sum(card["bucket"] in ("UNSEEN", "MISSING") for card in cards)
    found = []
    for job in sorted({*theirs, *(job for job in mine if job)}):
        has, wants = mine[job], theirs.get(job, 0)
        if has == wants or (wants is None and has):
            continue
        if not has and unseen:
            reason = f"no agent speaks for {unseen} cards of the node"
        elif not has:
            reason = "it is bound to the node, and nothing there says that it has cards"
        elif job not in theirs:
            reason = "nobody of that name holds cards there: it ended within a minute, or its processes stay"
        else:
            reason = "what it asked for is not what the node gave it"
        found.append(
            Difference(
                node=node,
                slot=None,
                flopwatch=f"{job}: {has} cards",
                other=f"{job}: {'some' if wants is None else f'{wants:g}'} cards",
                reason=reason,
            )
        )
    lost = sum(_ALIKE.get(card["bucket"] or "") == "lost" for card in cards)
    unhealthy = told.unhealthy.get(node, 0)
    if unhealthy > lost:
        reason = "the device plugin calls cards unhealthy that flopwatch sees at work or free"
        found.append(
            Difference(
                node=node,
                slot=None,
                flopwatch=f"{lost} lost",
                other=f"{unhealthy} unhealthy",
                reason=reason,
            )
        )
    return found


def _reason(card: Mapping[str, Any], word: Word, source: str) -> str:
    """Say why a card may be in different states."""
    row = card.get("row")
    told = f"{source}: {word.why}"
    if card["bucket"] in ("UNSEEN", "MISSING"):
        return f"no agent speaks for it, and the collector has no roster; {told}"
    if row is None:
        return f"no agent speaks for it: the last roster, at most 5 minutes old; {told}"
    if row["rogue"]:
        return f"a process is on it that no allocation covers; {told}"
    if card["bucket"] == "FAILED":
        return f"its agent says that the card cannot work; {told}"
    by = row.get("allocation_source") or card.get("allocation_source") or "its agent"
    return f"flopwatch by {by} and the last roster, up to a minute old; {told}"


def _states(cards: Mapping[str, int]) -> Counter[str]:
    states: Counter[str] = Counter()
    for bucket, count in cards.items():
        states[_ALIKE[bucket]] += count
    return states


def _states_by_node(words: Iterable[Word]) -> dict[str, Counter[str]]:
    """Return node → cards by state, each slot once."""
    slots = {(word.node, word.slot): word.bucket for word in words}
    states: dict[str, Counter[str]] = {}
    for (node, _), bucket in slots.items():
        states.setdefault(node, Counter())[_ALIKE[bucket.name]] += 1
    return states

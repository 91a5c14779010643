"""Reservations that take a part of a node, by the text of ``scontrol -o show reservation``. Pure.

A node of which any core is reserved is RESERVED as long as nothing runs on it, and no longer once something
does. Only ``CoreIDs`` tell that the rest is open to every job: Slurm 22.05 reserves CPUs, nodes, licenses and
burst buffers and no GRES (scontrol(1) 22.05, TRES=), so a job of others may take all cards of such a node.
Newer versions can reserve GRES with the cores, which then stands in ``TRES=``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flopwatch_collector.roster.said import Word
from flopwatch_collector.roster.slurm_layout import Job, Node, hosts_in
from flopwatch_proto.rows import Bucket

_FIELD: Final = re.compile(r"(\w+)=(\S*)")
_CORES: Final = re.compile(r"NodeName=(\S+) CoreIDs=([\d,-]+)")
_CARDS: Final = re.compile(r"(?:^|,)gres/gpu=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A reservation in force.

    Attributes:
        cores: node → cores, of nodes that are reserved in part.
        cards: per node, of those.
    """

    name: str
    nodes: frozenset[str]
    cores: Mapping[str, int] = field(default_factory=dict)
    cards: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What reservations hold of a node beyond their jobs. Attributes: names: theirs."""

    names: str
    cards: int
    cpus: float


def reservations_in(text: str) -> tuple[Reservation, ...]:
    """Return the reservations in force; a line each."""
    found = []
    for line in text.splitlines():
        fields = dict(_FIELD.findall(line))
        if fields.get("State") != "ACTIVE" or "ReservationName" not in fields:
            continue
        nodes = frozenset(hosts_in(fields.get("Nodes")))
        cards = _CARDS.search(fields.get("TRES", ""))
        found.append(
            Reservation(
                name=fields["ReservationName"],
                nodes=nodes,
                cores={node: _count(spans) for node, spans in _CORES.findall(line)},
                cards=-(-int(cards[1]) // max(1, len(nodes))) if cards else 0,
            )
        )
    return tuple(found)


def held_part(
    node: Node, reservations: Iterable[Reservation], by_index: Mapping[int, Sequence[Job]]
) -> Held | None:
    """Return what is held of a node that is reserved in part; None: it is not, or as a whole.

    Args:
        by_index: the node's cards → jobs that hold them.
    """
    mine = {r.name: r for r in reservations if node.name in r.nodes}
    if not mine or any(r.cores.get(node.name, node.cores) >= node.cores for r in mine.values()):
        return None
    inside = {j.id: j for jobs in by_index.values() for j in jobs if j.reservation in mine}
    cards = sum(any(j.id in inside for j in jobs) for jobs in by_index.values())
    cores = sum(r.cores[node.name] for r in mine.values())
    return Held(
        names=", ".join(sorted(mine)),
        cards=max(0, sum(r.cards for r in mine.values()) - cards),
        cpus=max(0.0, cores - sum(j.cpus_per_piece for j in inside.values())),
    )


def with_held(by_card: Sequence[list[Word]], held: Held) -> list[list[Word]]:
    """Return the words of a node's cards with as many free ones held: the last, as nobody says which."""
    free = [i for i, words in enumerate(by_card) if [w.bucket for w in words] == [Bucket.FREE]]
    last = frozenset(free[max(0, len(free) - held.cards) :])
    return [
        [
            w.as_part(Bucket.HELD, w.weight, f"{w.node} is reserved in part: {held.names}")
            for w in words
        ]
        if i in last
        else words
        for i, words in enumerate(by_card)
    ]


def _count(spans: str) -> int:
    ends = (span.partition("-") for span in spans.split(",") if span)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)

"""STRANDED: free cards that the jobs which want cards cannot use where they lie. Pure.

Formula (FGD, Weng et al., USENIX ATC '23): ``F_n(M) = Σ_m p_m · F_n(m)``. For a shape m that node n cannot
host (too few cards, too few CPUs, too little memory, or another type of card) every free card of the node
is a fragment: F_n(m) = all of them. For one that it can host only parts of cards too small for it are, and
a whole card is never too small: F_n(m) = 0. So, whole cards given, the share of a node's free cards that
is stranded is the share of the mix that it cannot host.

The mix M is the pending queue; where nothing is pending, the jobs of the last seven days. p_m is the share
of m among the pieces of all jobs, a piece being what a job puts on one node. Without any mix nothing can be
called stranded, and the cards are FREE.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

STEP: Final = 1e-6
"""Shares are rounded to whole millionths, so that the two weights of a slot always add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFree:
    """What a node has left for jobs: healthy, schedulable and not allocated.

    Attributes:
        cards: whole free cards.
        cpus: free CPUs as the scheduler counts them; None: it does not count them, so they never lack.
        memory_bytes: free memory; None as with ``cpus``.
        card_type: the scheduler's own word for the type of card; empty: not known.
    """

    node: str
    cards: int
    cpus: float | None = None
    memory_bytes: int | None = None
    card_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShape:
    """What one piece of a job wants of one node.

    Attributes:
        cards: cards of one node; the least where the scheduler may spread them. 0: the shape does not count.
        card_type: the type it insists on; empty: any.
        pieces: how many such pieces wait (or ran): nodes of a job, times jobs.
    """

    cards: int
    cpus: float = 0.0
    memory_bytes: int = 0
    card_type: str = ""
    pieces: int = 1


def fits(node: NodeFree, shape: JobShape) -> bool:
    """Return whether a node can host a piece now. A type nobody knows is taken to be the right one."""
    return (
        shape.cards <= node.cards
        and (node.cpus is None or shape.cpus <= node.cpus)
        and (node.memory_bytes is None or shape.memory_bytes <= node.memory_bytes)
        and (not shape.card_type or not node.card_type or shape.card_type == node.card_type)
    )


def reference_mix(pending: Iterable[JobShape], recent: Iterable[JobShape]) -> tuple[JobShape, ...]:
    """Return the mix that free cards are judged by: what is pending and wants cards, else what ran lately."""
    for shapes in (pending, recent):
        mix = tuple(shape for shape in shapes if shape.cards > 0 and shape.pieces > 0)
        if mix:
            return mix
    return ()


def stranded_ratios(nodes: Iterable[NodeFree], mix: Sequence[JobShape]) -> dict[str, float]:
    """Return node → share of its free cards that is stranded, 0..1, for nodes with free cards.

    A roster lists each free card of the node twice: STRANDED with this weight, FREE with the rest of 1; a
    weight of 0 is left out.
    """
    whole = sum(shape.pieces for shape in mix)
    if not whole:
        return {node.node: 0.0 for node in nodes if node.cards > 0}
    ratios = {}
    for node in nodes:
        if node.cards > 0:
            lost = sum(shape.pieces for shape in mix if not fits(node, shape))
            ratios[node.node] = round(lost / whole / STEP) * STEP
    return ratios

"""What an explanation is, and how a summary says it. Pure.

``said`` gives the same cause in several lengths, the fullest first: a summary takes the first that fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flopwatch_collector.paging import text
from flopwatch_collector.paging.kinds import KINDS

NAME_CHARACTERS: Final = (28, 12)
SHOWN_MIN: Final = 0.05
"""Of points and cards; less would read as 0.0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something with a name that lost cards. Attributes: kind: rack, node, job, team or card."""

    kind: str
    name: str
    cards: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The leading cause of an outage.

    Attributes:
        kind: of ``KINDS``.
        subjects: what it is about, the largest first.
        cards: lost to it; points: of 100; both None where not known.
        detail: what a job does: ``SMs idle``; that a job ended with nodes.
        in_all: how many there are where not all are known by name.
    """

    kind: str
    subjects: tuple[Subject, ...] = ()
    cards: float | None = None
    points: float | None = None
    detail: str = ""
    in_all: int = 0

    @property
    def more(self) -> int:
        """How many there are beside the first."""
        return max(len(self.subjects), self.in_all) - 1

    @property
    def owner(self) -> str:
        """Who can act."""
        return KINDS[self.kind].owner

    @property
    def step(self) -> str:
        """The first thing to do."""
        return KINDS[self.kind].step


def subjects_of(kind: str, lost: Mapping[str, float]) -> tuple[Subject, ...]:
    """Return the subjects of a mapping from name to cards, the largest first."""
    ordered = sorted(lost.items(), key=lambda found: (-found[1], found[0]))
    return tuple(Subject(kind=kind, name=name, cards=cards) for name, cards in ordered)


def said(found: Explanation) -> tuple[str, ...]:
    """Return the cause in one line, in falling lengths; the last one is without any name."""
    points, held = found.points or 0.0, found.cards or 0.0
    lost = f" {text.points(points)}" if points >= SHOWN_MIN else ""
    cards = f", {text.count(held, 'card')}" if held >= SHOWN_MIN else ""
    bare = KINDS[found.kind].bare
    first, second = (named(found, characters_max) for characters_max in NAME_CHARACTERS)
    return (
        f"{first}{cards}{lost}",
        f"{second}{cards}{lost}",
        f"{second}{lost}",
        f"{bare}{lost}",
        bare,
    )


def named(found: Explanation, characters_max: int) -> str:
    """Return the cause with its name, or with how many there are."""
    kind, subjects = KINDS[found.kind], found.subjects
    detail = f" {found.detail}" if found.detail else ""
    if not subjects:
        return f"{kind.bare}{detail}"
    first = text.name(subjects[0].name, characters_max)
    if found.more == 0:
        return kind.one.format(first) + detail
    if found.kind == "counted":
        return f"{first} and {found.more:,} more{detail}"
    return kind.words.format(f"{found.more + 1:,}") + detail

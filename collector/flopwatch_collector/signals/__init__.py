"""Signals: what rules are told that rows of now do not say, read now and then in a thread of its own.

A signal reads one thing (probes, whole hours of jobs, what agents told, what the collector lacks) and
answers, by cluster and rule, how many of how many. `Signals` keeps the last answers; rules take them at
every tick. A signal that cannot be read stops no other one, and is counted; an answer older than 15
minutes is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

OWN: Final = "flopwatch"
"""The cluster that stands for the collector itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rule counts.

    Attributes:
        whole: of how many; unseen: more that were counted when last heard, and are silent now.
        kind: of the names; cards: by name.
    """

    count: int
    whole: int
    unseen: int = 0
    kind: str = ""
    cards: Mapping[str, float] = field(default_factory=dict)


Answer = Mapping[tuple[str, str], Found]
"""(cluster, rule) → what was found. What is not in it is not known."""


class Signal(Protocol):
    """Something to read. Attributes: name: as in metrics; every_s: how often."""

    name: str
    every_s: float

    def read(self, now_unix_ms: int) -> Answer:
        """Return what is so now.

        Raises:
            FlopwatchError: it could not be read.
        """

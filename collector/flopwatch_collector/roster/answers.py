"""What Slurm answered, however it was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flopwatch_proto.errors import RetryableError


class NotAnsweredError(RetryableError):
    """The scheduler does not answer, or not in words that can be read; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of one moment.

    Attributes:
        cluster: its own name; empty where it does not say.
        nodes, jobs: JSON, of whatever layout.
        closed_partitions: those that start no jobs now.
        reservations: text, a line each; empty where they were not asked for.
        private_data: what PrivateData hides from users without operator rights; empty also where it is
            not told.
    """

    cluster: str
    version: str
    nodes: bytes
    jobs: bytes
    closed_partitions: frozenset[str] = frozenset()
    reservations: str = ""
    private_data: frozenset[str] = frozenset()


class Asker(Protocol):
    """A way to ask."""

    async def ask(self) -> Answers:
        """Return the answers of now. Raises: NotAnsweredError."""
        ...

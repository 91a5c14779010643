"""What one simulated card does while nothing changes. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from flopwatch_proto.rows import Bucket

STATE_BUCKETS: Final[Mapping[str, Bucket | None]] = {
    "active": Bucket.ACTIVE,
    "idle_alloc": Bucket.IDLE_ALLOC,
    "free": Bucket.FREE,
    "held": Bucket.HELD,
    "maint": Bucket.MAINT,
    "failed": Bucket.FAILED,
    "rogue": Bucket.FREE,
    "silent": None,
    "down": Bucket.MISSING,
    "unwatched": Bucket.ALLOCATED,
}
"""What the scheduler says of a card in each state; None: it does not speak for it."""

_UNSENT: Final = ("silent", "down", "unwatched")
_WITH_PROCESS: Final = ("active", "rogue")
WITHOUT_JOB: Final = ("free", "held", "maint", "silent", "down")
"""States in which a job that the phase names does not hold the card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who holds a card or a part of it. The weights of a card's tenants sum to 1.

    Attributes:
        bucket: of this part: a part that no job holds is FREE.
    """

    bucket: Bucket
    weight: float = 1.0
    job: str | None = None
    team: str | None = None
    workload_class: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardState:
    """All of what a card does while nothing changes.

    Attributes:
        state: one of `scenario_file.STATES`.
        tenants: empty where the scheduler says nothing and nothing is sent.
        sm_clock_mhz: None where the SKU has no known clock and the scenario names none.
        power_watts: None where the SKU has no known TDP and the scenario names none.
        throttle: reason → share of time.
        declared_mfu: model FLOPs declared as a share of the card's peak; None: no declaration.
        noise: relative standard deviation of every reading.
    """

    state: str
    tenants: tuple[Tenant, ...]
    sm_active: float = 0.0
    tensor_active: float = 0.0
    dram_active: float = 0.0
    sm_clock_mhz: float | None = None
    power_watts: float | None = None
    throttle: Mapping[str, float] = field(default_factory=dict)
    declared_mfu: float | None = None
    noise: float = 0.0

    @property
    def sent(self) -> bool:
        """Whether the node sends anything of this card."""
        return self.state not in _UNSENT

    @property
    def resident(self) -> bool:
        """Whether a compute process is on the card."""
        return self.state in _WITH_PROCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch [start_ms, end_ms) of a card's timeline, since the scenario's start."""

    start_ms: int
    end_ms: int
    state: CardState


def state_at(segments: tuple[Segment, ...], at_ms: int) -> CardState:
    """What a card with this timeline does from ``at_ms`` on, which lies inside the scenario."""
    for segment in reversed(segments):
        if segment.start_ms <= at_ms:
            return segment.state
    return segments[0].state

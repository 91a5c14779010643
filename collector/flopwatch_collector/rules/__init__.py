"""Rules: what an observation of a cluster means. Pure, three-valued.

Each module here judges one thing and documents its threshold. A rule reads an Observation, which is made
from live state at one tick, and returns a Verdict; it never resolves on missing data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A share of a loss with a name. Attributes: kind: node, job, team or step; points: of 100."""

    kind: str
    name: str
    cards: float
    points: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was known of one cluster at one tick, for one rule.

    Attributes:
        rule: ``allocation`` (newest complete interval), ``mfu`` (trailing two minutes), or a rule that
            counts.
        device_kind: ``gpu``; processors (``cpu``) are never judged.
        tick_unix_ms: end of what was observed, a multiple of the interval.
        lo, hi, value: bounds and value of the ratio, 0..1; None where nothing is known.
        coverage: share of the card-time behind the figure that was measured; None without card-time.
        in_service_cards, unseen_cards: cards at the tick.
        excused_cards: spares, reserved or in maintenance, which no figure here counts.
        onboarded_ratio: in service of the inventory; 1.0 without an inventory file.
        lost_points: bucket or waterfall step → points of 100 below 100 %.
        causes: the largest first, at most ten.
        free_without_demand_points: part of the loss explained by no demand waiting.
        goodbye_cards: cards of nodes that said goodbye and are not yet due back.
        silent_nodes: nodes in service that stopped speaking, with the moment of their last word.
        newest_row_unix_ms: end of the newest row; None when none ever came.
        in_service_nodes: nodes in service at the tick; None where not counted.
        subjects: how many nodes, cards or jobs a counting rule is about; None of a ratio.
        subjects_in_all: of how many.
        subjects_unseen: more that were counted when last seen, and are unseen now.
        since_unix_ms: subject → since when it is as it is, of a rule that counts what lasts.
        witnessed_missing_points: part of ``lost_points["MISSING"]`` that a witness (a roster's word)
            vouches for; the rest is missing by silence alone.
    """

    cluster: str
    rule: str
    simulated: bool
    device_kind: str
    tick_unix_ms: int
    lo: float | None
    hi: float | None
    value: float | None
    coverage: float | None
    in_service_cards: float
    unseen_cards: float
    excused_cards: float = 0.0
    onboarded_ratio: float = 1.0
    lost_points: Mapping[str, float] = field(default_factory=dict)
    causes: tuple[Cause, ...] = ()
    free_without_demand_points: float = 0.0
    goodbye_cards: float = 0.0
    silent_nodes: Mapping[str, int] = field(default_factory=dict)
    newest_row_unix_ms: int | None = None
    in_service_nodes: int | None = None
    witnessed_missing_points: float = 0.0
    subjects: int | None = None
    subjects_in_all: int | None = None
    subjects_unseen: int = 0
    since_unix_ms: Mapping[str, int] = field(default_factory=dict)

"""What an outage is caused by: from what was observed now, and before it fell. Pure.

What grew since then is the cause, not what is largest: cards that have been broken for months explain no
fall. Where nothing of before is known, or hardly anything grew (a slow decline), the largest loss stands. Of
allocation, losses are by bucket, and a rack most of whose cards are lost is named before its nodes. Of MFU,
losses are by step, and a job that lost far more per card than the others is named before the step
(`job_causes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.news import NO_DEMAND
from flopwatch_collector.paging import job_causes
from flopwatch_collector.paging.evidence import Evidence
from flopwatch_collector.paging.found import Explanation, Subject, subjects_of
from flopwatch_collector.rules import Cause
from flopwatch_collector.rules.registry import rule_named

HARDWARE: Final = ("MISSING", "FAILED")
DARK_SHARE: Final = 0.6
"""A rack went dark when it lost this share of its cards; racks are the cause of this share of a loss."""
SILENT_NODES_MIN: Final = 10
"""So many nodes that are missing by silence alone are rather not seen than lost."""
WHOLE_SHARE: Final = 0.9
FREED_MIN: Final = 1.0
FREED_SLACK: Final = 0.05
"""Cards that a job must have left free, and by which share of its cards the sum may be off."""
_BUCKET_KINDS: Final = {"MAINT": "drained", "HELD": "held", "STRANDED": "stranded"}


def explain(state: IncidentState, evidence: Evidence) -> Explanation:
    """Return the leading cause of an incident."""
    if state.leading_cause == NO_DEMAND:
        points = evidence.now.points.get("FREE", 0.0)
        return _by_nodes("demand", evidence, points, "FREE")
    if state.rule in ("blind", "data_missing", "node_silent"):
        return _silence(evidence)
    if state.rule == "coverage":
        return job_causes.uncounted(evidence)
    match rule_named(state.rule).reads:
        case "mfu":
            return job_causes.explain(evidence)
        case "allocation":
            return _allocation(evidence)
    return _counted(evidence.now.causes, state.subjects or 0)


def _allocation(evidence: Evidence) -> Explanation:
    """The bucket that grew most: racks before nodes, and free cards by who waits for them."""
    grown = evidence.grown()
    hardware = {bucket: lost for bucket, lost in grown.items() if bucket in HARDWARE}
    racks = _racks(evidence, hardware)
    found = [] if racks is None else [_with_freed(racks, evidence, grown)]
    if racks is None:
        for bucket, points in hardware.items():
            found.append(_with_freed(_down(evidence, bucket, points), evidence, grown))
    for bucket, kind in {**_BUCKET_KINDS, "FREE": _free(evidence)}.items():
        if bucket in grown:
            found.append(_by_nodes(kind, evidence, grown[bucket], bucket))
    return max(found, key=lambda one: one.points or 0.0, default=Explanation(kind="unknown"))


def _racks(evidence: Evidence, hardware: Mapping[str, float]) -> Explanation | None:
    """Return the racks that went dark; None: they are not what the hardware lost."""
    points = sum(hardware.values())
    nodes = evidence.nodes(points, *hardware)
    racks = dark_racks(nodes, evidence)
    if not racks or (share := sum(racks.values()) / sum(nodes.values())) < DARK_SHARE:
        return None
    return _explanation("dead_rack", subjects_of("rack", racks), share * points, evidence)


def _with_freed(down: Explanation, evidence: Evidence, grown: Mapping[str, float]) -> Explanation:
    """Return nodes that are down with the cards that a job which ended with them left free.

    It did where jobs that are gone held the cards that are free now, and some that are lost.
    """
    if down.kind not in ("dead_rack", "dead_nodes") or evidence.earlier is None:
        return down
    freed = grown.get("FREE", 0.0) / 100 * evidence.cards
    gone = sum(evidence.ended().values())
    lost = down.cards or 0.0
    if freed < FREED_MIN or not FREED_MIN / 2 < gone - freed <= lost + FREED_SLACK * gone:
        return down
    points = (down.points or 0.0) + grown["FREE"]
    return replace(down, cards=lost + freed, points=points, detail="+ a job")


def _down(evidence: Evidence, bucket: str, points: float) -> Explanation:
    """Return the cause of cards that are missing, or failed: nodes as a whole, or single cards."""
    nodes = evidence.nodes(points, bucket)
    if bucket == "MISSING":
        silent = evidence.now.points["MISSING"] - evidence.now.witnessed_points
        many = len(nodes) >= SILENT_NODES_MIN and silent > points / 2
        kind = "blind" if many else "dead_nodes"
        return _explanation(kind, subjects_of("node", nodes), points, evidence)
    sizes = evidence.layout.cards
    whole = {n: c for n, c in nodes.items() if n in sizes and c >= WHOLE_SHARE * sizes[n]}
    share = sum(whole.values()) / sum(nodes.values()) if whole else 0.0
    if share > 0.5:
        return _explanation("dead_nodes", subjects_of("node", whole), share * points, evidence)
    return _explanation("failed_cards", subjects_of("node", nodes), points, evidence)


def _free(evidence: Evidence) -> str:
    """Return the kind of cause of free cards."""
    now, before = evidence.now, evidence.before
    unwanted = now.unwanted_points - (0.0 if before is None else before.unwanted_points)
    free = now.points.get("FREE", 0.0) - evidence.points_before("FREE")
    if now.unwanted_points > 0 and unwanted > free / 2:
        return "demand"
    # A queue that says of some cards that nobody waits for them is one that is known.
    wanted = now.unwanted_points if evidence.tally is None else evidence.tally.wanted_cards
    return "scheduling" if wanted > 0 else "free"


def _silence(evidence: Evidence) -> Explanation:
    """Nodes without a word: racks of them, or agents all over."""
    layout, cards = evidence.layout, evidence.now.unseen_cards or None
    nodes = {node: float(layout.cards.get(node, 1)) for node in evidence.now.silent}
    racks = dark_racks(nodes, evidence)
    if nodes and sum(racks.values()) >= DARK_SHARE * sum(nodes.values()):
        return Explanation(kind="dead_rack", subjects=subjects_of("rack", racks), cards=cards)
    return Explanation(kind="blind", subjects=subjects_of("node", nodes), cards=cards)


def dark_racks(nodes: Mapping[str, float], evidence: Evidence) -> dict[str, float]:
    """Return rack → cards that it lost now, of racks that lost most of theirs now and have none left."""
    layout, gone = evidence.layout, evidence.gone()
    lost: dict[str, float] = {}
    left: dict[str, float] = {}
    for node, rack in layout.racks.items():
        if (cards := nodes.get(node, 0.0)) > 0:
            lost[rack] = lost.get(rack, 0.0) + cards
        left[rack] = left.get(rack, 0.0) + layout.cards[node] - max(cards, gone.get(node, 0.0))
    return {
        rack: cards
        for rack, cards in lost.items()
        if cards >= DARK_SHARE * layout.rack_cards[rack]
        and left[rack] <= (1 - WHOLE_SHARE) * layout.rack_cards[rack]
    }


def _by_nodes(kind: str, evidence: Evidence, points: float, bucket: str) -> Explanation:
    nodes = subjects_of("node", evidence.nodes(points, bucket))
    return _explanation(kind, nodes, points, evidence)


def _explanation(
    kind: str, subjects: tuple[Subject, ...], points: float, evidence: Evidence
) -> Explanation:
    cards = points / 100 * evidence.cards if evidence.cards else None
    return Explanation(kind=kind, subjects=subjects, cards=cards, points=points)


def _counted(causes: tuple[Cause, ...], in_all: int) -> Explanation:
    """What a rule counted: its own list."""
    if not causes:
        return Explanation(kind="unknown")
    subjects = tuple(Subject(kind=c.kind, name=c.name, cards=c.cards) for c in causes)
    cards = sum(cause.cards for cause in causes) or None
    points = sum(cause.points for cause in causes) or None
    return Explanation(kind="counted", subjects=subjects, cards=cards, points=points, in_all=in_all)

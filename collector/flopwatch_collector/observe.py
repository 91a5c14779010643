"""From judged lines to observations: what a rule is told of a cluster at a tick. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from flopwatch_collector.ledger.draft import ROSTER, Lines
from flopwatch_collector.ledger.evidence import NEVER, Bools, Window
from flopwatch_collector.ledger.figures import figures, lost_points
from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_collector.ledger.waterfall import waterfall
from flopwatch_collector.rules import Cause, Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

CAUSES_MAX: Final = 10
STEADY_PHASES: Final = ("", "steady", "unknown")
UNLABELLED: Final = ""


def allocation_observation(
    cluster: str,
    simulated: bool,
    window: Window,
    lines: Lines,
    sheet: Sheet,
    *,
    heard: Mapping[tuple[str, str], int],
    ready_unix_ms: int,
    goodbyes: set[str],
    newest_row_unix_ms: int | None,
    onboarded_ratio: float = 1.0,
    excused_cards: float = 0.0,
) -> Observation:
    """Return what the allocation rule is told of the newest interval.

    Args:
        lines: of the window, per slot, without what is excused.
        sheet: the same, summed over slots.
        heard: (node, slot) → end of its last row.
        goodbyes: nodes that took leave and are not yet overdue.
    """
    length = window.end - window.start
    shown = figures(sheet, length)
    unseen = lines.bucket == Bucket.UNSEEN
    leaving = np.zeros_like(unseen)
    if goodbyes:
        leaving = np.array([lines.names[k][0] in goodbyes for k in lines.key], np.bool_)
    points = lost_points(sheet)
    witnessed = (sheet.bucket == Bucket.MISSING) & (sheet.texts["allocation_source"] == ROSTER)
    return Observation(
        cluster=cluster,
        rule="allocation",
        simulated=simulated,
        device_kind="gpu",
        tick_unix_ms=window.end,
        lo=shown["allocation"]["lo"],
        hi=shown["allocation"]["hi"],
        value=shown["allocation"]["value"],
        coverage=shown["allocation"]["coverage"],
        in_service_cards=shown["cards"]["in_service"],
        in_service_nodes=len({lines.names[k][0] for k in lines.key}),
        unseen_cards=shown["cards"]["unseen"],
        lost_points=points,
        free_without_demand_points=_points(sheet, sheet.time(column="free_no_demand_ms")),
        onboarded_ratio=onboarded_ratio,
        excused_cards=excused_cards,
        causes=_lost_by_node(lines, sheet, length),
        goodbye_cards=_cards(lines, unseen & leaving, length),
        silent_nodes=_silent(lines, unseen & ~leaving, heard, ready_unix_ms),
        newest_row_unix_ms=newest_row_unix_ms,
        witnessed_missing_points=_points(sheet, sheet.where(witnessed).time()),
    )


def mfu_observation(
    cluster: str,
    simulated: bool,
    window: Window,
    sheet: Sheet,
    settings: RuleSettings,
    newest_row_unix_ms: int | None,
) -> Observation:
    """Return what the MFU rule is told of the trailing window: allocated time of its classes, steady.

    Time whose class nobody labelled counts: a cluster without labels is not a cluster without an MFU.
    """
    of_class = sheet.where(counted_by_mfu(sheet, settings))
    shown = figures(of_class, window.end - window.start)
    mfu = shown["mfu_achievable" if settings.basis == "achievable" else "mfu"]
    steps = {
        s["step"]: 100 * s["share"]
        for s in waterfall(of_class)
        if s["share"] and s["owner"] != "output"
    }
    return Observation(
        cluster=cluster,
        rule="mfu",
        simulated=simulated,
        device_kind="gpu",
        tick_unix_ms=window.end,
        lo=mfu["lo"],
        hi=mfu["hi"],
        value=mfu["value"],
        coverage=shown["hfu"]["coverage"],
        in_service_cards=sheet.time() / (window.end - window.start),
        unseen_cards=sheet.time(Bucket.UNSEEN) / (window.end - window.start),
        lost_points=steps,
        causes=(*_lost_by(of_class, "job", window), *_lost_by(of_class, "team", window)),
        newest_row_unix_ms=newest_row_unix_ms,
    )


def counted_by_mfu(sheet: Sheet, settings: RuleSettings) -> Bools:
    """Return the lines that the MFU rule counts: allocated time of its classes, steady."""
    classes = (*settings.workload_classes, "unknown", UNLABELLED)
    counted = np.isin(sheet.bucket, ALLOCATED_BUCKETS)
    counted &= np.isin(sheet.texts["workload_class"], classes)
    counted &= np.isin(sheet.texts["phase"], STEADY_PHASES)
    return counted


def _points(sheet: Sheet, card_ms: int) -> float:
    seen = sheet.time() - sheet.time(Bucket.UNSEEN)
    return 100 * card_ms / seen if seen else 0.0


def _cards(lines: Lines, mask: Bools, window_ms: int) -> float:
    return float(lines.ints["card_ms"][mask].sum()) / window_ms


def _lost_by_node(lines: Lines, sheet: Sheet, window_ms: int) -> tuple[Cause, ...]:
    """Return the nodes with the most card-time neither allocated nor unseen."""
    lost = ~np.isin(lines.bucket, (*ALLOCATED_BUCKETS, Bucket.UNSEEN))
    seen = sheet.time() - sheet.time(Bucket.UNSEEN)
    by_node: dict[str, int] = {}
    for key, card_ms in zip(lines.key[lost], lines.ints["card_ms"][lost], strict=True):
        node = lines.names[key][0]
        by_node[node] = by_node.get(node, 0) + int(card_ms)
    return _largest("node", by_node, window_ms, seen)


def _lost_by(sheet: Sheet, column: str, window: Window) -> tuple[Cause, ...]:
    """Return the jobs (or teams) with the most allocated card-time that became no FLOPs."""
    output = np.nan_to_num(sheet.sums["hardware_step_ms"]) + np.nan_to_num(
        sheet.sums["model_step_ms"]
    )
    lost: dict[str, float] = {}
    for name, card_ms in zip(sheet.texts[column], sheet.ints["card_ms"] - output, strict=True):
        if name:
            lost[str(name)] = lost.get(str(name), 0) + float(card_ms)
    return _largest(column, lost, window.end - window.start, sheet.time())


def _largest(
    kind: str, lost_ms: Mapping[str, float], window_ms: int, whole_ms: int
) -> tuple[Cause, ...]:
    ordered = sorted(lost_ms.items(), key=lambda kv: (-kv[1], kv[0]))[:CAUSES_MAX]
    return tuple(
        Cause(
            kind=kind,
            name=name,
            cards=ms / window_ms,
            points=100 * ms / whole_ms if whole_ms else 0.0,
        )
        for name, ms in ordered
        if ms > 0
    )


def _silent(
    lines: Lines, mask: Bools, heard: Mapping[tuple[str, str], int], ready_unix_ms: int
) -> dict[str, int]:
    """Return node → its last word, of nodes that are unseen and took no leave."""
    nodes = {lines.names[k][0] for k in lines.key[mask]}
    last: dict[str, int] = {}
    for (node, _), end in heard.items() if nodes else ():
        if node in nodes:
            last[node] = max(last.get(node, NEVER), end)
    return {node: max(last.get(node, NEVER), ready_unix_ms) for node in nodes}

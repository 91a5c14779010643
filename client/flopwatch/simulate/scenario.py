"""A scenario: for every simulated card the timeline of what it does. Pure.

The file (`scenario_file`) speaks of phases over ranges of nodes and cards, later ones winning. Here
they become what the player plays: per card a tuple of segments that tile the scenario, in each of
which nothing changes. Times are milliseconds since its start; the player adds the clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flopwatch.simulate import phases, scenario_file
from flopwatch.simulate.card import CardState, Segment
from flopwatch.simulate.phases import Phase
from flopwatch.simulate.scenario_file import ClusterTable, ScenarioFile, XidTable
from flopwatch_kernels import peaks
from flopwatch_proto.errors import UsageError

CARDS_MAX: Final = 1_000_000
ENDLESS_MS: Final = 100 * 365 * 86_400_000
"""Length of a scenario whose duration is ``endless``: nobody waits for its end."""

FATAL_XIDS: Final = (48, 79, 95)
"""Xids after which the card is FAILED until its next phase."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """A critical error of one card, ``at_ms`` after the scenario's start."""

    at_ms: int
    node: int
    card: int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One simulated cluster.

    Attributes:
        sku: the full name, as the driver would say it.
        pending_cards: cards its queue waits for; None: its scheduler knows no queue.
        timelines: per node, per card, the segments that tile [0, duration).
        edges_ms: every moment inside the scenario at which some card changes.
    """

    name: str
    sku: peaks.Sku
    dtype: str
    nodes: int
    cards_per_node: int
    pending_cards: int | None
    timelines: tuple[tuple[tuple[Segment, ...], ...], ...]
    xids: tuple[Xid, ...]
    edges_ms: tuple[int, ...]

    def node_name(self, node: int) -> str:
        """``atlas-0000`` …"""
        return f"{self.name}-{node:04d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole scenario. Attributes: start_unix_ms: None where the file names no start."""

    seed: int
    start_unix_ms: int | None
    duration_ms: int
    interval_ms: int
    clusters: tuple[Cluster, ...]

    @property
    def endless(self) -> bool:
        """Whether it runs until somebody stops it."""
        return self.duration_ms >= ENDLESS_MS


def load(path: Path) -> Scenario:
    """The scenario of a file.

    Raises:
        UsageError: the file cannot be read, or what it says is wrong; the text names file and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise UsageError(f"scenario {path}: {reason}") from exc
    try:
        return parse(text)
    except UsageError as exc:
        raise UsageError(f"scenario {path}: {exc}") from exc


def parse(text: str) -> Scenario:
    """The scenario that a file's text says.

    Raises:
        UsageError: it is wrong; the text starts with the path of the key.
    """
    tables = scenario_file.read(text)
    duration_ms = _duration_ms(tables)
    interval_ms = scenario_file.duration_ms("scenario.interval", tables.scenario.interval)
    if not 1_000 <= interval_ms <= 60_000 or 60_000 % interval_ms:
        raise UsageError("scenario.interval: a divisor of a minute is wanted, of 1s or more")
    if not tables.cluster:
        raise UsageError("cluster: at least one [[cluster]] is required")
    start = tables.scenario.start
    clusters: list[Cluster] = []
    for i, table in enumerate(tables.cluster):
        cluster = _cluster(f"cluster[{i}]", table, duration_ms)
        if cluster.name in (other.name for other in clusters):
            raise UsageError(f"cluster[{i}].name: {cluster.name!r} was taken before")
        clusters.append(cluster)
    return Scenario(
        seed=tables.scenario.seed,
        start_unix_ms=None if start is None else scenario_file.unix_ms("scenario.start", start),
        duration_ms=duration_ms,
        interval_ms=interval_ms,
        clusters=tuple(clusters),
    )


def _duration_ms(tables: ScenarioFile) -> int:
    if tables.scenario.duration == scenario_file.ENDLESS:
        return ENDLESS_MS
    duration_ms = scenario_file.duration_ms("scenario.duration", tables.scenario.duration)
    if duration_ms <= 0:
        raise UsageError("scenario.duration: more than nothing is wanted")
    return duration_ms


def _cluster(path: str, table: ClusterTable, duration_ms: int) -> Cluster:
    sku = _sku(path, table)
    if not _NAME.fullmatch(table.name):
        raise UsageError(f"{path}.name: {table.name!r} is no name; write a-z, 0-9, '-', '_', '.'")
    for key, count in (("nodes", table.nodes), ("cards_per_node", table.cards_per_node)):
        if count < 1:
            raise UsageError(f"{path}.{key}: {count} is not 1 or more")
    if table.nodes * table.cards_per_node > CARDS_MAX:
        raise UsageError(f"{path}.nodes: more than {CARDS_MAX} cards")
    if not 0 <= (table.pending_cards or 0) <= CARDS_MAX:
        raise UsageError(f"{path}.pending_cards: {table.pending_cards} is not 0 to {CARDS_MAX}")
    resolved = [
        phases.resolve(f"{path}.phase[{i}]", phase, table, sku, duration_ms)
        for i, phase in enumerate(table.phase)
    ]
    xids = tuple(
        _xid(f"{path}.xid[{i}]", xid, table, duration_ms) for i, xid in enumerate(table.xid)
    )
    timelines = _timelines(table, resolved, xids, phases.free(sku, table.dtype), duration_ms)
    edges = {segment.start_ms for node in timelines for card in node for segment in card}
    return Cluster(
        name=table.name,
        sku=sku,
        dtype=table.dtype,
        nodes=table.nodes,
        cards_per_node=table.cards_per_node,
        pending_cards=table.pending_cards,
        timelines=timelines,
        xids=xids,
        edges_ms=tuple(sorted(edges - {0})),
    )


def _sku(path: str, table: ClusterTable) -> peaks.Sku:
    sku = peaks.find(table.sku)
    if sku is None:
        near = peaks.nearest(table.sku)
        known = f"; nearest known: {near}" if near else '; "flopwatch peaks" lists them'
        raise UsageError(f"{path}.sku: unknown SKU {table.sku!r}{known}")
    if table.dtype not in sku.peaks:
        near = scenario_file.nearest(table.dtype, tuple(sku.peaks))
        raise UsageError(f"{path}.dtype: {sku.name} has no peak for {table.dtype!r}{near}")
    return sku


def _xid(path: str, table: XidTable, cluster: ClusterTable, duration_ms: int) -> Xid:
    at_ms = scenario_file.duration_ms(f"{path}.at", table.at)
    if at_ms >= duration_ms:
        raise UsageError(f"{path}.at: {table.at} is after the scenario's end")
    for key, index, count in (
        ("node", table.node, cluster.nodes),
        ("card", table.card, cluster.cards_per_node),
    ):
        if not 0 <= index < count:
            raise UsageError(f"{path}.{key}: {index} does not exist; the last one is {count - 1}")
    if table.code < 1:
        raise UsageError(f"{path}.code: {table.code} is no Xid")
    return Xid(at_ms=at_ms, node=table.node, card=table.card, code=table.code)


def _timelines(
    table: ClusterTable,
    resolved: list[Phase],
    xids: tuple[Xid, ...],
    free: CardState,
    duration_ms: int,
) -> tuple[tuple[tuple[Segment, ...], ...], ...]:
    """Per node, per card. Cards under the same phases share one tuple."""
    known: dict[tuple[int, ...], tuple[Segment, ...]] = {}
    failures: dict[tuple[int, int], list[int]] = {}
    for xid in xids:
        if xid.code in FATAL_XIDS:
            failures.setdefault((xid.node, xid.card), []).append(xid.at_ms)
    timelines = []
    for node in range(table.nodes):
        on_node = [i for i, phase in enumerate(resolved) if node in phase.nodes]
        cards = []
        for card in range(table.cards_per_node):
            chosen = tuple(i for i in on_node if card in resolved[i].cards)
            if chosen not in known:
                known[chosen] = phases.tile([resolved[i] for i in chosen], free, duration_ms)
            segments = known[chosen]
            for at_ms in sorted(failures.get((node, card), ())):
                segments = phases.fail(segments, at_ms)
            cards.append(segments)
        timelines.append(tuple(cards))
    return tuple(timelines)

"""The inventory of record against what reports. Pure.

| word | means |
|---|---|
| missing | in service or onboarding, and nothing reports from there |
| unknown | reports, and is not in the inventory, or no more |
| moved | its serial number is that of another slot in the inventory |
| sku, serial | another card sits there than the inventory says |
| arrived | expected, and there |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flopwatch_collector.inventory import Slot
from flopwatch_collector.inventory_file import Place, place
from flopwatch_proto.rows import SlotState

OWNED = (SlotState.IN_SERVICE, SlotState.ONBOARDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One slot that is not as the inventory says. Attributes: kind: the word; text: in words."""

    cluster: str
    node: str
    slot: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCount:
    """Cards of a node: owned by the inventory's word, and reporting."""

    cluster: str
    node: str
    owned: int
    reporting: int


def at(slots: Iterable[Slot], now_unix_ms: int) -> dict[Place, Slot]:
    """The slots as they stand at a moment, by place; retired ones are no part of it."""
    return {
        place(slot): slot
        for slot in slots
        if slot.from_unix_ms <= now_unix_ms
        and (slot.to_unix_ms is None or slot.to_unix_ms > now_unix_ms)
        and slot.state is not SlotState.RETIRED
    }


def diff(
    slots: Mapping[Place, Slot], reported: Sequence[Mapping[str, Any]]
) -> tuple[list[Difference], list[NodeCount]]:
    """Return what differs, by place, and every node whose numbers do.

    Args:
        slots: as they stand now.
        reported: cluster, node, slot, sku and serial (None: not known) of every card that reports.
    """
    seen = {(r["cluster"], r["node"], r["slot"]): r for r in reported}
    homes = {(s.cluster, s.serial): s for s in slots.values() if s.serial}
    found: list[Difference] = []
    for where in sorted(slots.keys() | seen.keys()):
        for kind, text in _of_place(slots.get(where), seen.get(where), homes):
            cluster, node, slot = where
            found.append(Difference(cluster=cluster, node=node, slot=slot, kind=kind, text=text))
    owned = _counts(w for w, s in slots.items() if s.state in OWNED)
    reporting = _counts(seen)
    counts = [
        NodeCount(cluster=c, node=n, owned=owned.get((c, n), 0), reporting=reporting.get((c, n), 0))
        for c, n in sorted(owned.keys() | reporting.keys())
        if owned.get((c, n), 0) != reporting.get((c, n), 0)
    ]
    return found, counts


def _of_place(
    slot: Slot | None, card: Mapping[str, Any] | None, homes: Mapping[tuple[str, str], Slot]
) -> Iterable[tuple[str, str]]:
    if card is None:
        if slot is not None and slot.state in OWNED:
            yield "missing", f"{slot.state.name.lower()}, and does not report"
        return
    serial, sku = card["serial"] or "", card["sku"] or ""
    home = homes.get((card["cluster"], serial))
    moved = home is not None and (slot is None or place(home) != place(slot))
    if moved and home is not None:
        yield "moved", f"serial {serial} belongs to {home.node} {home.slot}"
    elif slot is None:
        yield "unknown", f"{sku or 'a card'} reports and is not in the inventory"
    if slot is None:
        return
    if slot.state is SlotState.EXPECTED:
        yield "arrived", "expected, and reports"
    if slot.sku and sku and slot.sku != sku:
        yield "sku", f"{sku}, the inventory says {slot.sku}"
    if slot.serial and serial and slot.serial != serial and not moved:
        yield "serial", f"{serial}, the inventory says {slot.serial}"


def _counts(places: Iterable[Place]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for cluster, node, _ in places:
        counts[cluster, node] = counts.get((cluster, node), 0) + 1
    return counts

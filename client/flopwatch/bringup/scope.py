"""A rack is judged by its nodes' acceptances, a pod by its racks. Pure.

Each stops at its first failed stage: what is broken in the small is not looked for in the large.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from flopwatch.bringup.stages import Check, Stage, failed, passed
from flopwatch_collector.ceilings import BELOW_MIN
from flopwatch_collector.inventory import Slot

Place = tuple[str, str]
"""(node, slot)."""

SUSPECTS_SHOWN: Final = 50


def rack(
    slots: Sequence[Slot],
    accepted: Iterable[Mapping[str, Any]],
    ceilings: Mapping[str, Any],
    *,
    now_unix_ms: int,
    age_ms_max: int,
) -> list[Stage]:
    """Return the stages of a rack, up to the first that failed.

    Args:
        slots: its slots in the inventory.
        accepted: ``bringups`` of `/api/v1/bringups`.
        ceilings: answer of `/api/v1/ceilings`, of its cluster.
        age_ms_max: an acceptance of longer ago does not count.
    """
    by_place = {(record["node"], record["slot"]): record for record in accepted}
    mine = {(slot.node, slot.slot): by_place.get((slot.node, slot.slot)) for slot in slots}
    looks: tuple[tuple[str, Callable[[], list[Check]]], ...] = (
        ("nodes", lambda: [_accepted(p, r, now_unix_ms, age_ms_max) for p, r in mine.items()]),
        ("alike", lambda: _alike(slots, mine)),
        ("ranked", lambda: _ranked(mine, ceilings)),
    )
    stages: list[Stage] = []
    for name, look in looks:
        stages.append(Stage(name=name, checks=tuple(look()), ended_unix_ms=now_unix_ms))
        if stages[-1].outcome == "fail":
            break
    return stages


def level(
    racks: Mapping[str, Sequence[Slot]], ceilings: Mapping[str, Any], now_unix_ms: int
) -> Stage:
    """Return the stage that compares a pod's racks: what a rack shares (power, air) slows all its cards."""
    rack_of = {(s.node, s.slot): name for name, slots in racks.items() for s in slots}
    checks: list[Check] = []
    for fleet in ceilings["fleets"]:
        if fleet["unit"] != "flop/s" or fleet["simulated"]:
            continue
        values: dict[str, list[float]] = {}
        for card in fleet["cards_list"]:
            name = rack_of.get((card["node"], card["slot"]))
            if name is not None:
                values.setdefault(name, []).append(card["value"])
        if len(values) < 2:
            continue
        medians = {name: statistics.median(found) for name, found in values.items()}
        middle = statistics.median(medians.values())
        load = "sustained" if fleet["sustained"] else "burst"
        for name, median in sorted(medians.items()):
            behind = 1.0 - median / middle
            text = f"rack {name}: {fleet['kind']} {fleet['dtype'] or ''} {load} "
            text += f"{-100 * behind:+.1f} % of the racks' median"
            checks.append(failed(text) if behind >= BELOW_MIN else passed(text))
    nothing = passed("one rack, or nothing measured alike: nothing to compare")
    return Stage(name="level", checks=tuple(checks) or (nothing,), ended_unix_ms=now_unix_ms)


def label(place: Place) -> str:
    """Return a card's name in a scope."""
    return f"{place[0]} {place[1]}"


def _accepted(
    place: Place, record: Mapping[str, Any] | None, now_unix_ms: int, age_ms_max: int
) -> Check:
    card = label(place)
    if record is None:
        return failed("no acceptance: run `flopwatch bringup node` there", card)
    if record["simulated"]:
        return failed("its acceptance is simulated", card)
    age_ms = now_unix_ms - _unix_ms(record["start"])
    if age_ms > age_ms_max:
        return failed(f"its acceptance is {age_ms / 86_400_000:.1f} days old", card)
    if record["outcome"] != "ok":
        return failed(record["reason"] or str(record["outcome"]), card)
    return passed("accepted", card)


def _alike(slots: Sequence[Slot], records: Mapping[Place, Mapping[str, Any] | None]) -> list[Check]:
    """Return cards that are another SKU than the inventory says, or run another driver than most."""
    checks: list[Check] = []
    drivers = [r["driver_version"] for r in records.values() if r is not None]
    usual = statistics.mode(drivers)
    for slot in slots:
        place = (slot.node, slot.slot)
        record = records[place]
        if record is None:
            continue
        if slot.sku and record["sku"] != slot.sku:
            text = f"is {record['sku']!r}, and the inventory says {slot.sku!r}"
            checks.append(failed(text, label(place)))
        elif record["driver_version"] != usual:
            text = f"driver {record['driver_version']}, and the rack has {usual}"
            checks.append(failed(text, label(place)))
    return checks or [passed(f"one SKU, driver {usual or 'not known'}")]


def _ranked(
    records: Mapping[Place, Mapping[str, Any] | None], ceilings: Mapping[str, Any]
) -> list[Check]:
    suspects = [
        failed(f"{one['what']}: {one['text']}", label((one["node"], one["slot"])))
        for one in ceilings["suspects"]
        if not one["simulated"] and _is(one, records.get((one["node"], one["slot"])))
    ]
    return suspects[:SUSPECTS_SHOWN] or [passed("no card stands out of its fleet")]


def _is(one: Mapping[str, Any], record: Mapping[str, Any] | None) -> bool:
    """Whether a suspect is the card that was accepted, and not the one in its place before."""
    return record is not None and (one["serial"] or None) == (record["serial"] or None)


def _unix_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000)

"""What happened between two readings, to a card and to its parts. Pure.

The parts of a card are its MIG devices, under their names, and under None what is left of it beside those
that shares name. A card that is held as a whole has no such rest: its own values stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from flopwatch_agent.reading import Reading, Share
from flopwatch_agent.sums import Increment, increment, probing
from flopwatch_proto.codec import Value

CARD: Final = ""
"""The whole card, among the parts."""


def between(
    before: Reading, now: Reading, shares: Sequence[Share], span_ms: int, elapsed_seconds: float
) -> dict[str | None, Increment]:
    """Return what each part did; nothing is known when the driver was silent at either end.

    Args:
        shares: who held the card meanwhile.
        span_ms, elapsed_seconds: wall time and time that really passed, as in `increment`.
    """
    old, new = before.device, now.device
    named: set[str | None] = {s.instance for s in shares if s.instance in old.instances}
    parts = (CARD, *old.instances, *((None,) if named else ()))
    same = old is new or (old.uuid, old.serial, old.sku) == (new.uuid, new.serial, new.sku)
    # Another card answers, or nobody watched at the one end: no counter says what was done meanwhile.
    if not (before.alive and now.alive and same):
        return dict.fromkeys(parts, Increment())
    steps = {
        part: increment(
            before.values, _values(now, part, named), span_ms, elapsed_seconds, now.method
        )
        for part in parts
    }
    if now.probed_ns is not None and now.probed_ns > before.boottime_ns:
        return {part: probing(step, span_ms) for part, step in steps.items()}
    return steps


def last_said(reading: Reading, instance: str | None) -> Mapping[str, Value]:
    """Return the values of the card, or of the MIG device that a share names."""
    known = instance is not None and instance in reading.device.instances
    return _of_instance(reading, instance or "") if known else reading.values


def _values(reading: Reading, part: str | None, named: set[str | None]) -> Mapping[str, Value]:
    if part == CARD:
        return reading.values
    return _beside(reading, named) if part is None else _of_instance(reading, part)


def _of_instance(reading: Reading, instance: str) -> Mapping[str, Value]:
    """Return the values of a MIG device: its own, and the card's but for activity."""
    return {**_shared(reading), **reading.instances.get(instance, {})}


def _beside(reading: Reading, named: set[str | None]) -> Mapping[str, Value]:
    """Return the values of what is left: activity is that of the other devices, uncut slices are idle."""
    device = reading.device
    weights = dict(zip(device.instances, device.instance_weights, strict=False))
    others = [name for name in weights if name not in named]
    left = 1.0 - sum(weight for name, weight in weights.items() if name in named)
    values = _shared(reading)
    for field in next(iter(reading.instances.values()), {}):
        if not field.endswith("_ratio"):
            continue
        said = {n: reading.instances.get(n, {}).get(field) for n in others or weights}
        known = {n: value for n, value in said.items() if isinstance(value, float)}
        if len(known) == len(said) and left > 0.0:
            values[field] = sum(weights[n] * known[n] for n in others) / left
    return values


def _shared(reading: Reading) -> dict[str, Value]:
    return {n: v for n, v in reading.values.items() if not n.endswith("_ratio")}

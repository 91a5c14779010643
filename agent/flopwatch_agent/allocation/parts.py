"""How a card is divided among its holders. Pure; the parts' weights sum to 1.

- Holders of the whole card share it by their weights: one that is time-sliced counts once.
- Holders of MIG devices have each device's slices of the card. What nobody holds is free, device by
  device, and so is what the card was not cut into; a job that holds the card beside them has that rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flopwatch_agent.allocation.holders import Held, Holder
from flopwatch_agent.reading import Device

_WEIGHT_MIN: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a card. Attributes: holder: None where it is free."""

    holder: Holder | None
    instance: str | None
    weight: float


def parts(held: Sequence[Held], device: Device) -> tuple[Part, ...]:
    """Return the parts of a card, one per (job, instance)."""
    asked = _by_job(held)
    cut = _slices(device)
    total: dict[str | None, float] = {}
    for (_, instance), (_, weight) in asked.items():
        total[instance] = total.get(instance, 0.0) + weight
    named = sum(cut[instance] for instance in total if instance is not None)
    rest = 1.0 - named
    if total.keys() == {None}:
        cut, rest = {}, 1.0
    result = []
    for (_, instance), (holder, weight) in asked.items():
        size = rest if instance is None else cut[instance]
        result.append(
            Part(holder=holder, instance=instance, weight=size * weight / total[instance])
        )
    if None not in total:
        free = {name: size for name, size in cut.items() if name not in total}
        result += (Part(holder=None, instance=name, weight=size) for name, size in free.items())
        rest -= sum(free.values())
        result.append(Part(holder=None, instance=None, weight=rest))
    return _whole([part for part in result if part.weight >= _WEIGHT_MIN])


def _by_job(held: Sequence[Held]) -> dict[tuple[str, str | None], tuple[Holder, float]]:
    """Return holders by (job, instance), with the weight of all its claims."""
    result: dict[tuple[str, str | None], tuple[Holder, float]] = {}
    for holder, instance in held:
        key = (holder.job, instance)
        before = result.get(key, (holder, 0.0))
        result[key] = (before[0], before[1] + holder.weight)
    return result


def _slices(device: Device) -> Mapping[str, float]:
    """Return the part of the card that each MIG device is; together at most 1."""
    weights = device.instance_weights
    if len(weights) != len(device.instances) or not all(weight > 0.0 for weight in weights):
        weights = tuple(1.0 / len(device.instances) for _ in device.instances)
    scale = max(1.0, sum(weights))
    return {name: w / scale for name, w in zip(device.instances, weights, strict=True)}


def _whole(found: list[Part]) -> tuple[Part, ...]:
    total = sum(part.weight for part in found)
    return tuple(
        Part(holder=part.holder, instance=part.instance, weight=part.weight / total)
        for part in found
    )

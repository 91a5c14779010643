"""The shares of a card: made whole, compared, and cut to whole milliseconds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final

from flopwatch_agent.reading import Device, Reading, Share
from flopwatch_proto.rows import Bucket

_FREE: Final = (Share(bucket=Bucket.FREE),)
identity = attrgetter(
    *("bucket", "weight", "job", "team", "user", "workload_class", "phase", "dtype"),
    *("convention", "source", "rogue", "resident", "instance"),
)

Holder = tuple[str | None, str | None]
"""(job, instance): what tells the shares of a card apart."""

Counters = Mapping[str, float]
"""Column of the row → the job's counter of it."""

Finals = Mapping[Holder, Counters]
"""(job, instance) → the last value of the counters of a job whose share has just ended."""


def declared(
    held: Sequence[Share], now: Sequence[Share], finals: Finals
) -> dict[Holder, dict[str, float]]:
    """Return what jobs counted between two readings, by (job, instance) and column."""
    result: dict[Holder, dict[str, float]] = {}
    for share in held:
        start = _counters(share)
        if start is None:
            continue
        key = (share.job, share.instance)
        ends = dict(finals.get(key, {}))
        for other in now:
            if (other.job, other.instance) == key:
                ends.update(_counters(other) or {})
        # A column that was not there yet began at zero. A fall is a restart of the counter; 0 ≤ also
        # refuses what is not a number.
        counted = {column: end - start.get(column, 0.0) for column, end in ends.items()}
        result[key] = {c: amount for c, amount in counted.items() if 0.0 <= amount < float("inf")}
    return result


def _counters(share: Share) -> Counters | None:
    if share.model_flops_total is None:
        return share.counters
    return {**(share.counters or {}), "model_flops": share.model_flops_total}


def whole(shares: Sequence[Share], device: Device) -> tuple[Share, ...]:
    """Return the shares of a whole card: weights sum to 1, (job, instance) is unique."""
    if device.instance_weights:
        weights = zip(device.instances, device.instance_weights, strict=True)
        shares = _by_instance(shares, dict(weights))
    if len(shares) == 1 and shares[0].weight == 1.0:
        return tuple(shares)
    held = [share for share in shares if share.weight > 0.0]
    if not held:
        return _FREE
    total = sum(share.weight for share in held)
    if total > 1.0:
        held = [replace(share, weight=share.weight / total) for share in held]
    elif total < 1.0 - 1e-6:
        held.append(Share(bucket=Bucket.FREE, weight=1.0 - total, source=held[0].source))
    return tuple(_distinct(held))


def confirmed(shares: tuple[Share, ...], reading: Reading) -> tuple[Share, ...]:
    """Return who held the card until a reading: without those whose new processes it does not show."""
    if not any(share.waits_for for share in shares):
        return shares
    there = {process.pid for process in reading.processes or ()}
    held = [s for s in shares if not s.waits_for or not s.waits_for.isdisjoint(there)]
    if len(held) == len(shares):
        return shares
    if not held:
        return whole(shares[0].otherwise, reading.device)
    total = sum(share.weight for share in held)
    return tuple(replace(share, weight=share.weight / total) for share in held)


def _by_instance(shares: Sequence[Share], weights: Mapping[str, float]) -> Sequence[Share]:
    """Return the shares of a card that is cut up, with the weights of its MIG devices.

    Shares of the same device divide it. What holds no device shares what is left; where nothing does,
    every device left has a FREE share. Without any device named, a job holds the card as a whole.
    """
    held = [share for share in shares if share.weight > 0.0]
    named = [share for share in held if share.instance in weights]
    others = [s for s in held if s.instance not in weights and s.bucket is not Bucket.FREE]
    if others and not named:
        return shares
    asked: dict[str | None, float] = {}
    for share in named:
        asked[share.instance] = asked.get(share.instance, 0.0) + share.weight
    parts = [
        replace(share, weight=weights[share.instance or ""] * share.weight / asked[share.instance])
        for share in named
    ]
    if others:
        left = max(0.0, 1.0 - sum(share.weight for share in parts))
        total = sum(share.weight for share in others)
        return [*parts, *(replace(s, weight=left * s.weight / total) for s in others)]
    source = shares[0].source if shares else None
    return parts + [
        Share(bucket=Bucket.FREE, weight=weight, source=source, instance=name, resident=False)
        for name, weight in weights.items()
        if name not in asked
    ]


def _distinct(shares: Sequence[Share]) -> list[Share]:
    """Return the shares with instances numbered where (job, instance) repeats: it is a row's key."""
    seen: dict[Holder, int] = {}
    result = []
    for share in shares:
        key = (share.job, share.instance)
        count = seen[key] = seen.get(key, 0) + 1
        if count > 1:
            share = replace(share, instance=f"{share.instance or ''}#{count}")
        result.append(share)
    return result


def split(total_ms: int, weights: Sequence[float]) -> list[int]:
    """Return whole parts of a whole, by weight; the largest remainders round up."""
    if len(weights) == 1:
        return [total_ms]
    scale = total_ms / sum(weights)
    exact = [weight * scale for weight in weights]
    parts = [int(share) for share in exact]
    left = total_ms - sum(parts)
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[:left]:
        parts[i] += 1
    return parts

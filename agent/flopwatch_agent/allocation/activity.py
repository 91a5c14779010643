"""Whether a held card works: the one place that tells ACTIVE from IDLE_ALLOC, for every source.

- Without a process a held card is IDLE_ALLOC at once.
- With one it is IDLE_ALLOC after its SMs stood at 0 for `IDLE_MS_MIN`, until they move. Where the card has
  no SM counter, NVML's utilisation stands in; where neither is known the card stays ACTIVE: not known is
  not idle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flopwatch_agent.reading import Reading
from flopwatch_proto.rows import Absence, Bucket

IDLE_MS_MIN: Final = 30 * 60_000
IDLE_RATIO_MAX: Final = 5e-4
"""Below this a share of time reads 0.0 %; a context that only sits there shows less."""


class Activity:
    """What is remembered of the SMs: slot → MIG device (None: the card) → boottime since when at 0."""

    def __init__(self) -> None:
        self._zero_since_ns: dict[str, dict[str | None, int]] = {}

    def buckets(
        self, reading: Reading, present: Mapping[str | None, bool]
    ) -> dict[str | None, Bucket]:
        """Return the buckets of what is held of a card from a reading on. Called with every reading of it.

        Args:
            present: MIG device held (None: the card) → a process of a holder is there, or the driver
                cannot list processes.
        """
        before = self._zero_since_ns.get(reading.device.slot, {})
        since: dict[str | None, int] = {}
        result: dict[str | None, Bucket] = {}
        for instance, here in present.items():
            result[instance] = Bucket.ACTIVE if here else Bucket.IDLE_ALLOC
            active = _activity(reading, instance)
            if not here or active is None or active > IDLE_RATIO_MAX:
                continue
            since[instance] = before.get(instance, reading.boottime_ns)
            if reading.boottime_ns - since[instance] >= IDLE_MS_MIN * 1_000_000:
                result[instance] = Bucket.IDLE_ALLOC
        self._zero_since_ns[reading.device.slot] = since
        return result


def _activity(reading: Reading, instance: str | None) -> float | None:
    """Return how busy the SMs are: the MIG device's own where it has them, else the card's."""
    own = reading.instances.get(instance, {}) if instance is not None else {}
    for name in ("sm_active_ratio", "gpu_utilization_ratio"):
        value = own.get(name, reading.values.get(name))
        if value is not None and not isinstance(value, Absence):
            return float(value)
    return None

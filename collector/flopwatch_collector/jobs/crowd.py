"""A job's cards as a crowd: what each does beside its peers, as numbers that can stand out. Pure."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from flopwatch_collector.jobs.lag import (
    Curve,
    Fit,
    Floats,
    Ints,
    curve_of,
    fit,
    node_medians,
)
from flopwatch_collector.jobs.period import step_period

CARDS_MIN: Final = 16
NODES_MIN: Final = 2
"""Fewer are no crowd to stand out from."""
CURVE_NODES_MIN: Final = 4
"""Fewer are read at too few moments for a curve of the job, and too few to compare as nodes."""
READINGS_MIN: Final = 20
FINE_S: Final = 2.5
"""Lags are looked for where readings are at most this far apart."""
IDLE_RATIO: Final = 0.25
PLACE_CARDS_MIN: Final = 6
LINKS: Final = {
    "nvlink_tx_bytes_per_second": "NVLink",
    "pcie_tx_bytes_per_second": "PCIe",
}
THROTTLES: Final = (
    "power",
    "thermal_sw",
    "thermal_hw",
    "power_brake",
    "sync_boost",
    "application_clock",
)
FIELDS: Final = (
    "sm_active_ratio",
    "tensor_active_ratio",
    "sm_clock_mhz",
    "power_watts",
    *LINKS,
    *(f"throttled_{reason}_seconds_total" for reason in THROTTLES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Readings of a job's cards. Attributes: taken_s, and each of fields, cards × readings; NaN unknown."""

    nodes: Sequence[str]
    slots: Sequence[str]
    taken_s: Floats
    fields: Mapping[str, Floats]


@dataclass(slots=True, kw_only=True)
class Crowd:
    """The cards that work, and what they do beside each other.

    Attributes:
        node: of each card, its index in ``names``; place: which card of its node it is.
        curve: of tensor activity; None where readings are too far apart for one.
    """

    names: Sequence[str]
    slots: Sequence[str]
    node: Ints
    place: Ints
    every_s: float
    fields: Mapping[str, Floats]
    curve: Curve | None
    step_s: float | None
    taken_s: Floats = field(repr=False)

    def mean(self, name: str) -> Floats:
        """Return each card's mean of a field; NaN where it has none."""
        values = self.fields.get(name)
        if values is None:
            return np.full(len(self.node), np.nan)
        return known_mean(values)

    def levelled(self, values: Floats) -> Floats:
        """Return values less the median of the cards at the same place of all nodes.

        A node's far NUMA half is slower by its build, on every node.
        """
        made = values.copy()
        for place in range(int(self.place.max()) + 1):
            here = self.place == place
            of = here if here.sum() >= PLACE_CARDS_MIN else np.ones_like(here)
            made[here] -= median(values[of])
        return made

    def beside_mates(self, name: str, curve: Curve) -> Fit:
        """Return how each card differs from the median of its node's cards."""
        values = self.fields[name]
        return fit(values - curve.own[self.node], curve.others[self.node], curve.slope[self.node])

    def curve_of(self, name: str) -> Curve:
        """Return the curve of a field."""
        return curve_of(self.taken_s, node_medians(self.fields[name], self.node), self.every_s)


def crowd_of(counters: Counters) -> Crowd | str:
    """Return the crowd, or why there is none."""
    sm = counters.fields.get("sm_active_ratio")
    tensor = counters.fields.get("tensor_active_ratio")
    if sm is None or tensor is None:
        return "its cards have no counters of SM and tensor activity"
    active = known_mean(sm)
    with np.errstate(invalid="ignore"):
        works = active > IDLE_RATIO * median(active)
    works &= (~np.isnan(sm) & ~np.isnan(counters.taken_s)).sum(1) >= READINGS_MIN
    names, node = np.unique(np.array(counters.nodes)[works], return_inverse=True)
    if works.sum() < CARDS_MIN or len(names) < NODES_MIN:
        return (
            f"{int(works.sum())} working cards on {len(names)} nodes have {READINGS_MIN} readings "
            f"or more; {CARDS_MIN} on {NODES_MIN} are needed"
        )
    slots = np.array(counters.slots)[works]
    taken = counters.taken_s[works]
    every_s = float(np.nanmedian(np.diff(taken, axis=1)))
    fields = {name: values[works] for name, values in counters.fields.items()}
    first = np.stack([taken[node == n][0] for n in range(len(names))])
    curve = step = None
    if every_s <= FINE_S and len(names) >= CURVE_NODES_MIN:
        curve = curve_of(first, node_medians(fields["tensor_active_ratio"], node), every_s)
        rhythm = step_period(curve.whole.tolist(), curve.grid_s)
        step = None if rhythm is None else rhythm[0]
    return Crowd(
        names=names.tolist(),
        slots=slots.tolist(),
        node=node.astype(np.int64),
        place=_places(node, slots),
        every_s=every_s,
        fields=fields,
        curve=curve,
        step_s=step,
        taken_s=first,
    )


@dataclass(frozen=True, slots=True)
class Outlier:
    """The value that stands out most: where, by how much, in spreads, and beside the next one."""

    index: int
    deviation: float
    spreads: float
    next_ratio: float


def outlier(values: Floats, group: Ints, floor: float) -> Outlier | None:
    """Return the highest value against the spread of all; None where too few are known.

    The spread is of the other groups: the larger of the median's and the ninth decile's, so that heavy
    tails count, and at least ``floor``. The next one is the highest of them: neighbours of a culprit may
    follow it.
    """
    known = ~np.isnan(values)
    if known.sum() < CURVE_NODES_MIN:
        return None
    centred = np.where(known, values - median(values), -np.inf)
    index = int(np.argmax(centred))
    apart = group != group[index]
    others = centred[known & apart]
    size = np.abs(others)
    if not len(size):
        return None
    spread = max(1.4826 * float(np.median(size)), float(np.quantile(size, 0.9)) / 1.645, floor)
    following = max(float(others.max(initial=-np.inf)), 0.5 * spread)
    deviation = float(centred[index])
    return Outlier(index, deviation, deviation / spread, deviation / following)


def known_mean(values: Floats) -> Floats:
    """Return means over rows of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(1) / np.where(count, count, np.nan))


def median(values: Floats) -> float:
    """Return the median of what is known; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmedian(values))


def _places(node: Ints, slots: np.ndarray[Any, Any]) -> Ints:
    """Return which card of its node each one is, by the order of slots."""
    made = np.zeros(len(node), np.int64)
    for n in range(int(node.max()) + 1):
        here = np.flatnonzero(node == n)
        made[here[np.argsort(slots[here])]] = np.arange(len(here))
    return made

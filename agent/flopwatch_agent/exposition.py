"""The cards for Prometheus, rendered from the newest readings when scraped.

- Every series of a card has three labels: slot, uuid, sku. Who holds it is `flopwatch_card_allocation_info`
  alone, whose value is the share's weight: multiplied with it, a card's watts are split between its jobs
  and add up. Its labels keep clear of ``job`` and ``instance``, which Prometheus gives to targets.
- A value that is not known has no sample; neither has one of a card that does not answer, or whose
  reading is older than `STALE_SECONDS`. Jobs that ended and cards that went have none from then on.
- A gauge is the newest second and no mean since the last scrape; means over all of the time are in the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flopwatch_agent.dcgm_fields import DCGM_FIELDS, MIB_BYTES
from flopwatch_agent.estimate import Estimate, estimate
from flopwatch_agent.newest import Newest, Seen
from flopwatch_agent.reading import FIELDS
from flopwatch_proto.rows import Absence

SHARES_MAX: Final = 64
TEXT_MAX: Final = 200
_CARD: Final = ("slot", "uuid", "sku")
_HOLDER: Final = {
    "job_id": "job",
    "team": "team",
    "user": "user",
    "workload_class": "workload_class",
    "source": "source",
    "mig": "instance",
}
"""Label → attribute of a share."""

_DCGM: Final = ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname")

_Family = GaugeMetricFamily | CounterMetricFamily
_ESTIMATES: Final[dict[str, tuple[str, Callable[[Estimate], float | None]]]] = {
    "hfu_ratio": ("What the tensor pipes did, of the dense peak.", lambda e: e.hfu),
    "hfu_lo_ratio": ("What the tensor pipes did, of the dense peak: least.", lambda e: e.hfu_lo),
    "hfu_hi_ratio": ("What the tensor pipes did, of the dense peak: most.", lambda e: e.hfu_hi),
    "mfu_ratio": ("Model FLOPs declared in the last minute, of the peak.", lambda e: e.mfu),
}


class CardGauges(Collector):
    """The cards under our names.

    Args:
        boottime_ns: the clock of the readings.
        dtype: of the cluster: whose peak a card is measured by where no job declares one.
    """

    def __init__(self, newest: Newest, boottime_ns: Callable[[], int], *, dtype: str) -> None:
        self._newest = newest
        self._boottime_ns = boottime_ns
        self._dtype = dtype

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also those without a sample."""
        now_ns = self._boottime_ns()
        fields = {name: _family(name) for name in FIELDS}
        estimates = {name: _gauge(name, text) for name, (text, _) in _ESTIMATES.items()}
        state = {
            "answers": _gauge("answers", "1 where the card's newest reading has an answer."),
            "age": _gauge("reading_age_seconds", "How old the card's newest reading is."),
            "coverage": _gauge(
                "coverage_ratio", "Readings answered in the last minute, of those expected."
            ),
            "processes": _gauge("processes", "Compute processes on the card."),
        }
        held = _gauge(
            "allocation_info",
            "Who holds the card; the value is the share's weight, and a card's weights sum to 1.",
            (*_CARD, "bucket", *_HOLDER, "rogue"),
        )
        for seen in self._newest.cards(now_ns):
            labels = _labels(seen)
            speaks = seen.speaks(now_ns)
            state["answers"].add_metric(labels, float(speaks))
            state["age"].add_metric(labels, seen.age_seconds(now_ns))
            state["coverage"].add_metric(labels, seen.coverage.ratio(now_ns))
            _add_holders(held, labels, seen)
            if not speaks:
                continue
            if seen.reading.processes is not None:
                state["processes"].add_metric(labels, len(seen.reading.processes))
            for name, value in _known(seen):
                if name in fields:
                    fields[name].add_metric(labels, value * _scale(name))
            found = estimate(seen.reading, seen.shares, self._dtype, seen.model_flops_per_second())
            for name, (_, value_of) in _ESTIMATES.items():
                if (ratio := value_of(found)) is not None:
                    estimates[name].add_metric(labels, ratio)
        yield from (*state.values(), held, *fields.values(), *estimates.values())


class DcgmNames(Collector):
    """The cards under dcgm-exporter's names and labels, so that its dashboards work.

    All are gauges, counters too: the exporter's names have no ``_total``, which a counter here would get.
    ``gpu`` is the place in the order of the slots. ``DCGM_FI_DEV_FB_FREE`` counts what the driver reserves.
    """

    def __init__(self, newest: Newest, boottime_ns: Callable[[], int], *, hostname: str) -> None:
        self._newest = newest
        self._boottime_ns = boottime_ns
        self._hostname = hostname

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also those without a sample."""
        now_ns = self._boottime_ns()
        families = {f.field: GaugeMetricFamily(f.name, f.help, labels=_DCGM) for f in DCGM_FIELDS}
        free = GaugeMetricFamily(
            "DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", labels=_DCGM
        )
        scales = {f.field: f.scale for f in DCGM_FIELDS}
        cards = (seen for seen in self._newest.cards(now_ns) if seen.reading.device.kind == "gpu")
        for index, seen in enumerate(cards):
            if not seen.speaks(now_ns):
                continue
            labels = self._labels(seen, index)
            values = dict(_known(seen))
            for name, family in families.items():
                if name in values:
                    family.add_metric(labels, values[name] / scales[name])
            if "memory_total_bytes" in values and "memory_used_bytes" in values:
                left = values["memory_total_bytes"] - values["memory_used_bytes"]
                free.add_metric(labels, left / MIB_BYTES)
        yield from (*families.values(), free)

    def _labels(self, seen: Seen, index: int) -> list[str]:
        device = seen.reading.device
        minor = index if device.minor is None else device.minor
        pci = f"0000{device.slot}" if len(device.slot) == len("0000:00:00.0") else device.slot
        return [
            str(index),
            device.uuid or "",
            pci.upper(),
            f"nvidia{minor}",
            device.sku or "",
            self._hostname,
        ]


def _labels(seen: Seen) -> list[str]:
    device = seen.reading.device
    return [device.slot, device.uuid or "", device.sku or ""]


def _known(seen: Seen) -> Iterator[tuple[str, float]]:
    for name, value in seen.reading.values.items():
        if not isinstance(value, Absence):
            yield name, value


def _add_holders(family: GaugeMetricFamily, labels: list[str], seen: Seen) -> None:
    """Add one sample per share; what is beyond the bound is one sample without a name."""
    left: dict[tuple[str, ...], float] = {}
    for i, share in enumerate(seen.shares):
        bucket = share.bucket.name
        if i < SHARES_MAX:
            texts = tuple((getattr(share, name) or "")[:TEXT_MAX] for name in _HOLDER.values())
        else:
            texts = ("",) * len(_HOLDER)
        key = (bucket, *texts, "true" if share.rogue else "false")
        left[key] = left.get(key, 0.0) + share.weight
    for key, weight in left.items():
        family.add_metric([*labels, *key], weight)


def _gauge(name: str, text: str, labels: tuple[str, ...] = _CARD) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flopwatch_card_{name}", text, labels=labels)


def _family(field: str) -> _Family:
    """Return the family of a reading's field: the same name, in base units."""
    text = f"{FIELDS[field][:1].upper()}{FIELDS[field][1:]}."
    name = field.replace("_mhz", "_hertz")
    if field.endswith("_total"):
        return CounterMetricFamily(f"flopwatch_card_{name}", text, labels=_CARD)
    return _gauge(name, text)


def _scale(field: str) -> float:
    return 1e6 if field.endswith("_mhz") else 1.0

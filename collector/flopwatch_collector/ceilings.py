"""What cards reach when measured, against their own fleet and their own past. Pure but for `read`.

A fleet is every card of one SKU that was probed alike: the same kind, dtype and load. A burst is never
compared with a sustained load, nor a simulated card with a real one. Of each card the newest result counts.

- ``z`` is robust: 0.6745 (x − median) / MAD, with a MAD of at least 0.1 % of the median, as cards of one
  batch may agree to the digit. Latencies count the other way round: more is worse.
- *slow*: z below −3.5 **and** 3 % or more below the median, in a fleet of five or more.
- *falling*: 3 % or more below the median of its own earlier results, of which there are three or more.
- *corrupt*: a screen found a wrong result in the window, whatever later screens say: it comes and goes.

Source of 0.6745 and 3.5: Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from flopwatch_collector.telemetry import Reader

FLEET_MIN: Final = 5
HISTORY_MIN: Final = 3
Z_MIN: Final = -3.5
BELOW_MIN: Final = 0.03
BINS: Final = 12
ROWS_MAX: Final = 100_000
_MAD_FLOOR: Final = 1e-3
_LOWER_IS_BETTER: Final = frozenset({"s"})
_UNRANKED: Final = frozenset({"sdc", "bringup"})

SLOW_ACTION: Final = (
    "Probe it again, sustained, beside a good card of its node and compare clock, power and temperature: "
    "a low clock is cooling or power, a low rate at the same clock is the card."
)
FALLING_ACTION: Final = (
    "Compare clock and temperature with its earlier results: dust, paste and fans first, "
    "then driver versions."
)
CORRUPT_ACTION: Final = (
    "Drain its node now, repeat the screen cold and warm, run the vendor's diagnostic and return the card: "
    "what it computed since the last good screen is in doubt."
)

Probe = Mapping[str, Any]
"""A row of table `probe`."""


def read(
    reader: Reader,
    since_unix_ms: int,
    *,
    cluster: str | None = None,
    sku: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, Any]]:
    """Return the probes since a moment, newest first, at most `ROWS_MAX`."""
    asked = {"cluster": cluster, "sku": sku, "dtype": dtype}
    where = "".join(f" AND {name} = {{{name}:String}}" for name, text in asked.items() if text)
    table = reader.query(
        "SELECT cluster, node, slot, start_unix_ms, kind, dtype, sku, device_uuid, serial, "
        "driver_version, sustained, median_flops, median_value, unit, outcome, reason, simulated "
        "FROM probe FINAL WHERE start_unix_ms >= {since:Int64} AND kind != 'bringup' "
        f"AND outcome IN ('', 'ok', 'corrupt'){where} "
        f"ORDER BY start_unix_ms DESC, cluster, node, slot LIMIT {ROWS_MAX}",
        {"since": since_unix_ms, **{name: text or "" for name, text in asked.items()}},
    )
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def bringups(reader: Reader, since_unix_ms: int, cluster: str) -> list[dict[str, Any]]:
    """Return the newest acceptance of each card of a cluster."""
    table = reader.query(
        "SELECT cluster, node, slot, start_unix_ms, sku, device_uuid, serial, driver_version, "
        "outcome, reason, result_json, simulated FROM probe FINAL "
        "WHERE start_unix_ms >= {since:Int64} AND kind = 'bringup' AND cluster = {cluster:String} "
        "ORDER BY node, slot, start_unix_ms DESC LIMIT 1 BY node, slot "
        f"LIMIT {ROWS_MAX}",
        {"since": since_unix_ms, "cluster": cluster},
    )
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def ceilings(probes: Iterable[Probe]) -> dict[str, Any]:
    """Return fleets with their ranked cards, and the cards that somebody should look at."""
    by_fleet: dict[tuple[Any, ...], dict[tuple[str, ...], list[Probe]]] = {}
    corrupt: dict[tuple[str, ...], list[Probe]] = {}
    for probe in probes:
        card = _card(probe)
        if probe["outcome"] == "corrupt":
            corrupt.setdefault(card, []).append(probe)
        elif probe["kind"] not in _UNRANKED and value_of(probe) > 0.0:
            by_fleet.setdefault(_fleet(probe), {}).setdefault(card, []).append(probe)
    fleets = [_ranked(key, cards) for key, cards in sorted(by_fleet.items())]
    named = [_named(found) for _, found in sorted(corrupt.items())]
    named += [
        _suspect(fleet, card)
        for fleet in fleets
        for card in fleet["cards_list"]
        if card["slow"] or card["falling"]
    ]
    return {"fleets": fleets, "suspects": named}


def value_of(probe: Probe) -> float:
    """Return what a probe measured, in its unit."""
    return float(probe["median_value"] if probe["unit"] else probe["median_flops"])


def below(value: float, median: float, unit: str) -> float:
    """Return how much worse than a median a value is, as a ratio of the median; negative: better."""
    worse = value - median if unit in _LOWER_IS_BETTER else median - value
    return worse / median


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, MAD, quartiles and a histogram of a fleet's values."""
    ordered = sorted(values)
    median = statistics.median(ordered)
    low, high = ordered[0], ordered[-1]
    if len(ordered) > 1:
        p25, _, p75 = statistics.quantiles(ordered, n=4, method="inclusive")
    else:
        p25 = p75 = median
    counts = [0] * BINS
    for value in ordered:
        counts[min(BINS - 1, int((value - low) / (high - low) * BINS)) if high > low else 0] += 1
    return {
        "cards": len(ordered),
        "median": median,
        "mad": statistics.median(abs(value - median) for value in ordered),
        "p25": p25,
        "p75": p75,
        "min": low,
        "max": high,
        "histogram": counts,
    }


def _ranked(
    key: tuple[Any, ...], cards: Mapping[tuple[str, ...], Sequence[Probe]]
) -> dict[str, Any]:
    sku, dtype, kind, sustained, unit, simulated = key
    histories = {card: sorted(of, key=_age) for card, of in cards.items()}
    newest = {card: value_of(of[0]) for card, of in histories.items()}
    fleet = spread(list(newest.values()))
    scale = max(fleet["mad"], _MAD_FLOOR * fleet["median"])
    ranked = []
    for card, of in histories.items():
        behind = below(newest[card], fleet["median"], unit)
        z = -0.6745 * behind * fleet["median"] / scale
        known = fleet["cards"] >= FLEET_MIN
        change = _change([value_of(probe) for probe in of], unit)
        ranked.append(
            _identity(of[0])
            | {
                "value": newest[card],
                "below": behind,
                "z": z if known else None,
                "slow": known and z < Z_MIN and behind >= BELOW_MIN,
                "change": change,
                "falling": change is not None and change <= -BELOW_MIN,
                "results": len(of),
                "history": [[probe["start_unix_ms"], value_of(probe)] for probe in of[:32]],
            }
        )
    ranked.sort(key=lambda card: (-card["below"], card["node"], card["slot"]))
    return {
        "sku": sku or None,
        "dtype": dtype or None,
        "kind": kind,
        "sustained": bool(sustained),
        "unit": unit or "flop/s",
        "simulated": bool(simulated),
        **fleet,
        "cards_list": ranked,
    }


def _change(values: Sequence[float], unit: str) -> float | None:
    """Return the newest against the median of a card's earlier results; negative: worse."""
    earlier = values[1:]
    if len(earlier) < HISTORY_MIN:
        return None
    return -below(values[0], statistics.median(earlier), unit)


def _identity(probe: Probe) -> dict[str, Any]:
    names = ("cluster", "node", "slot", "device_uuid", "serial", "driver_version")
    return {name: probe[name] or None for name in names} | {
        "measured_unix_ms": probe["start_unix_ms"]
    }


def _named(found: Sequence[Probe]) -> dict[str, Any]:
    newest = min(found, key=_age)
    return _identity(newest) | {
        "what": "corrupt",
        "sku": newest["sku"] or None,
        "kind": newest["kind"],
        "dtype": newest["dtype"] or None,
        "text": f"{len(found)} × {newest['reason'] or 'a result was not what it must be'}",
        "action": CORRUPT_ACTION,
        "simulated": bool(newest["simulated"]),
    }


def _suspect(fleet: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    load = "sustained" if fleet["sustained"] else "burst"
    what = f"{fleet['kind']} {fleet['dtype'] or ''}".strip() + f", {load}"
    if card["slow"]:
        text = f"{100 * card['below']:.1f} % below {fleet['cards']} cards alike ({what})"
    else:
        text = f"{-100 * card['change']:.1f} % below its own past ({what})"
    names = ("cluster", "node", "slot", "device_uuid", "serial", "driver_version")
    return {name: card[name] for name in (*names, "measured_unix_ms")} | {
        "what": "slow" if card["slow"] else "falling",
        "sku": fleet["sku"],
        "kind": fleet["kind"],
        "dtype": fleet["dtype"],
        "text": text,
        "action": SLOW_ACTION if card["slow"] else FALLING_ACTION,
        "simulated": fleet["simulated"],
    }


def _age(probe: Probe) -> int:
    return -int(probe["start_unix_ms"])


def _card(probe: Probe) -> tuple[str, ...]:
    """A card is its serial number or UUID; without either, its place."""
    if name := probe["serial"] or probe["device_uuid"]:
        return (name,)
    return probe["cluster"], probe["node"], probe["slot"]


def _fleet(probe: Probe) -> tuple[Any, ...]:
    return (
        probe["sku"],
        probe["dtype"],
        probe["kind"],
        bool(probe["sustained"]),
        probe["unit"],
        bool(probe["simulated"]),
    )

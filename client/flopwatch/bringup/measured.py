"""What results of probes mean for a card's acceptance. Pure.

Limits: a product reaches half of the datasheet, device memory 80 %; a card is within 5 % of its node's
median; a sustained load loses no more than 5 % from its first to its last stretch, and no time to heat. These
find what is broken; the fleet's own spread, at the last stage, finds what is slow.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flopwatch.bringup.stages import Check, failed, passed
from flopwatch.cli import number
from flopwatch_collector.ceilings import BELOW_MIN, FLEET_MIN, Z_MIN, below
from flopwatch_kernels.messages import ProbeResult

DATASHEET_MIN: Final = {"gemm": 0.5, "bandwidth": 0.8}
PEERS_MIN: Final = 4
PEER_BELOW_MAX: Final = 0.05
SAG_MAX: Final = 0.05
HEAT_RATIO_MAX: Final = 0.01

_UNITS: Final = {"bytes/s": (1e9, "GB/s"), "s": (1e-6, "µs")}


def shown(result: ProbeResult) -> str:
    """Return what a result says, in words."""
    if result.median_flops:
        text = f"{number.quantity(result.median_flops, 1e12)} TFLOP/s {result.dtype or ''}".rstrip()
    elif result.median_value is not None:
        scale, unit = _UNITS.get(result.unit or "", (1.0, result.unit or ""))
        text = f"{number.quantity(result.median_value, scale)} {unit}"
    else:
        text = "measured"
    of = result.of_datasheet
    return text if of is None else f"{text}, {number.percent(of)} % of the datasheet"


def value(result: ProbeResult) -> float | None:
    """Return the figure that cards are compared by."""
    return result.median_value if result.unit else result.median_flops


def judged(result: ProbeResult, card: str) -> Check:
    """Return what one result says of its card alone."""
    text = f"{result.kind}: {shown(result)}"
    if result.outcome == "corrupt":
        return failed(f"{result.kind}: {result.reason or 'a result is wrong'}", card)
    least = DATASHEET_MIN.get(result.kind)
    if least is not None and result.of_datasheet is not None and result.of_datasheet < least:
        return failed(f"{text}; at least {number.percent(least)} % is right", card)
    if not result.sustained:
        return passed(text, card)
    heat = sum(s for name, s in result.throttle_seconds.items() if "thermal" in name)
    if heat > HEAT_RATIO_MAX * result.seconds:
        return failed(f"{text}; slowed by heat for {heat:.1f} of {result.seconds:.0f} s", card)
    if len(result.moments) > 1 and result.device != "cpu":  # whose speed is also its other work's
        sag = 1.0 - result.moments[-1].flops / result.moments[0].flops
        if sag > SAG_MAX:
            return failed(f"{text}; fell by {100 * sag:.1f} % under load", card)
    hottest = result.temperature_celsius
    return passed(text + ("" if hottest is None else f", {hottest:.0f} °C"), card)


def beside_peers(results: Mapping[str, ProbeResult]) -> list[Check]:
    """Return the cards that are behind the others of their node."""
    values = {card: found for card, r in results.items() if (found := value(r))}
    if len(values) < PEERS_MIN:
        return []
    median = statistics.median(values.values())
    unit = next(iter(results.values())).unit or ""
    return [
        failed(f"{100 * behind:.1f} % behind the median of its node", card)
        for card, found in values.items()
        if (behind := below(found, median, unit)) > PEER_BELOW_MAX
    ]


def beside_fleet(
    results: Sequence[tuple[str, ProbeResult]], answer: Mapping[str, Any]
) -> list[Check]:
    """Return how cards stand in their SKU's fleet and against their own past, by `/api/v1/ceilings`."""
    checks = []
    for card, result in results:
        found = value(result)
        fleet = _fleet_of(result, answer["fleets"])
        if not found or fleet is None or fleet["cards"] < FLEET_MIN:
            continue
        load = "sustained" if result.sustained else "burst"
        unit = result.unit or ""
        behind = below(found, fleet["median"], unit)
        scale = max(fleet["mad"], 1e-3 * fleet["median"])
        slow = behind >= BELOW_MIN and -0.6745 * behind * fleet["median"] / scale < Z_MIN
        text = f"{result.kind} {load}: {_signed(-behind)} % of {fleet['cards']} cards alike"
        checks.append(failed(text, card) if slow else passed(text, card))
        past = [h[1] for c in fleet["cards_list"] if _is(c, result) for h in c["history"]]
        if len(past) >= 3 and (fell := below(found, statistics.median(past), unit)) >= BELOW_MIN:
            checks.append(failed(f"{result.kind} {load}: {_signed(-fell)} % of its own past", card))
    return checks


def _fleet_of(result: ProbeResult, fleets: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    wanted = (result.sku, result.dtype, result.kind, result.sustained, result.unit or "flop/s")
    for fleet in fleets:
        names = ("sku", "dtype", "kind", "sustained", "unit")
        if tuple(fleet[n] for n in names) == wanted and not fleet["simulated"]:
            return fleet
    return None


def _is(card: Mapping[str, Any], result: ProbeResult) -> bool:
    return bool(result.serial and card["serial"] == result.serial) or (
        card["device_uuid"] is not None
        and card["device_uuid"] == result.device.removeprefix("cuda:")
    )


def _signed(ratio: float) -> str:
    return f"{100 * ratio:+.1f}"

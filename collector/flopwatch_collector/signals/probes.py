"""Slow cards and cards whose probes failed: from the results of probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from flopwatch_collector import ceilings
from flopwatch_collector.signals import Answer, Found
from flopwatch_collector.telemetry import Reader

EVERY_S: Final = 300.0
SLOW_MS: Final = 30 * 86_400_000
FAILED_MS: Final = 7 * 86_400_000
_OUTCOMES: Final = ("", "ok", "failed", "corrupt")


class ProbeSignal:
    """Reads the results of probes."""

    name = "probes"
    every_s = EVERY_S

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read(self, now_unix_ms: int) -> Answer:
        """Return both rules of each cluster that was probed.

        Raises:
            FlopwatchError: the store did not answer.
        """
        slow = slow_cards(ceilings.read(self._reader, now_unix_ms - SLOW_MS))
        return {**slow, **failed_cards(_outcomes(self._reader, now_unix_ms - FAILED_MS))}


def slow_cards(probes: Iterable[Mapping[str, Any]]) -> Answer:
    """Which cards are slow, or falling. Pure."""
    found = ceilings.ceilings(probes)
    ranked: dict[str, set[str]] = {}
    for fleet in found["fleets"]:
        for card in fleet["cards_list"]:
            ranked.setdefault(card["cluster"], set()).add(_place(card))
    suspects: dict[str, set[str]] = {}
    for card in found["suspects"]:
        if card["what"] != "corrupt":
            suspects.setdefault(card["cluster"], set()).add(_place(card))
    return _answer("slow_card", ranked, suspects)


def failed_cards(outcomes: Iterable[Mapping[str, Any]]) -> Answer:
    """Which cards computed a wrong result, or failed their newest probe of a kind. Pure.

    Args:
        outcomes: newest outcome, and how many were corrupt, of each card and kind.
    """
    probed: dict[str, set[str]] = {}
    failed: dict[str, set[str]] = {}
    for record in outcomes:
        probed.setdefault(record["cluster"], set()).add(_place(record))
        if record["corrupt"] or record["newest"] == "failed":
            failed.setdefault(record["cluster"], set()).add(_place(record))
    return _answer("probe_failed", probed, failed)


def _outcomes(reader: Reader, since_unix_ms: int) -> list[dict[str, Any]]:
    table = reader.query(
        "SELECT cluster, node, slot, kind, argMax(outcome, start_unix_ms) AS newest, "
        "countIf(outcome = 'corrupt') AS corrupt FROM probe FINAL "
        "WHERE start_unix_ms >= {since:Int64} AND kind != 'bringup' "
        f"AND outcome IN {_OUTCOMES} GROUP BY cluster, node, slot, kind "
        f"ORDER BY cluster, node, slot LIMIT {ceilings.ROWS_MAX}",
        {"since": since_unix_ms},
    )
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def _answer(rule: str, all_cards: Mapping[str, set[str]], found: Mapping[str, set[str]]) -> Answer:
    return {
        (cluster, rule): Found(
            count=len(found.get(cluster, ())),
            whole=len(cards),
            kind="card",
            cards=dict.fromkeys(found.get(cluster, ()), 1.0),
        )
        for cluster, cards in all_cards.items()
    }


def _place(card: Mapping[str, Any]) -> str:
    return f"{card['node']}/{card['slot']}"

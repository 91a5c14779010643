"""Answers about clusters, the fleet and nodes, in the shapes of the HTTP API. Reads only.

Real and simulated clusters never share a sum: the fleet is the sum over real clusters, or over simulated
ones when only those exist. Processors (hosts without an accelerator) stand apart from cards and are
never part of a fleet's sum beside cards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Floats, Window
from flopwatch_collector.ledger.figures import figures
from flopwatch_collector.ledger.lines import OF_FIGURES
from flopwatch_collector.ledger.rework import lost_by_cluster
from flopwatch_collector.ledger.sheet import Sheet, joined
from flopwatch_collector.ledger.waterfall import dtype_ratios, waterfall
from flopwatch_collector.ledger.window import sheets_of_window
from flopwatch_collector.telemetry import Reader

STALE_MS: Final = 60_000
"""A window whose newest row ends this long before its own end is stale."""

Outages = Mapping[str, Sequence[Mapping[str, Any]]]
"""cluster → its outages, as the API shows them."""
NO_REFERENCES: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that has, or had, slots in service. device_kind: gpu, or cpu where it has no card."""

    name: str
    simulated: bool
    device_kind: str


def clusters(reader: Reader, window: Window) -> list[Cluster]:
    """Return the clusters with slots in service in the window, real ones first."""
    table = reader.query(
        "SELECT cluster, max(simulated) AS simulated, max(device_kind != 'cpu') AS cards "
        "FROM slot FINAL WHERE from_unix_ms < {end:Int64} "
        "AND (to_unix_ms = 0 OR to_unix_ms > {start:Int64}) GROUP BY cluster",
        {"start": window.start, "end": window.end},
    )
    found = [
        Cluster(
            name=r["cluster"],
            simulated=bool(r["simulated"]),
            device_kind="gpu" if r["cards"] else "cpu",
        )
        for r in table.to_pylist()
    ]
    return sorted(found, key=lambda c: (c.simulated, c.name))


def fleet(
    reader: Reader,
    window: Window,
    now_unix_ms: int,
    outages: Outages,
    reference_dtypes: Mapping[str, str] = NO_REFERENCES,
) -> dict[str, Any]:
    """Return `/api/v1/fleet`: every cluster, and the fleet over the ones that may be summed.

    Args:
        reference_dtypes: cluster → dtype whose peak its waterfall is of; the others are of the rows' own.
    """
    found = clusters(reader, window)
    seen = _seen(reader, found, window, now_unix_ms, reference_dtypes)
    shown = _subjects(reader, found, seen, window, outages)
    summed = _summed(found)
    whole = _together([seen[c.name] for c in summed])
    entries = [s for s in shown if s["name"] in {c.name for c in summed}]
    return {
        **_window(window),
        "simulated": bool(summed) and all(c.simulated for c in summed),
        "clusters": shown,
        "fleet": {
            **_worst(entries),
            **_sums(whole, window),
            "outages": [o for entry in entries for o in entry["outages"]],
        },
    }


def cluster(
    reader: Reader,
    name: str,
    window: Window,
    now_unix_ms: int,
    outages: Outages,
    reference_dtypes: Mapping[str, str] = NO_REFERENCES,
) -> dict[str, Any] | None:
    """Return `/api/v1/clusters/{name}`; None for a cluster without slots in the window."""
    for found in clusters(reader, window):
        if found.name == name:
            seen = _seen(reader, [found], window, now_unix_ms, reference_dtypes)
            [shown] = _subjects(reader, [found], seen, window, outages)
            return {**_window(window), **shown}
    return None


def _summed(found: Sequence[Cluster]) -> list[Cluster]:
    """Return the clusters the fleet's figures add up: real before simulated, cards before processors."""
    real = [c for c in found if not c.simulated] or list(found)
    real_cards = [c for c in real if c.device_kind == "gpu"]
    if real_cards:
        return real_cards
    return [c for c in found if c.device_kind == "gpu"] or real


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """Lines, and what their waterfall needs beside them."""

    sheet: Sheet
    lost_card_steps: Mapping[str, float]
    dtype_ratios: Floats


def _seen(
    reader: Reader,
    found: Sequence[Cluster],
    window: Window,
    now_unix_ms: int,
    references: Mapping[str, str],
) -> dict[str, _Seen]:
    names = [of.name for of in found]
    sheets = sheets_of_window(reader, names, window, now_unix_ms, OF_FIGURES)
    for of in found:
        cards = sheets[of.name].texts["device_kind"] != "cpu"
        sheets[of.name] = sheets[of.name].where(cards == (of.device_kind != "cpu"))
    told = [name for name in names if sheets[name].sum("steps_count") is not None]
    lost = lost_by_cluster(reader, told, window) if told else {}
    return {
        name: _Seen(
            sheet=sheets[name],
            lost_card_steps=lost.get(name, {}),
            dtype_ratios=dtype_ratios(sheets[name], references.get(name)),
        )
        for name in names
    }


def _together(seen: Sequence[_Seen]) -> _Seen:
    lost: dict[str, float] = {}
    for of in seen:
        for job, steps in of.lost_card_steps.items():
            lost[job] = lost.get(job, 0.0) + steps
    return _Seen(
        sheet=joined([of.sheet for of in seen], OF_FIGURES),
        lost_card_steps=lost,
        dtype_ratios=np.concatenate([np.zeros(0), *(of.dtype_ratios for of in seen)]),
    )


def _subjects(
    reader: Reader,
    found: Sequence[Cluster],
    seen: Mapping[str, _Seen],
    window: Window,
    outages: Outages,
) -> list[dict[str, Any]]:
    newest = _newest_rows(reader, [of.name for of in found], window)
    return [
        {
            "name": of.name,
            "simulated": of.simulated,
            "device_kind": of.device_kind,
            "status": _status(seen[of.name].sheet, newest.get(of.name), window),
            "as_of": rfc3339(newest[of.name]) if of.name in newest else None,
            **_sums(seen[of.name], window),
            "outages": list(outages.get(of.name, ())),
        }
        for of in found
    ]


def _sums(seen: _Seen, window: Window) -> dict[str, Any]:
    return {
        **figures(seen.sheet, window.end - window.start),
        "waterfall": waterfall(seen.sheet, seen.lost_card_steps, seen.dtype_ratios),
    }


def _newest_rows(reader: Reader, names: Sequence[str], window: Window) -> dict[str, int]:
    """Return when the newest row of each cluster in a window ends, where there is one.

    Looked for from the window's end, further and further back.
    """
    found: dict[str, int] = {}
    back, high = STALE_MS, window.end
    while high > window.start and len(found) < len(names):
        low = max(window.start, window.end - back)
        table = reader.query(
            "SELECT cluster, max(start_unix_ms + duration_ms) AS newest FROM interval "
            "WHERE cluster IN {clusters:Array(String)} AND start_unix_ms >= {low:Int64} "
            "AND start_unix_ms < {high:Int64} GROUP BY cluster",
            {"clusters": [n for n in names if n not in found], "low": low, "high": high},
        )
        for cluster, newest in zip(*table.to_pydict().values(), strict=True):
            found[cluster] = min(int(newest), window.end)
        back, high = 8 * back, low
    return found


def _status(sheet: Sheet, newest: int | None, window: Window) -> str:
    if newest is None or newest < window.end - STALE_MS:
        return "stale"
    return "provisional" if sheet.ints["provisional_ms"].any() else "final"


def _worst(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    order = ("final", "provisional", "stale")
    words = [e["as_of"] for e in entries if e["as_of"] is not None]
    return {
        "status": max((e["status"] for e in entries), key=order.index, default="stale"),
        "as_of": min(words, default=None),
    }


def _window(window: Window) -> dict[str, Any]:
    return {
        "start": rfc3339(window.start),
        "end": rfc3339(window.end),
        "window_s": (window.end - window.start) / 1000,
    }


def rfc3339(unix_ms: int) -> str:
    """Return a moment as UTC text with a Z; milliseconds only where there are any."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds" if unix_ms % 1000 else "seconds").replace(
        "+00:00", "Z"
    )

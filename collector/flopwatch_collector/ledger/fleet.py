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
from flopwatch_collector.ledger.rework import lost_card_steps
from flopwatch_collector.ledger.sheet import Sheet, joined
from flopwatch_collector.ledger.waterfall import dtype_ratios, waterfall
from flopwatch_collector.ledger.window import sheet_of_window
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
    seen = {c.name: _seen(reader, c, window, now_unix_ms, reference_dtypes) for c in found}
    shown = [
        _subject(reader, c, seen[c.name], window) | {"outages": list(outages.get(c.name, ()))}
        for c in found
    ]
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
            seen = _seen(reader, found, window, now_unix_ms, reference_dtypes)
            return {
                **_window(window),
                **_subject(reader, found, seen, window),
                "outages": list(outages.get(name, ())),
            }
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
    reader: Reader, of: Cluster, window: Window, now_unix_ms: int, references: Mapping[str, str]
) -> _Seen:
    whole = sheet_of_window(reader, of.name, window, now_unix_ms)
    sheet = whole.where((whole.texts["device_kind"] == "cpu") == (of.device_kind == "cpu"))
    told = sheet.sum("steps_count") is not None
    return _Seen(
        sheet=sheet,
        lost_card_steps=lost_card_steps(reader, of.name, window) if told else {},
        dtype_ratios=dtype_ratios(sheet, references.get(of.name)),
    )


def _together(seen: Sequence[_Seen]) -> _Seen:
    lost: dict[str, float] = {}
    for of in seen:
        for job, steps in of.lost_card_steps.items():
            lost[job] = lost.get(job, 0.0) + steps
    return _Seen(
        sheet=joined([of.sheet for of in seen]),
        lost_card_steps=lost,
        dtype_ratios=np.concatenate([np.zeros(0), *(of.dtype_ratios for of in seen)]),
    )


def _subject(reader: Reader, of: Cluster, seen: _Seen, window: Window) -> dict[str, Any]:
    newest = _newest_row(reader, of.name, window)
    return {
        "name": of.name,
        "simulated": of.simulated,
        "device_kind": of.device_kind,
        "status": _status(seen.sheet, newest, window),
        "as_of": None if newest is None else rfc3339(newest),
        **_sums(seen, window),
    }


def _sums(seen: _Seen, window: Window) -> dict[str, Any]:
    return {
        **figures(seen.sheet, window.end - window.start),
        "waterfall": waterfall(seen.sheet, seen.lost_card_steps, seen.dtype_ratios),
    }


def _newest_row(reader: Reader, name: str, window: Window) -> int | None:
    """Return when the newest row of a window ends; looked for from its end, further and further back."""
    back, high = STALE_MS, window.end
    while high > window.start:
        low = max(window.start, window.end - back)
        table = reader.query(
            "SELECT count() AS n, max(start_unix_ms + duration_ms) AS newest FROM interval "
            "WHERE cluster = {cluster:String} AND start_unix_ms >= {low:Int64} "
            "AND start_unix_ms < {high:Int64}",
            {"cluster": name, "low": low, "high": high},
        )
        record = table.to_pylist()[0]
        if record["n"]:
            return min(int(record["newest"]), window.end)
        back, high = 8 * back, low
    return None


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

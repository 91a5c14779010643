"""Answers about teams, the accounts that jobs are charged to. Reads only.

A team is a name on lines, so it has the figures that lines have, added up over all clusters of one kind: real
or simulated, cards or processors. A window comes from the same tiers as the fleet's, and what came late is in
it at once. Time that no job holds (free, failed, silent) is no team's, and held time without a word about its
team is a team of its own, whose name is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.figures import figures
from flopwatch_collector.ledger.fleet import NO_REFERENCES, Cluster, clusters
from flopwatch_collector.ledger.lines import OF_FIGURES, Wanted
from flopwatch_collector.ledger.rework import lost_by_cluster
from flopwatch_collector.ledger.sheet import Sheet, joined
from flopwatch_collector.ledger.waterfall import dtype_ratios, waterfall
from flopwatch_collector.ledger.window import sheets_of_window
from flopwatch_collector.telemetry import Reader
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket

LISTED_MAX: Final = 500
_LISTED: Final = Wanted(
    texts=("team", "device_kind", "dtype", "efficiency_method"), sums=OF_FIGURES.sums
)
_ONE: Final = Wanted(texts=("team", *OF_FIGURES.texts), sums=OF_FIGURES.sums)
_SHOWN: Final = ("cards", "hfu", "mfu", "hfu_achievable", "mfu_achievable")

Answer = dict[str, Any]


def teams(
    reader: Reader, window: Window, now_unix_ms: int, cluster: str | None = None
) -> list[Answer]:
    """Return the teams that held cards in a window, of each kind of cluster those with most card-time first.

    ``share`` is of the card-time that all teams of the kind held.
    """
    listed = []
    for kind in _kinds(reader, window, cluster):
        sheets = _sheets(reader, kind, window, now_unix_ms, _LISTED)
        held = _held(joined(list(sheets.values()), _LISTED))
        whole = held.time()
        names, index = np.unique(held.texts["team"], return_inverse=True)
        time_ms = np.bincount(index, held.ints["card_ms"], minlength=len(names))
        for i in np.argsort(-time_ms, kind="stable")[:LISTED_MAX]:
            own = _figures(held.where(index == i), window)
            named = {"name": str(names[i]) or None, **_kind(kind)}
            listed.append({**named, "share": float(time_ms[i]) / whole if whole else None, **own})
    return listed


def team(
    reader: Reader,
    name: str,
    window: Window,
    now_unix_ms: int,
    cluster: str | None = None,
    reference_dtypes: Mapping[str, str] = NO_REFERENCES,
) -> Answer | None:
    """Return one team with its waterfall and its part of every cluster; None: it held no card in the window.

    Of a name that both real and simulated clusters have the real one is meant.

    Args:
        reference_dtypes: as for the fleet.
    """
    for kind in _kinds(reader, window, cluster):
        sheets = {
            of: own
            for of, sheet in _sheets(reader, kind, window, now_unix_ms, _ONE).items()
            if len((own := _of_team(sheet, name)).bucket)
        }
        if not sheets:
            continue
        own = joined(list(sheets.values()), _ONE)
        ratios = [dtype_ratios(sheet, reference_dtypes.get(of)) for of, sheet in sheets.items()]
        parts = [{"name": of, **_figures(sheet, window)} for of, sheet in sheets.items()]
        steps = waterfall(own, _lost(reader, sheets, window), np.concatenate(ratios))
        return {
            "name": name,
            **_kind(kind),
            **_figures(own, window),
            "waterfall": steps,
            "clusters": sorted(parts, key=lambda part: -part["card_seconds"]),
        }
    return None


def _kinds(reader: Reader, window: Window, cluster: str | None) -> list[list[Cluster]]:
    """Return the clusters that may share a sum: real ones first, cards before processors."""

    def kind(of: Cluster) -> tuple[bool, bool]:
        return of.simulated, of.device_kind == "cpu"

    found = [of for of in clusters(reader, window) if cluster in (None, of.name)]
    return [list(alike) for _, alike in groupby(sorted(found, key=kind), kind)]


def _kind(alike: Sequence[Cluster]) -> Answer:
    return {"simulated": alike[0].simulated, "device_kind": alike[0].device_kind}


def _sheets(
    reader: Reader, alike: Sequence[Cluster], window: Window, now_unix_ms: int, wanted: Wanted
) -> dict[str, Sheet]:
    """Return the lines of clusters of one kind; hosts beside cards are no cards."""
    names = [of.name for of in alike]
    sheets = sheets_of_window(reader, names, window, now_unix_ms, wanted)
    processors = alike[0].device_kind == "cpu"
    return {
        name: sheet.where((sheet.texts["device_kind"] == "cpu") == processors)
        for name, sheet in sheets.items()
    }


def _held(sheet: Sheet) -> Sheet:
    """Return the time that is a team's: allocated, or said to be somebody's whatever became of the card."""
    return sheet.where(np.isin(sheet.bucket, ALLOCATED_BUCKETS) | (sheet.texts["team"] != ""))


def _of_team(sheet: Sheet, name: str) -> Sheet:
    held = _held(sheet)
    return held.where(held.texts["team"] == name)


def _figures(own: Sheet, window: Window) -> Answer:
    made = figures(own, window.end - window.start)
    seconds = {b.name: own.time(b) / 1000 for b in Bucket}
    return {
        "status": "provisional" if own.ints["provisional_ms"].any() else "final",
        "card_seconds": own.time() / 1000,
        "buckets": {name: spent for name, spent in seconds.items() if spent},
        **{name: made[name] for name in _SHOWN},
    }


def _lost(reader: Reader, sheets: Mapping[str, Sheet], window: Window) -> dict[str, float]:
    """Return what restarts lost of the team's jobs, by job."""
    told = [name for name, sheet in sheets.items() if sheet.sum("steps_count") is not None]
    lost: dict[str, float] = {}
    for name, of in (lost_by_cluster(reader, told, window) if told else {}).items():
        jobs = set(sheets[name].texts["job"].tolist())
        for job, steps in of.items():
            if job in jobs:
                lost[job] = lost.get(job, 0.0) + steps
    return lost

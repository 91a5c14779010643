"""The answer about one job: its figures, whose the losses are, and what to do about them. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from flopwatch_collector.jobs import read
from flopwatch_collector.jobs.bridge import Declared, bridge
from flopwatch_collector.jobs.causes import causes
from flopwatch_collector.jobs.crowd import THROTTLES, Counters
from flopwatch_collector.jobs.lives import Life
from flopwatch_collector.jobs.peers import JobFigures, peers
from flopwatch_collector.jobs.receipt import receipt
from flopwatch_collector.jobs.stragglers import find
from flopwatch_collector.jobs.verdict import CEILING_BELOW_MIN, Seen, verdict
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.figures import figures
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.ledger.reconcile import Card, Told, reconcile
from flopwatch_collector.ledger.rework import lost_card_steps
from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_collector.ledger.waterfall import dtype_ratios, waterfall
from flopwatch_collector.ledger.window import sheet_of_window
from flopwatch_collector.telemetry import Reader
from flopwatch_proto.rows import ALLOCATED_BUCKETS

LISTED_MAX: Final = 500
LIVE_MS: Final = 120_000
"""A window that ends so little ago reaches to now."""
FAULT_KINDS: Final = ("xid", "ecc", "link", "nvlink", "pcie", "remap", "thermal")
_NAMES: Final = ("team", "user", "sku", "workload_class", "dtype")


def jobs(reader: Reader, cluster: str, window: Window, now_unix_ms: int) -> list[dict[str, Any]]:
    """Return the jobs of a cluster in a window with their figures, those with most card-time first."""
    sheet = sheet_of_window(reader, cluster, window, now_unix_ms)
    held = sheet.where(np.isin(sheet.bucket, ALLOCATED_BUCKETS) & (sheet.texts["job"] != ""))
    names, index = np.unique(held.texts["job"], return_inverse=True)
    time = np.bincount(index, held.ints["card_ms"], minlength=len(names))
    listed = []
    for i in np.argsort(-time, kind="stable")[:LISTED_MAX]:
        own = held.where(index == i)
        made = figures(own, window.end - window.start)
        listed.append(
            {
                "name": str(names[i]),
                "cluster": cluster,
                **_identity(own),
                "card_seconds": float(time[i]) / 1000,
                **{name: made[name] for name in ("cards", "hfu", "mfu")},
            }
        )
    return listed


def job(
    reader: Reader,
    name: str,
    life: Life,
    window: Window,
    now_unix_ms: int,
    *,
    capture: str | None = None,
    reference_dtype: str | None = None,
) -> dict[str, Any]:
    """Return `/api/v1/jobs/{id}`: the same figures as of every subject, and ``answer``.

    Args:
        life: the attempt that is meant. window: inside of it.
        capture: id of the capture to look for stragglers in; None: the newest one in the window, else
            the last rows.
        reference_dtype: whose peak the waterfall is of; None: the rows' own.
    """
    sheet = sheet_of_window(reader, life.cluster, window, now_unix_ms)
    own = sheet.where(sheet.texts["job"] == name)
    length = window.end - window.start
    cards = read.cards_of(reader, life.cluster, name, window)
    nodes = sorted({card["node"] for card in cards})
    made: dict[str, Any] = {
        "start": rfc3339(window.start),
        "end": rfc3339(window.end),
        "window_s": length / 1000,
        "name": name,
        "cluster": life.cluster,
        "simulated": life.simulated,
        "attempt": life.attempt,
        "attempts": life.attempts,
        "status": "provisional" if own.ints["provisional_ms"].any() else "final",
        "as_of": rfc3339(min(life.end, window.end)),
        "held_s": (life.end - life.start) / 1000,
        "nodes_count": len(nodes),
        **_identity(own),
        **figures(own, length),
        "waterfall": waterfall(
            own,
            lost_card_steps(reader, life.cluster, window),
            dtype_ratios(own, reference_dtype),
        ),
    }
    made["answer"] = _answer(reader, made, own, cards, nodes, life, window, now_unix_ms, capture)
    made["answer"]["receipt"] = receipt(made)
    return made


def _identity(sheet: Sheet) -> dict[str, str | None]:
    """Return what most of the card-time says of each name."""
    said: dict[str, str | None] = {}
    for column in _NAMES:
        texts, index = np.unique(sheet.texts[column], return_inverse=True)
        time = np.bincount(index, sheet.ints["card_ms"], minlength=len(texts))
        said[column] = (str(texts[time.argmax()]) or None) if len(texts) else None
    kinds = sheet.texts["device_kind"]
    said["device_kind"] = "cpu" if len(kinds) and (kinds == "cpu").all() else "gpu"
    return said


def _answer(
    reader: Reader,
    shown: Mapping[str, Any],
    own: Sheet,
    cards: Sequence[Mapping[str, Any]],
    nodes: Sequence[str],
    life: Life,
    window: Window,
    now_unix_ms: int,
    capture: str | None,
) -> dict[str, Any]:
    name = shown["name"]
    events = read.events_of(reader, life.cluster, name, nodes, window)
    places = {(card["node"], card["slot"]) for card in cards}
    looked, rows = _looked_at(reader, shown, places, window, now_unix_ms, capture)
    network = read.network_bytes_per_second(reader, life.cluster, nodes, read.last_rows(window))
    beside = peers(_own_figures(shown, own), read.jobs_of_days(reader, life.simulated, now_unix_ms))
    ceiling = _ratio(own.sum("achievable_flops"), _ceiling_capacity(own))
    fleet = read.fleet_ceiling(reader, life.cluster, shown["sku"] or "", window)
    shares = {step["step"]: step["share"] for step in shown["waterfall"]}
    seen = Seen(
        shares=shares,
        throttled=_throttled(cards),
        clock_parts=_clock_parts(shown["waterfall"]),
        ceilings_below=_below(cards, fleet),
        ceilings_known=sum(_known(c["ceiling"]) for c in cards) / max(len(cards), 1),
        ceiling=ceiling,
        hfu=shown["hfu"]["value"],
        faults=_faults(events),
        stragglers=looked["culprits"] if looked["judged"] else None,
        coverage=shown["hfu"]["coverage"],
    )
    hfu, mfu = shown["hfu"]["value"], shown["mfu"]["value"]
    return {
        "verdict": verdict(seen),
        "bridge": bridge(_declared(own)),
        "peers": beside,
        "causes": causes(
            shown["waterfall"],
            cards=shown["cards"]["allocated"],
            ceiling=ceiling,
            peer=(beside["hfu"] or {}).get("p75"),
            mfu_of_hfu=mfu / hfu if mfu is not None and hfu else None,
        ),
        "ceiling": ceiling,
        "stragglers": looked,
        "flags": _flags(own, cards, rows, network),
        "events": [_event(event) for event in events if event["job"] == name],
    }


def _looked_at(
    reader: Reader,
    shown: Mapping[str, Any],
    places: Set[tuple[str, str]],
    window: Window,
    now_unix_ms: int,
    asked: str | None,
) -> tuple[dict[str, Any], Counters]:
    """Return what the job's newest capture says of stragglers, else its last rows; and those rows."""
    cluster = shown["cluster"]
    nodes = sorted({node for node, _ in places})
    # A live window ends where rows have arrived; what was captured since then is newer, and counts.
    live = now_unix_ms - window.end <= LIVE_MS
    until = Window(start=window.start, end=now_unix_ms) if live else window
    found = asked or read.newest_capture(reader, cluster, nodes, until)
    rows = read.row_counters(reader, cluster, shown["name"], window)
    counters: Counters | str = rows
    if found is not None:
        counters = read.capture_counters(reader, cluster, found, places)
    source = {"capture": found, "from": "rows" if found is None else "capture"}
    if isinstance(counters, str):
        nothing = {"judged": False, "culprits": [], "reason": counters, "cards": len(places)}
        return source | nothing | dict.fromkeys(("idle_cards", "step_s", "every_s")), rows
    return source | find(counters).shown(), rows


def _flags(
    own: Sheet, cards: Sequence[Mapping[str, Any]], rows: Counters, network: float | None
) -> list[dict[str, Any]]:
    """Return what does not fit among counters, declaration and probes."""
    steps_told = any(own.sum(n) is not None for n in ("steps_count", "tokens_count"))
    seen: list[Card] = []
    if "tensor_active_ratio" in rows.fields:
        rates = {(card["node"], card["slot"]): _link_rate(card) for card in cards}
        activity = rows.fields["tensor_active_ratio"]
        seen = [
            Card(
                activity=[None if np.isnan(v) else float(v) for v in activity[i]],
                link_bytes_per_second=rates.get(place),
            )
            for i, place in enumerate(zip(rows.nodes, rows.slots, strict=True))
        ]
    told = Told(steps_told=steps_told, network_bytes_per_second=network)
    return [asdict(flag) for flag in reconcile(own, seen, told)]


def _link_rate(card: Mapping[str, Any]) -> float | None:
    known = [card[link] for link in read.LINKS if card[link] is not None]
    return sum(known) * 1000 / card["card_ms"] if known and card["card_ms"] else None


def _declared(own: Sheet) -> Declared:
    held = own.where(np.isin(own.bucket, ALLOCATED_BUCKETS))
    phases = held.texts["phase"]
    return Declared(
        reported_mfu_ms=held.sum("reported_mfu_ms"),
        reported_ms=held.sum("reported_ms"),
        reported_flops=held.sum("reported_flops"),
        model_flops=held.sum("model_flops"),
        model_capacity_flops=held.sum("capacity_flops"),
        step_ms=held.sum("step_ms"),
        card_ms=float(held.ints["card_ms"].sum()),
        phase_ms={
            str(p): float(held.ints["card_ms"][phases == p].sum()) for p in np.unique(phases) if p
        },
        **{n: _identity(held)[n] or "" for n in ("sku", "dtype")},
    )


def _own_figures(shown: Mapping[str, Any], own: Sheet) -> JobFigures:
    return JobFigures(
        cluster=shown["cluster"],
        job=shown["name"],
        sku=shown["sku"] or "",
        workload_class=shown["workload_class"] or "",
        cards=shown["cards"]["allocated"],
        card_hours=float(own.ints["card_ms"].sum()) / read.HOUR_MS,
        mfu=shown["mfu"]["value"],
        hfu=shown["hfu"]["value"],
    )


def _ceiling_capacity(own: Sheet) -> float | None:
    """Return the capacity of the card-time that has a measured ceiling."""
    known = ~np.isnan(own.sums["achievable_flops"])
    return own.where(known).sum("capacity_flops")


def _throttled(cards: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    whole = sum(card["card_ms"] for card in cards)
    sums = {r: sum(card[r] or 0.0 for card in cards) for r in THROTTLES}
    return {reason: ms / whole for reason, ms in sums.items() if whole and ms > 0}


def _clock_parts(steps: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return what the clock lost by reason, as shares of the job's card-time."""
    whole = sum(step["card_seconds"] or 0.0 for step in steps)
    parts = next(step["parts"] for step in steps if step["step"] == "clock")
    return {
        part["name"]: None
        if part["card_seconds"] is None or not whole
        else part["card_seconds"] / whole
        for part in parts
    }


def _below(cards: Sequence[Mapping[str, Any]], fleet: float | None) -> list[tuple[str, str, float]]:
    if fleet is None:
        return []
    ratios = [
        (c["node"], c["slot"], c["ceiling"] / fleet - 1) for c in cards if _known(c["ceiling"])
    ]
    return [place for place in ratios if place[2] < -CEILING_BELOW_MIN]


def _known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value)) and value > 0


def _faults(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence per kind of fault on the job's nodes."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event["kind"].startswith(FAULT_KINDS):
            by_kind.setdefault(f"{event['kind']} {event['code']}", []).append(event)
    return [
        f"{kind}: {len(of)} × , first on {of[0]['node']} {of[0]['slot']}".replace(" × ,", "×,")
        for kind, of in by_kind.items()
    ]


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    step = event["code"] if event["code"] >= 0 else None
    return {"time": rfc3339(event["time_unix_ms"]), "kind": event["kind"], "step": step}


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole

"""The fleet page as values for its template: headlines, clusters, waterfall, map. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from flopwatch_collector.audit.books import Books
from flopwatch_collector.ledger.waterfall import OWNERS
from flopwatch_collector.web import data_view, node_map, sparkline, staircase, wording

ALLOCATION_LINE: Final = 0.96
MFU_LINE: Final = 0.60
RAMP_TOP: Final = 0.70

WINDOWS: Final = (("5m", "5 min"), ("15m", "15 min"), ("1h", "1 h"), ("24h", "24 h"), ("7d", "7 d"))

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page is made of.

    Attributes:
        fleet: the answer of `/api/v1/fleet`.
        maps: cluster → its nodes, as `/api/v1/nodes` has them.
        sparks: metric → values over the sparkline's span; empty where none are stored yet.
        spark_span: that span in words.
        gaps: gaps that touch the window; rosters: newest word of each scheduler.
        books: of all clusters, as they were last looked at; trouble: lines of `web.trouble`.
        stale_reason: why these are the last known figures; empty where they are fresh.
    """

    fleet: Json
    maps: node_map.Maps
    sparks: Mapping[str, Sequence[float | None]]
    spark_span: str
    gaps: int | None
    rosters: Sequence[Json]
    books: Sequence[Books] | None
    trouble: Sequence[Mapping[str, str]]
    now_unix_ms: int
    window: str
    cluster: str | None = None
    deployment: str = ""
    stale_reason: str = ""


def view(page: Page) -> dict[str, Any]:
    """Return the template's values."""
    entries = page.fleet["clusters"]
    chosen = next((e for e in entries if e["name"] == page.cluster), None)
    subject = chosen or page.fleet["fleet"]
    simulated = bool(chosen["simulated"] if chosen else page.fleet["simulated"])
    shown = [chosen] if chosen else entries
    processor = bool(chosen and chosen["device_kind"] == "cpu") or (
        not chosen and bool(entries) and all(e["device_kind"] == "cpu" for e in entries)
    )
    maps = {e["name"]: page.maps.get(e["name"], ()) for e in shown}
    return {
        "empty": not entries,
        "deployment": page.deployment,
        "simulated": simulated,
        "stale": bool(page.stale_reason) or (bool(entries) and subject["status"] == "stale"),
        "stale_reason": page.stale_reason,
        "status": subject["status"],
        "as_of": subject["as_of"],
        "as_of_words": wording.clock(subject["as_of"]),
        "start": page.fleet["start"],
        "end": page.fleet["end"],
        "window": page.window,
        "window_words": wording.length(page.fleet["window_s"]),
        "windows": WINDOWS,
        "cluster": chosen["name"] if chosen else None,
        "clusters": [e["name"] for e in entries],
        "witnesses": _witnesses(page, maps),
        "strip": _strip(page, shown),
        "trouble": page.trouble,
        "data": data_view.of_fleet(page.books, page.cluster, simulated=simulated),
        "heads": _heads(page, subject, processor),
        "rows": [_row(e) for e in shown],
        "waterfall": staircase.drawn(subject, page.fleet["window_s"]),
        "map": node_map.layout(maps, {e["name"]: _label(e) for e in shown}),
        "nodes": [
            {"cluster": name, **node, "words": node_map.describe(node)}
            for name, nodes in maps.items()
            for node in nodes
        ][: node_map.NODES_MAX],
    }


def subject_view(subject: Json) -> dict[str, Any]:
    """Return the row and the waterfall of anything that has figures."""
    return {
        "row": _row({"outages": [], **subject}),
        "waterfall": staircase.drawn(subject, subject["window_s"]),
        "simulated": subject["simulated"],
    }


def outage_view(outage: Json, now_unix_ms: int) -> dict[str, Any]:
    """Return the values of an outage's own page."""
    losses = sorted(outage["lost_points"].items(), key=lambda kv: -kv[1])
    shown = [
        {
            "words": name.lower().replace("_", " "),
            "owner": _loss_owner(name),
            "points": f"{points:.1f}",
            "width": round(min(100.0, points), 2),
        }
        for name, points in losses
        if points > 0 and _loss_owner(name) != "output"
    ]
    at = 0.0
    for loss in shown:
        loss["x"], at = round(at, 2), at + float(loss["width"])
    return {
        "outage": outage,
        "words": _outage(outage, now_unix_ms),
        "line": wording.percent(outage["threshold"]),
        "losses": shown,
        "causes": outage.get("causes", []),
        "simulated": outage["simulated"],
        "paged": ""
        if outage.get("paged_value") is None
        else wording.percent(outage["paged_value"]),
    }


def _loss_owner(name: str) -> str:
    return wording.BUCKET_OWNERS.get(name) or OWNERS.get(name, "muted")


def _label(entry: Json) -> str:
    return f"{entry['name']} SIM" if entry["simulated"] else str(entry["name"])


def _witnesses(page: Page, maps: node_map.Maps) -> list[str]:
    nodes = [n for of in maps.values() for n in of]
    reporting = sum(1 for n in nodes if n["reports"])
    words = [f"{reporting:,}/{len(nodes):,} agents"] if nodes else []
    for roster in page.rosters:
        age = wording.length((page.now_unix_ms - roster["taken_unix_ms"]) / 1000)
        words.append(f"{roster['source']} {age}")
    if page.gaps is not None:
        words.append(f"{page.gaps} gap{'' if page.gaps == 1 else 's'}")
    return words


def _strip(page: Page, shown: Sequence[Json]) -> dict[str, Any]:
    """Return the outage strip: the most urgent one in words, and how many more there are."""
    listed = [{**o, "cluster": e["name"]} for e in shown for o in e["outages"]]
    order = ("firing", "clearing", "pending", "standing")
    listed.sort(key=lambda o: (order.index(o["state"]), o["since"]))
    if not listed:
        return {"first": None, "more": ""}
    first, rest = listed[0], listed[1:]
    more = [f"{o['state']} ({o['cluster']} {_rule_word(o['rule'])})" for o in rest[:2]]
    if len(rest) > 2:
        more.append(f"{len(rest) - 2} more")
    plus = f"+{len(rest)} " if rest else ""
    return {"first": _outage(first, page.now_unix_ms), "more": plus + " · ".join(more)}


def _rule_word(rule: str) -> str:
    return {"mfu": "MFU"}.get(rule, rule.replace("_", " "))


def _outage(outage: Json, now_unix_ms: int) -> dict[str, Any]:
    value, line = outage["value"], outage["threshold"]
    subjects = outage.get("subjects")  # of a rule that counts: its figure is no percentage
    if subjects is not None:
        value = line = None
    below = ""
    if value is not None and line is not None:
        gap = 100 * (value - line)
        below = wording.signed(f"{gap:+.{2 if 0 < abs(gap) < 0.05 else 1}f}")
    since = datetime.fromisoformat(outage["since"]).timestamp() * 1000
    lost = [(n, p) for n, p in outage["lost_points"].items() if p > 0]
    worst = max(lost, key=lambda kv: kv[1], default=None)
    causes = [f"{c['kind']} {c['name']}, {c['cards']:g} cards" for c in outage.get("causes", [])]
    owner = None
    if worst is not None:
        owner = wording.BUCKET_OWNERS.get(worst[0])
    return {
        "state": outage["state"],
        "id": outage.get("id"),
        "glyph": {"firing": "▲", "pending": "◔", "standing": "△", "clearing": "▽", "resolved": "✓"}[
            outage["state"]
        ],
        "cluster": outage["cluster"],
        "rule": _rule_word(outage["rule"]),
        "value": wording.percent(value, line=line) if subjects is None else f"{subjects:,}",
        "counts": subjects is not None,
        "below": below,
        "since": outage["since"],
        "age": wording.length((now_unix_ms - since) / 1000),
        "owner": owner,
        "cause": causes[0] if causes else "",
        "lost": "" if worst is None else f"{worst[0].lower().replace('_', ' ')} {worst[1]:.1f} pts",
        "acked_by": outage["acked_by"],
    }


def _heads(page: Page, subject: Json, processor: bool) -> list[dict[str, Any]]:
    allocation, hfu, mfu = subject["allocation"], subject["hfu"], subject["mfu"]
    held = subject["yield"]["value"]
    cards = subject["cards"]["in_service"]
    return [
        {
            "id": "allocation",
            "name": "Allocation",
            "figure": wording.percent(allocation["value"], line=ALLOCATION_LINE),
            "below": allocation["value"] is not None and allocation["value"] < ALLOCATION_LINE,
            "line": "" if processor else "line 96.0",
            "reason": "" if cards else "no card in service",
            "words": [
                f"active {wording.percent(subject['active_allocation']['value'])} %",
                *_bounds(allocation),
                f"{wording.cards(subject['cards']['allocated'])} of {wording.cards(cards)} "
                + ("processors" if processor else "cards"),
            ],
            "spark": _spark(page, ("allocation",), ALLOCATION_LINE, (0.80, 1.0)),
        },
        _efficiency(page, subject, hfu, mfu, processor),
        {
            "id": "yield",
            "name": "Yield",
            "figure": wording.percent(held),
            "below": False,
            "line": "A × HFU",
            "reason": "" if held is not None else "needs counters and a datasheet peak",
            "words": [
                f"worth {wording.cards(None if held is None else held * cards)} of "
                f"{wording.cards(cards)} cards at peak",
                "$ — no price book",
            ],
            "spark": _spark(page, ("yield",), None, (0.0, RAMP_TOP)),
        },
    ]


def _bounds(figure: Json) -> list[str]:
    """Return the bounds in words where they differ."""
    if figure["lo"] is None or figure["hi"] is None or figure["lo"] == figure["hi"]:
        return []
    return [f"bounds {wording.percent(figure['lo'])}–{wording.percent(figure['hi'])} %"]


def _efficiency(page: Page, subject: Json, hfu: Json, mfu: Json, processor: bool) -> dict[str, Any]:
    if processor:
        of_ceiling = subject["mfu_achievable"]
        return {
            "id": "hfu",
            "name": "MFU of measured ceiling",
            "figure": wording.span(of_ceiling["lo"], of_ceiling["hi"], of_ceiling["value"]),
            "below": False,
            "line": "processor: no datasheet peak",
            "reason": "" if of_ceiling["hi"] is not None else "no job declares model FLOPs",
            "words": [f"declared on {wording.percent(of_ceiling['declared_share'], decimals=0)} %"],
            "spark": None,
        }
    value, margin = hfu["value"], ""
    if hfu["lo"] is not None and hfu["hi"] is not None:
        margin = f"±{50 * (hfu['hi'] - hfu['lo']):.1f}"
        if value is None:
            margin = f"{wording.percent(hfu['lo'])}–{wording.percent(hfu['hi'])} %"
    return {
        "id": "hfu",
        "name": "HFU",
        "figure": wording.percent(value),
        "below": False,
        "line": margin,
        "reason": "" if hfu["hi"] is not None else "no counters on allocated cards",
        "words": [
            f"MFU {wording.span(mfu['lo'], mfu['hi'], mfu['value'], MFU_LINE)} %, line 60",
            f"declared on {wording.percent(mfu['declared_share'], decimals=0)} %",
            f"counters on {wording.percent(hfu['coverage'], decimals=0)} %",
        ],
        "spark": _spark(page, ("hfu", "mfu_lo", "mfu_hi"), MFU_LINE, (0.0, RAMP_TOP)),
    }


def _spark(
    page: Page, names: tuple[str, ...], line: float | None, levels: tuple[float, float]
) -> dict[str, Any] | None:
    values = page.sparks.get(names[0], ())
    known = [v for v in values if v is not None]
    if not known:
        return None
    low, high = min(levels[0], min(known)), max(levels[1], max(known))
    drawn = {
        "line": sparkline.line(values, low, high),
        "level": None if line is None else sparkline.level(line, low, high),
        "band": "",
        "span": page.spark_span,
        "words": f"between {wording.percent(min(known))} and {wording.percent(max(known))} %",
    }
    if len(names) == 3:
        drawn["band"] = sparkline.band(page.sparks[names[1]], page.sparks[names[2]], low, high)
    return drawn


def _row(entry: Json) -> dict[str, Any]:
    processor = entry["device_kind"] == "cpu"
    mfu = entry["mfu_achievable"] if processor else entry["mfu"]
    top = wording.top_cause(entry["waterfall"])
    lost = wording.lost_by_owner(entry["waterfall"])
    allocation = entry["allocation"]["value"]
    return {
        "name": entry["name"],
        "simulated": entry["simulated"],
        "processor": processor,
        "status": entry["status"],
        "as_of": wording.clock(entry["as_of"]),
        "cards": wording.cards(entry["cards"]["in_service"]),
        "allocation": wording.percent(allocation, line=ALLOCATION_LINE),
        "below": not processor and allocation is not None and allocation < ALLOCATION_LINE,
        "alloc_lo": _percent(entry["allocation"]["lo"]),
        "alloc_value": _percent(allocation),
        "alloc_hi": _percent(entry["allocation"]["hi"]),
        "active": wording.percent(entry["active_allocation"]["value"]),
        "hfu": wording.percent(entry["hfu"]["value"]),
        "mfu": wording.span(mfu["lo"], mfu["hi"], mfu["value"], None if processor else MFU_LINE),
        "mfu_lo": _percent(mfu["lo"]),
        "mfu_hi": _percent(mfu["hi"]),
        "mfu_value": _percent(mfu["value"]),
        "lost": _stack(lost),
        "lost_words": {o: wording.points(v) for o, v in lost.items()},
        "top": "" if top is None else wording.STEP_WORDS[top["step"]],
        "top_points": "" if top is None else wording.points(top["share"]),
        "owner": "" if top is None else top["owner"],
        "outages": [o["state"] for o in entry["outages"]],
    }


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else round(100 * min(max(ratio, 0.0), 1.0), 2)


def _stack(shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return segments side by side, in percent of the whole; a negative share has no width."""
    at, stacked = 0.0, []
    for owner, share in shares.items():
        width = 100 * max(0.0, share)
        stacked.append({"owner": owner, "x": round(at, 2), "width": round(width, 2)})
        at += width
    return stacked

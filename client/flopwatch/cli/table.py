"""Tables of the API's answers; each fits into 80 columns. Pure but for the console they return into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich import box
from rich.table import Table

from flopwatch.cli import number

ALLOCATION_LINE: Final = 0.96
MFU_LINE: Final = 0.60
_EXA: Final = 1e18

Json = Mapping[str, Any]


def fleet_table(answer: Json) -> Table:
    """One line per cluster, and the sum over them."""
    table = _table(
        f"fleet · {window(answer)}",
        ("cluster", "cards", "alloc %", "active %", "HFU %", "MFU %", "yield %", "status"),
        left=("cluster", "status"),
    )
    clusters = answer.get("clusters") or []
    for cluster in clusters:
        table.add_row(str(cluster.get("name")), *_figures(cluster))
    if len(clusters) > 1 and answer.get("fleet"):
        table.add_section()
        table.add_row("fleet", *_figures(answer["fleet"]))
    return table


def waterfall_table(subject: Json, window_seconds: float) -> Table:
    """Where the card-time went, every step in order."""
    table = _table(
        "where every FLOP went",
        ("step", "owner", "pts", "cards", "EFLOP", "kWh", "$"),
        left=("step", "owner"),
    )
    for step in subject.get("waterfall") or []:
        seconds = step.get("card_seconds")
        held = None if seconds is None or not window_seconds else seconds / window_seconds
        table.add_row(
            str(step.get("step")),
            str(step.get("owner") or number.UNKNOWN),
            number.points(step.get("share")),
            number.cards(held),
            number.quantity(step.get("flops"), _EXA),
            number.quantity(step.get("kwh")),
            number.quantity(step.get("usd")),
        )
    return table


def free_cards(subject: Json) -> str:
    """What is known of the demand for free cards; empty where nothing is free or nobody knows."""
    cards = subject.get("cards") or {}
    if not cards.get("free") or cards.get("free_demand") is None:
        return ""
    waited, idle = (number.cards(cards.get(name)) for name in ("free_demand", "free_no_demand"))
    return f"of {number.cards(cards['free'])} free cards {waited} are waited for, {idle} are not"


def outages_table(outages: Iterable[Json], now: datetime) -> Table:
    """One line per outage, with the buckets that lost most."""
    table = _table(
        "outages",
        ("cluster", "rule", "state", "since", "now %", "line %", "lost, pts"),
        left=("cluster", "rule", "state", "since", "lost, pts"),
    )
    for outage in outages:
        subjects = outage.get("subjects")  # of a rule that counts: its figure is no percentage
        line = outage.get("threshold") if subjects is None else None
        table.add_row(
            str(outage.get("cluster") or number.UNKNOWN),
            str(outage.get("rule")),
            str(outage.get("state")),
            age(outage.get("since"), now),
            number.percent(outage.get("value"), line=line) if subjects is None else f"{subjects:,}",
            number.percent(line),
            lost(outage.get("lost_points") or {}),
        )
    return table


def cards_table(node: str, cards: Sequence[Json]) -> Table:
    """One line per card of a node."""
    table = _table(
        node,
        ("slot", "state", "job", "HFU %", "MFU %", "W", "°C"),
        left=("slot", "state", "job"),
    )
    for card in cards:
        hfu, mfu = card.get("hfu") or {}, card.get("mfu") or {}
        table.add_row(
            str(card.get("slot") or number.UNKNOWN),
            str(card.get("bucket") or card.get("state") or number.UNKNOWN),
            str(card.get("job") or number.UNKNOWN),
            number.percent(hfu.get("value")),
            number.span(mfu.get("lo"), mfu.get("hi"), mfu.get("value"), line=MFU_LINE),
            number.quantity(card.get("power_watts") or card.get("power_watts_max")),
            number.quantity(card.get("temperature_celsius") or card.get("temperature_celsius_max")),
        )
    return table


def ranks_table(title: str, ranks: Iterable[Json]) -> Table:
    """One line per slot of a capture. Args: ranks: what `job.summary` says of each."""
    table = _table(
        title,
        ("node", "slot", "readings", "per s", "SM %", "SM min %", "MHz", "W"),
        left=("node", "slot"),
    )
    for rank in ranks:
        table.add_row(
            *(str(rank["node"]), str(rank["slot"]), str(rank["readings"])),
            number.quantity(rank["readings_per_second"]),
            number.percent(rank["sm_active_mean"]),
            number.percent(rank["sm_active_min"]),
            number.quantity(rank["sm_clock_mhz_mean"]),
            number.quantity(rank["power_watts_mean"]),
        )
    return table


def teams_table(answer: Json) -> Table:
    """One line per team: what it held, and what became of that."""
    table = _table(
        f"teams · {window(answer)}",
        ("team", "card-h", "share %", "active %", "HFU %", "MFU %"),
        left=("team",),
    )
    for team in answer.get("teams") or []:
        sim = " SIM" if team.get("simulated") else ""
        table.add_row(f"{team.get('name') or '(no word)'}{sim}", *_of_team(team))
    return table


def team_table(answer: Json) -> Table:
    """A team's part of every cluster."""
    table = _table(
        f"{answer.get('name')} · {window(answer)}",
        ("cluster", "card-h", "active %", "HFU %", "MFU %"),
        left=("cluster",),
    )
    for part in answer.get("clusters") or []:
        held, _, *figures = _of_team(part)
        table.add_row(str(part.get("name")), held, *figures)
    return table


def _of_team(team: Json) -> tuple[str, ...]:
    held, mfu = team.get("card_seconds"), team.get("mfu") or {}
    active = (team.get("buckets") or {}).get("ACTIVE", 0.0)
    return (
        number.quantity(None if held is None else held / 3_600),
        number.percent(team.get("share")),
        number.percent(active / held if held else None),
        number.percent(_value(team, "hfu")),
        number.span(mfu.get("lo"), mfu.get("hi"), mfu.get("value")),
    )


def subject_table(name: str, subject: Json) -> Table:
    """The figures of one cluster or node on one line."""
    table = _table(
        name,
        ("cards", "alloc %", "active %", "HFU %", "MFU %", "yield %", "status"),
        left=("status",),
    )
    table.add_row(*_figures(subject))
    return table


def window(answer: Json) -> str:
    """``15 min to 14:05:10 UTC`` of the window that an answer used."""
    end = moment(answer.get("end"))
    seconds = answer.get("window_s")
    if end is None or not seconds:
        return number.UNKNOWN
    length = f"{seconds / 60:g} min" if seconds < 7_200 else f"{seconds / 3_600:g} h"
    return f"{length} to {end:%Y-%m-%d %H:%M:%S} UTC"


def moment(text: object) -> datetime | None:
    """The moment that an RFC 3339 text says, or None."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None


def age(text: object, now: datetime) -> str:
    """``23 min`` since a moment."""
    since = moment(text)
    if since is None:
        return number.UNKNOWN
    minutes = max(0.0, (now - since).total_seconds() / 60)
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 2_880 else f"{minutes / 1_440:.0f} d"


def lost(points: Mapping[str, float]) -> str:
    """``FREE 3.1 · MISSING 1.6``: the largest three of points of 100."""
    largest = sorted(points.items(), key=lambda item: -item[1])[:3]
    return " · ".join(f"{name} {value:.1f}" for name, value in largest) or number.UNKNOWN


def _figures(subject: Json) -> tuple[str, ...]:
    mfu = subject.get("mfu") or {}
    lines = {o.get("rule"): o.get("threshold") for o in subject.get("outages") or []}
    return (
        number.cards((subject.get("cards") or {}).get("in_service")),
        number.percent(
            _value(subject, "allocation"), line=lines.get("allocation", ALLOCATION_LINE)
        ),
        number.percent(_value(subject, "active_allocation")),
        number.percent(_value(subject, "hfu")),
        number.span(
            mfu.get("lo"), mfu.get("hi"), mfu.get("value"), line=lines.get("mfu", MFU_LINE)
        ),
        number.percent(_value(subject, "yield")),
        _status(subject),
    )


def _status(subject: Json) -> str:
    status = str(subject.get("status") or number.UNKNOWN)
    if subject.get("simulated") and status != "simulated":
        status = f"{status} SIM"
    firing = any(o.get("state") in ("firing", "standing") for o in subject.get("outages") or [])
    return f"▲ {status}" if firing else status


def _value(subject: Json, figure: str) -> float | None:
    value = (subject.get(figure) or {}).get("value")
    return None if value is None else float(value)


def _table(title: str, columns: Sequence[str], *, left: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        wide = column in ("cluster", "job", "status", "lost, pts")
        table.add_column(
            column,
            justify="left" if column in left else "right",
            overflow="fold" if wide else "ellipsis",
            no_wrap=not wide,
        )
    return table

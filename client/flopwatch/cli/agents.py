"""`agents`: which agents report, in which version, how far behind they are, and to whom."""

from __future__ import annotations

import json as json_module
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli import number, table
from flopwatch.cli.options import ApiUrl, Json

LATE_SECONDS: Final = 60.0
"""An agent that was not heard for so long is late: it speaks every 10 s."""
LIFE_LEFT_MIN: Final = 0.25
"""A certificate is renewed at about two thirds of its life: one with less left than this was not."""
_KEYS: Final = {
    "version": "version",
    "cluster": "cluster",
    "driver": "driver_state",
    "collector": "collector",
}

Record = Mapping[str, Any]


def agents(
    by: Annotated[
        Literal["version", "cluster", "driver", "collector"] | None,
        typer.Option(help="One line per version, cluster, state of the driver, or collector."),
    ] = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="Only this cluster.")] = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Which agents report, to this collector or to one that shares its control store."""
    answer = Api(api).get("/api/v1/agents", cluster=cluster)
    now = datetime.now(UTC)
    listed: list[Record] = answer.data["agents"]
    if by is None:
        shown: Table = _agents(listed, now)
        said = answer.text
    else:
        groups = grouped(listed, _KEYS[by], now)
        shown = _groups(groups, by)
        said = json_module.dumps(groups)
    if json:
        typer.echo(said)
    elif listed:
        Console(highlight=False).print(shown)
    else:
        typer.echo("no agent has reported yet")
    return 0


def grouped(listed: Sequence[Record], key: str, now: datetime) -> list[dict[str, Any]]:
    """Return per value of a key: agents, those that are late, left, or behind; the largest group first."""
    groups: dict[str | None, list[Record]] = {}
    for agent in listed:
        groups.setdefault(agent.get(key), []).append(agent)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), str(item[0])))
    return [
        {
            key: value,
            "agents": len(of),
            "late": sum(late(a, now) for a in of),
            "left": sum(bool(a["left"]) for a in of),
            "behind": sum(bool(a["spool_batches"]) for a in of),
        }
        for value, of in ordered
    ]


def late(agent: Record, now: datetime) -> bool:
    """Whether a real agent that took no leave was not heard for a minute."""
    heard = table.moment(agent["heard"])
    if heard is None or agent["left"] or agent["simulated"]:
        return False
    return (now - heard).total_seconds() > LATE_SECONDS


def life_left(agent: Record, now: datetime) -> float | None:
    """Return which share of its certificate's life an agent has left, 0 when it is over; None: none shown."""
    starts = table.moment(agent.get("certificate_starts"))
    expires = table.moment(agent.get("certificate_expires"))
    if starts is None or expires is None or expires <= starts:
        return None
    return max(0.0, (expires - now) / (expires - starts))


def _certificate(agent: Record, now: datetime) -> str:
    left = life_left(agent, now)
    if left is None:
        return number.UNKNOWN
    return f"▲ {left:.0%}" if left < LIFE_LEFT_MIN else f"{left:.0%}"


def _agents(listed: Sequence[Record], now: datetime) -> Table:
    """Return a line per agent; what no agent has gets no column."""
    hearers = _short({agent.get("collector") for agent in listed})
    lost = any(agent["rows_dropped"] for agent in listed)
    certificates = any(life_left(agent, now) is not None for agent in listed)
    several = len(hearers) > 1
    last = ["lost"] * lost + ["clock"] + ["cert"] * certificates + ["to"] * several
    shown = _table("agents", ["cluster", "node", "version", "heard", "driver", "spool", *last])
    for agent in listed:
        heard = "left" if agent["left"] else table.age(agent["heard"], now)
        skew = agent["clock_skew_ms"]
        shown.add_row(
            agent["cluster"],
            agent["node"] + (" SIM" if agent["simulated"] else ""),
            str(agent["version"] or number.UNKNOWN),
            f"▲ {heard}" if late(agent, now) else heard,
            str(agent["driver_state"] or number.UNKNOWN),
            number.cards(agent["spool_batches"]),
            *[number.cards(agent["rows_dropped"])] * lost,
            number.UNKNOWN if skew is None else f"{skew / 1000:+.1f} s",
            *[_certificate(agent, now)] * certificates,
            *[hearers[agent.get("collector")]] * several,
        )
    return shown


def _short(collectors: Set[str | None]) -> dict[str | None, str]:
    """Return what collectors are called beside each other: host, or host/process where a host has several."""
    hosts = Counter(name.partition("/")[0] for name in collectors if name)
    return {
        name: number.UNKNOWN
        if not name
        else host
        if hosts[host := name.partition("/")[0]] == 1
        else name.rpartition("/")[0]
        for name in collectors
    }


def _groups(groups: Sequence[Record], by: str) -> Table:
    shown = _table(f"agents by {by}", (by, "agents", "late", "left", "behind"))
    for group in groups:
        value = group[_KEYS[by]]
        numbers = (str(group[name]) for name in ("agents", "late", "left", "behind"))
        shown.add_row(str(value or number.UNKNOWN), *numbers)
    return shown


def _table(title: str, columns: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        wide = column in ("cluster", "node", "version", "driver", "heard", "to")
        made.add_column(
            column,
            justify="left" if wide else "right",
            overflow="fold",
            no_wrap=column not in ("cluster", "node"),
        )
    return made

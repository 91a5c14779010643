"""`check allocation`: what flopwatch says of each card beside what the scheduler says now, in words."""

from __future__ import annotations

import asyncio
import json as json_module
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli.options import ApiUrl, Json
from flopwatch_collector.roster.answers import NotAnsweredError
from flopwatch_collector.roster.said import Said, Word
from flopwatch_collector.roster.slurm import Reading, judge
from flopwatch_collector.roster.slurm_commands import SlurmCommands, found
from flopwatch_collector.roster.slurm_layout import jobs_of, nodes_of
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import ALLOCATED_BUCKETS

app = typer.Typer(help="Compare what flopwatch says with what others say.", no_args_is_help=True)

NODES_ASKED_MAX: Final = 200
"""Nodes that differ are asked for one by one, to say which card; beyond this their numbers must do."""

_ALIKE: Final = {
    **{bucket.name: "allocated" for bucket in ALLOCATED_BUCKETS},
    "FREE": "free",
    "STRANDED": "free",
    "MISSING": "lost",
    "FAILED": "lost",
    "MAINT": "maintenance",
    "HELD": "held",
    "UNSEEN": "unseen",
}
"""What both must agree on. Which cards are at work, or too few on their node, no scheduler counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A card, or a node where ``slot`` is None, of which both say different things.

    Attributes:
        flopwatch, slurm: what each says; None: nothing.
    """

    node: str
    slot: str | None
    flopwatch: str | None
    slurm: str | None
    reason: str


@app.callback()
def check() -> None:
    """Compare what flopwatch says with what others say."""


@app.command()
def allocation(
    cluster: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its name in flopwatch; left out: Slurm's ClusterName."),
    ] = None,
    order: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="The collector's file, for its section [slurm]."
        ),
    ] = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Node by node, where flopwatch and `sinfo`/`squeue` of this host differ, and why.

    Ends with 0 where they agree, 1 where they differ, 2 where they cannot be compared.
    """
    if not found(os.environ):
        raise UsageError(
            "no slurm.conf and commands of Slurm here: run it on a host of the cluster, or set SLURM_CONF"
        )
    reading, named = _configured(order)
    try:
        answers = asyncio.run(SlurmCommands().ask())
        asked = Api(api)
        name = cluster or named or answers.cluster
        slots = _slots(asked.get("/api/v1/inventory", cluster=name).data)
        if not slots:
            raise UsageError(
                f"flopwatch knows no card of cluster {name!r}; name another: --cluster"
            )
        said = judge(
            nodes_of(answers.nodes),
            jobs_of(answers.jobs),
            slots,
            reading=reading,
            closed_partitions=answers.closed_partitions,
        )
    except NotAnsweredError as exc:
        raise UsageError(f"Slurm does not answer: {exc}") from exc
    listed = asked.get("/api/v1/nodes", cluster=name).data["nodes"]
    differ = differing_nodes(listed, said)
    details = {
        node: asked.subject("nodes", node, cluster=name, window="1m").data["cards_list"]
        for node in differ[:NODES_ASKED_MAX]
        if node in slots
    }
    differences = [*_strangers(said, slots), *card_differences(differ, details, said)]
    summary = _summary(listed, said)
    if json:
        shown = {
            "cluster": name,
            **summary,
            "differences": [asdict(d) for d in differences],
            "doubts": [asdict(d) for d in said.doubts],
        }
        typer.echo(json_module.dumps(shown, indent=2))
    else:
        _print(name, summary, differences, said)
    return 1 if differences else 0


def differing_nodes(listed: Iterable[Mapping[str, Any]], said: Said) -> list[str]:
    """Return the nodes whose numbers of cards by state differ, in flopwatch's order."""
    theirs = _states_by_node(said.words)
    return [
        node["node"]
        for node in listed
        if node["node"] in theirs and _states(node["cards"]) != theirs[node["node"]]
    ]


def card_differences(
    differ: Iterable[str], details: Mapping[str, list[Mapping[str, Any]]], said: Said
) -> list[Difference]:
    """Return what differs on these nodes, card by card."""
    words: dict[tuple[str, str], Word] = {}
    for word in said.words:
        before = words.get((word.node, word.slot))
        if before is None or before.weight < word.weight:
            words[word.node, word.slot] = word
    found_differences = []
    for node in differ:
        for card in details.get(node, ()):
            other = words.get((node, card["slot"]))
            mine = _ALIKE.get(card["bucket"] or "")
            if other is None or mine == _ALIKE[other.bucket.name]:
                continue
            found_differences.append(
                Difference(
                    node=node,
                    slot=card["slot"],
                    flopwatch=card["bucket"],
                    slurm=other.bucket.name,
                    reason=_reason(card, other),
                )
            )
        if node not in details:
            found_differences.append(
                Difference(
                    node=node, slot=None, flopwatch=None, slurm=None, reason="its numbers differ"
                )
            )
    return found_differences


def _reason(card: Mapping[str, Any], word: Word) -> str:
    """Say why a card may be in different states."""
    row = card.get("row")
    told = f"Slurm: {word.why}"
    if card["bucket"] in ("UNSEEN", "MISSING"):
        return f"no agent speaks for it, and the collector has no roster; {told}"
    if row is None:
        return f"no agent speaks for it: the last roster, at most 5 minutes old; {told}"
    if row["rogue"]:
        return f"a process is on it that no allocation covers; {told}"
    if card["bucket"] == "FAILED":
        return f"its agent says that the card cannot work; {told}"
    by = row.get("allocation_source") or card.get("allocation_source") or "its agent"
    return f"flopwatch by {by} and the last roster, up to a minute old; {told}"


def _strangers(said: Said, slots: Mapping[str, Iterable[str]]) -> list[Difference]:
    """Return nodes that only one of both knows, and what Slurm says that is in doubt."""
    known = {word.node for word in said.words}
    doubted = {doubt.node for doubt in said.doubts}
    return [
        *(
            Difference(
                node=node,
                slot=None,
                flopwatch=None,
                slurm="has cards",
                reason="in no inventory and without an agent: its cards are not counted",
            )
            for node in said.unknown_nodes
        ),
        *(
            Difference(
                node=node,
                slot=None,
                flopwatch="has cards",
                slurm=None,
                reason="Slurm does not list it: its cards count, and it can give them to nobody",
            )
            for node in slots
            if node not in known and node not in doubted
        ),
    ]


def _slots(data: Mapping[str, Any]) -> dict[str, list[str]]:
    records = next((value for value in data.values() if isinstance(value, list)), [])
    slots: dict[str, list[str]] = {}
    for record in records:
        if record["state"] not in ("retired", "ended") and record["device_kind"] != "cpu":
            slots.setdefault(record["node"], []).append(record["slot"])
    return slots


def _configured(path: Path | None) -> tuple[Reading, str | None]:
    """Return how the collector reads Slurm, where its file is here."""
    from flopwatch_collector import config

    if path is None and not config.DEFAULT_PATH.exists():
        return Reading(), None
    section = config.load(path, {}, {}).slurm
    return section.reading(), section.cluster


def _states(cards: Mapping[str, int]) -> Counter[str]:
    states: Counter[str] = Counter()
    for bucket, count in cards.items():
        states[_ALIKE[bucket]] += count
    return states


def _states_by_node(words: Iterable[Word]) -> dict[str, Counter[str]]:
    """Return node → cards by state, each slot once."""
    slots = {(word.node, word.slot): word.bucket for word in words}
    states: dict[str, Counter[str]] = {}
    for (node, _), bucket in slots.items():
        states.setdefault(node, Counter())[_ALIKE[bucket.name]] += 1
    return states


def _summary(listed: Iterable[Mapping[str, Any]], said: Said) -> dict[str, dict[str, int]]:
    mine: Counter[str] = Counter()
    for node in listed:
        mine += _states(node["cards"])
    theirs: Counter[str] = Counter()
    for states in _states_by_node(said.words).values():
        theirs += states
    return {"flopwatch": dict(sorted(mine.items())), "slurm": dict(sorted(theirs.items()))}


def _print(
    name: str, summary: Mapping[str, Mapping[str, int]], differences: list[Difference], said: Said
) -> None:
    console = Console(highlight=False)
    for source, states in summary.items():
        total = sum(states.values())
        parts = ", ".join(f"{count} {state}" for state, count in states.items())
        console.print(f"{name} by {source}: {total} cards: {parts}")
    for doubt in said.doubts:
        console.print(f"in doubt: {doubt.text}\n→ {doubt.action}")
    if said.hidden_cards:
        console.print(
            f"{said.hidden_cards} allocated cards belong to jobs that this user may not see: PrivateData"
        )
    if not differences:
        console.print("no differences")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "slot", "flopwatch", "slurm"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in differences:
        table.add_row(one.node, one.slot or "", one.flopwatch or "–", one.slurm or "–", one.reason)
    console.print(table)

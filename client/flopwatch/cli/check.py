"""`check allocation`: what flopwatch says of each card beside what the scheduler says now, in words."""

from __future__ import annotations

import asyncio
import json as json_module
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli import check_differences, kubectl
from flopwatch.cli.check_differences import Difference, Told
from flopwatch.cli.options import ApiUrl, Json
from flopwatch_collector import config
from flopwatch_collector.roster import kubernetes
from flopwatch_collector.roster.answers import NotAnsweredError
from flopwatch_collector.roster.slurm import judge
from flopwatch_collector.roster.slurm_commands import SlurmCommands, found
from flopwatch_collector.roster.slurm_layout import jobs_of, nodes_of
from flopwatch_collector.roster.slurm_reservations import reservations_in
from flopwatch_proto.errors import UsageError

app = typer.Typer(help="Compare what flopwatch says with what others say.", no_args_is_help=True)

NODES_ASKED_MAX: Final = 2_000
"""Nodes are compared card by card with one request each, those that differ first; never more than this."""

Slots = Mapping[str, Mapping[str, str]]
"""Node → slot → UUID of its card, empty where it is not known."""


class Scheduler(StrEnum):
    """Who is compared with."""

    SLURM = "slurm"
    KUBERNETES = "kubernetes"


@app.callback()
def check() -> None:
    """Compare what flopwatch says with what others say."""


@app.command()
def allocation(
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Its name in flopwatch; left out: of the collector's file, else Slurm's ClusterName.",
        ),
    ] = None,
    scheduler: Annotated[
        Scheduler | None,
        typer.Option(help="Left out: Slurm where this host has a slurm.conf, else Kubernetes."),
    ] = None,
    order: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The collector's file, for its sections [slurm] and [kubernetes].",
        ),
    ] = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Node by node, where flopwatch and the scheduler differ in states and jobs, and why.

    Asks `sinfo` and `squeue` of this host, or `kubectl` with its current context. Ends with 0 where they
    agree, 1 where they differ or some nodes were not compared, 2 where they cannot be compared.
    """
    wanted = scheduler or _here()
    settings = _settings(order)
    asked = Api(api)
    ask = _slurm if wanted is Scheduler.SLURM else _kubernetes
    try:
        name, slots, told = ask(asked, cluster, settings)
    except NotAnsweredError as exc:
        raise UsageError(f"{wanted.title()} does not answer: {exc}") from exc
    listed = asked.get("/api/v1/nodes", cluster=name).data["nodes"]
    nodes = [n for n in check_differences.nodes_to_ask(listed, told) if n in slots]
    details = {
        node: asked.subject("nodes", node, cluster=name, window="1m").data["cards_list"]
        for node in nodes[:NODES_ASKED_MAX]
    }
    differences = [
        *check_differences.strangers(told, slots),
        *check_differences.card_differences(details, told),
    ]
    summary = check_differences.summary(listed, told)
    left = len(nodes) - len(details)
    if json:
        shown = {
            "cluster": name,
            **summary,
            "differences": [d.shown(told.source) for d in differences],
            "doubts": [asdict(d) for d in told.said.doubts],
            "nodes_not_compared": left,
        }
        typer.echo(json_module.dumps(shown, indent=2))
    else:
        _print(name, summary, differences, told, left)
    return 1 if differences or left else 0


def _here() -> Scheduler:
    """Return whose cluster this host can ask about."""
    if found(os.environ):
        return Scheduler.SLURM
    if shutil.which("kubectl"):
        return Scheduler.KUBERNETES
    raise UsageError(
        "no slurm.conf and commands of Slurm here, and no kubectl: run it where one of them is, "
        "or set SLURM_CONF"
    )


def _slurm(
    asked: Api, cluster: str | None, settings: config.CollectorConfig
) -> tuple[str, Slots, Told]:
    """Return the cluster's name, its slots, and what Slurm says of them."""
    if not found(os.environ):
        raise UsageError(
            "no slurm.conf and commands of Slurm here: run it on a host of the cluster, or set SLURM_CONF"
        )
    answers = asyncio.run(SlurmCommands().ask())
    name = cluster or settings.slurm.cluster or answers.cluster
    slots = _slots(asked, name)
    said = judge(
        nodes_of(answers.nodes),
        jobs_of(answers.jobs),
        {node: list(of) for node, of in slots.items()},
        reading=settings.slurm.reading(),
        closed_partitions=answers.closed_partitions,
        reservations=reservations_in(answers.reservations),
    )
    held: dict[str, dict[str, float | None]] = {}
    for word in said.words:
        if word.job:
            of = held.setdefault(word.node, {})
            of[word.job] = (of.get(word.job) or 0.0) + word.weight
    return name, slots, Told(source="slurm", said=said, held=held)


def _kubernetes(
    asked: Api, cluster: str | None, settings: config.CollectorConfig
) -> tuple[str, Slots, Told]:
    """Return the cluster's name, its slots, and what Kubernetes says of them."""
    name = cluster or settings.kubernetes.cluster
    if name is None:
        raise UsageError(
            "--cluster: to compare with Kubernetes, name the cluster as flopwatch calls it"
        )
    listed = kubectl.listed()
    slots = _slots(asked, name)
    held, unhealthy = kubernetes.held_cards(listed, slots)
    said = kubernetes.judge(listed, slots)
    return name, slots, Told(source="kubernetes", said=said, held=held, unhealthy=unhealthy)


def _slots(asked: Api, cluster: str) -> dict[str, dict[str, str]]:
    data = asked.get("/api/v1/inventory", cluster=cluster).data
    records = next((value for value in data.values() if isinstance(value, list)), [])
    slots: dict[str, dict[str, str]] = {}
    for record in records:
        if record["state"] not in ("retired", "ended") and record["device_kind"] != "cpu":
            slots.setdefault(record["node"], {})[record["slot"]] = record["device_uuid"] or ""
    if not slots:
        raise UsageError(f"flopwatch knows no card of cluster {cluster!r}; name another: --cluster")
    return slots


def _settings(path: Path | None) -> config.CollectorConfig:
    """Return how the collector reads the schedulers, where its file is here."""
    if path is None and not config.DEFAULT_PATH.exists():
        return config.CollectorConfig()
    return config.load(path, {}, {})


def _print(
    name: str,
    summary: Mapping[str, Mapping[str, int]],
    differences: Sequence[Difference],
    told: Told,
    left: int,
) -> None:
    console = Console(highlight=False)
    for source, states in summary.items():
        total = sum(states.values())
        parts = ", ".join(f"{count} {state}" for state, count in states.items())
        console.print(f"{name} by {source}: {total} cards: {parts}")
    held = sum(cards or 0 for jobs in told.held.values() for cards in jobs.values())
    console.print(f"{told.source}: {held:g} cards are held by jobs that it names")
    for doubt in told.said.doubts:
        console.print(f"in doubt: {doubt.text}\n→ {doubt.action}")
    if told.said.hidden_cards:
        console.print(
            f"{told.said.hidden_cards} allocated cards belong to jobs that this user may not see: "
            "PrivateData"
        )
    if left:
        console.print(f"{left} nodes more were not compared card by card")
    if not differences:
        console.print("no differences")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "slot", "flopwatch", told.source):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in differences:
        table.add_row(one.node, one.slot or "", one.flopwatch or "–", one.other or "–", one.reason)
    console.print(table)

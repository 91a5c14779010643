"""`bringup`: a node, a rack, a pod is accepted step by step, and only then put in service."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.bringup import scope, stages
from flopwatch.bringup.here import Here
from flopwatch.bringup.node import Node
from flopwatch.bringup.stages import Kept, Stage
from flopwatch.cli import host, progress
from flopwatch.cli.inventory import DEFAULT_FILE
from flopwatch.cli.options import ApiUrl, Json
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_agent.reading import Reading
from flopwatch_collector import inventory as record
from flopwatch_collector import inventory_diff, inventory_file
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import SlotState

DAY_MS: Final = 86_400_000
CHECKS_SHOWN: Final = 8
_BAD_NEWS: Final = 1

app: Final = typer.Typer(
    help="Accept a node, a rack or a pod step by step, and only then put it in service.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[
    Path | None,
    typer.Option(
        "--inventory",
        envvar="FLOPWATCH_COLLECTOR__INVENTORY",
        metavar="FILE",
        help="The inventory file.",
    ),
]
Cluster = Annotated[str, typer.Option(metavar="NAME", help="The cluster of the nodes.")]
State = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Where it is kept how far the bring-up got.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew, whatever passed before.")]
Days = Annotated[
    float, typer.Option("--days", min=0.01, help="An acceptance of longer ago does not count.")
]
Keep = Annotated[
    bool, typer.Option("--judge-only", help="Put nothing in service, whatever the verdict.")
]


@app.command("node")
def node(
    device: Annotated[
        str, typer.Option(metavar="cards|cpu", help="cpu: accept the processor of a host without.")
    ] = "cards",
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="Load the processor in the cards' place; keep and report nothing."
        ),
    ] = False,
    inventory: File = None,
    cluster: Cluster = "default",
    name: Annotated[
        str, typer.Option("--name", metavar="NODE", help="This node; left out: its host name.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data directory of this host's agent.")
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            "--api", envvar="FLOPWATCH_API", metavar="URL", help="Whose fleet to compare with."
        ),
    ] = None,
    state: State = None,
    restart: Restart = False,
    json: Json = False,
) -> int:
    """Accept this node: driver, counts, health, corruption, products, links, heat, its fleet.

    Stops at the first stage that fails; run it again to go on from there. Loads every card for a minute or
    so. Ends with 0 where every card passed, 1 where one did not.
    """
    if device not in ("cards", "cpu"):
        raise UsageError(f"--device {device!r}: cards or cpu")
    where = data or host.data_directory()
    called = name or socket.gethostname()
    here = Here(
        cpu=device == "cpu",
        rehearsal=rehearse,
        data=where,
        inventory=None if inventory is None else (inventory, cluster, called),
        api=api,
    )
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    cards = here.readings()
    if not cards:
        said = "; ".join(check.text for check in here.driver())
        raise UsageError(f"no card to accept ({said}); --device cpu accepts the processor")
    path = state or where / ("bringup-rehearsal.json" if rehearse else "bringup.json")
    subject = f"{called} {device}{' rehearsal' if rehearse else ''}"
    run = _accepted(here, cards, subject, path, restart=restart)
    title = f"{called}: {len(cards)} {'processor' if here.cpu else 'cards'}"
    return _told(title + (" · rehearsal" if rehearse else ""), run.stages, run.passed, json)


def _accepted(
    here: Here, cards: Sequence[Reading], subject: str, path: Path, *, restart: bool
) -> Node:
    """Run what is left of a node's acceptance, keep how far it got, and tell the agent the verdict."""
    now = _now()
    kept = Kept() if restart else stages.load(path)
    names = tuple(card.device.uuid or card.device.slot for card in cards)
    run = Node(here, _now, kept.still(subject, names, now), kept.results)
    with progress.counted() as bar:
        task = bar.add_task(subject, total=run.steps(len(cards)))
        for text in run.run(cards):
            bar.update(task, description=text, advance=1)
        bar.update(task, description=subject, completed=run.steps(len(cards)))
    results = tuple(run.results)
    stages.save(path, Kept(subject=subject, cards=names, stages=tuple(run.stages), results=results))
    if not here.rehearsal:
        here.tell(run.records(here.driver_version, now))
    return run


@app.command("rack")
def rack(
    name: Annotated[str, typer.Argument(metavar="RACK", help="Its nodes are RACK-…, or --nodes.")],
    cluster: Cluster,
    nodes: Annotated[
        str | None, typer.Option(metavar="NODES", help="Its nodes by name: r17-n[00-15].")
    ] = None,
    inventory: File = None,
    days: Days = 7.0,
    judge_only: Keep = False,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Judge a rack by its nodes' acceptances, and put it in service where every card passed."""
    path = inventory or DEFAULT_FILE
    slots = _slots(path, cluster, name, nodes)
    now = _now()
    judged = _judged(Api(api), cluster, {name: slots}, days, now)[name]
    passed = all(stage.outcome != "fail" for stage in judged)
    note = _in_service(path, slots, now) if passed and not judge_only else None
    return _told(f"rack {name}: {_size(slots)}", judged, passed, json, note)


@app.command("pod")
def pod(
    name: Annotated[str, typer.Argument(metavar="POD")],
    racks: Annotated[str, typer.Option(metavar="RACKS", help="Its racks, in order: r[01-08].")],
    cluster: Cluster,
    inventory: File = None,
    state: State = None,
    restart: Restart = False,
    days: Days = 7.0,
    judge_only: Keep = False,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Judge a pod by its racks, one after the other, then rack against rack; put it in service.

    Stops at the first rack that fails; racks that passed within a day are not judged again.
    """
    path = inventory or DEFAULT_FILE
    of = {each: _slots(path, cluster, each, None) for each in record.names_in(racks, "--racks")}
    now = _now()
    everything = [slot for slots in of.values() for slot in slots]
    subject = f"{cluster} {name} {racks}"
    places = [f"{slot.node} {slot.slot}" for slot in everything]
    kept_at = state or host.data_directory() / f"bringup-{cluster}-{name}.json"
    kept = Kept() if restart else stages.load(kept_at)
    done = {stage.name: stage for stage in kept.still(subject, places, now)}
    asked = Api(api)
    judged: list[Stage] = []
    passed = True
    for each, slots in of.items():
        if f"rack {each}" in done:
            judged.append(done[f"rack {each}"])
            continue
        found = _judged(asked, cluster, {each: slots}, days, now)[each]
        checks = tuple(check for stage in found for check in stage.checks)
        judged.append(Stage(name=f"rack {each}", checks=checks, ended_unix_ms=now))
        passed = judged[-1].outcome != "fail"
        if not passed:
            break
    if passed:
        ceilings = asked.get("/api/v1/ceilings", cluster=cluster).data
        judged.append(scope.level(of, ceilings, now))
        passed = judged[-1].outcome != "fail"
    stages.save(kept_at, Kept(subject=subject, cards=tuple(places), stages=tuple(judged)))
    note = _in_service(path, everything, now) if passed and not judge_only else None
    return _told(f"pod {name}: {len(of)} racks, {_size(everything)}", judged, passed, json, note)


def _judged(
    api: Api, cluster: str, racks: dict[str, list[record.Slot]], days: float, now_unix_ms: int
) -> dict[str, list[Stage]]:
    window = f"{max(10, round(2 * days * 86_400))}s"
    accepted = api.get("/api/v1/bringups", cluster=cluster, window=window).data["bringups"]
    ceilings = api.get("/api/v1/ceilings", cluster=cluster).data
    return {
        name: scope.rack(
            slots,
            accepted,
            ceilings,
            now_unix_ms=now_unix_ms,
            age_ms_max=round(days * DAY_MS),
        )
        for name, slots in racks.items()
    }


def _slots(path: Path, cluster: str, rack: str, nodes: str | None) -> list[record.Slot]:
    """Return the slots of a rack, as they stand."""
    names = None if nodes is None else set(record.names_in(nodes, "--nodes"))
    stands = inventory_diff.at(record.load(path), _now()).values()
    found = [
        slot
        for slot in stands
        if slot.cluster == cluster
        and (slot.node in names if names is not None else slot.node.startswith(f"{rack}-"))
    ]
    if not found:
        what = f"node {rack}-…" if names is None else f"one of {nodes}"
        raise UsageError(f"{path}: no {what} in cluster {cluster!r}; name its nodes: --nodes")
    if names is not None and (absent := names - {slot.node for slot in found}):
        raise UsageError(f"--nodes: {min(absent)!r} is not in cluster {cluster!r} of {path}")
    return found


def _in_service(path: Path, slots: Sequence[record.Slot], now_unix_ms: int) -> str:
    wanted = [inventory_file.place(slot) for slot in slots]
    made, changed = inventory_file.with_state(
        record.load(path), wanted, SlotState.IN_SERVICE, now_unix_ms
    )
    if changed:
        inventory_file.rewritten(path, made)
    return (
        f"{path}: {changed} slots are in service from now on; a collector reads it when it starts"
    )


def _told(
    title: str, told: Sequence[Stage], passed: bool, json: bool, note: str | None = None
) -> int:
    cards = sorted({check.card for stage in told for check in stage.checks if check.card})
    verdicts = {card: stages.reason(told, card) for card in cards}
    if json:
        said = {
            "passed": passed,
            "stages": [msgspec.to_builtins(s) | {"outcome": s.outcome} for s in told],
            "cards": [{"card": c, "passed": not why, "reason": why} for c, why in verdicts.items()],
            "note": note,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(said)).decode())
        return 0 if passed else _BAD_NEWS
    console = Console(highlight=False)
    console.print(_table(title, told))
    wrong = {card: why for card, why in verdicts.items() if why}
    if passed:
        console.print(f"passed: every stage, {len(cards)} card(s)")
    else:
        console.print(
            f"failed at {told[-1].name}: {len(wrong) or 'no'} of {len(cards)} cards are named"
        )
    if note:
        console.print(note, soft_wrap=True)
    return 0 if passed else _BAD_NEWS


def _table(title: str, told: Iterable[Stage]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    for stage in told:
        checks = sorted(stage.checks, key=lambda check: check.outcome != "fail")
        lines = [f"{c.card}: {c.text}" if c.card else c.text for c in checks[:CHECKS_SHOWN]]
        if len(checks) > CHECKS_SHOWN:
            lines.append(f"… {len(checks) - CHECKS_SHOWN} more: --json")
        verdict = stage.outcome.replace("_", " ") + (" (before)" if stage.before else "")
        table.add_row(stage.name, verdict, "\n".join(lines))
    return table


def _size(slots: Sequence[record.Slot]) -> str:
    return f"{len({slot.node for slot in slots})} nodes, {len(slots)} cards"


def _now() -> int:
    return wall_unix_ms(SystemClock())

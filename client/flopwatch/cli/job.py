"""`flopwatch job …`: the answer about one job, and its ranks at full resolution."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console

from flopwatch.api import DEFAULT_URL, Api
from flopwatch.cli import table
from flopwatch.cli.job_answer import JobGroup, show
from flopwatch.cli.options import ApiUrl, Json
from flopwatch.cli.progress import counted
from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration

POLL_SECONDS: Final = 1.0
BEGINS_SECONDS: Final = 3.0
"""The collector lets a window begin so much later: by then every node knows of it."""
NAMED_MAX: Final = 10

app: Final = typer.Typer(
    cls=JobGroup,
    help="A job: `job ID` answers why it loses what it loses; `job capture ID` reads its ranks.",
    rich_markup_mode=None,
)
app.command("show")(show)


@app.command("capture")
def capture(
    name: Annotated[str, typer.Argument(metavar="ID", help="The job, as its rows name it.")],
    length: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="How long, from now: 1s … 15m.")
    ] = "60s",
    rate: Annotated[int, typer.Option(min=1, max=10, help="Readings a second.")] = 10,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where several clusters have the job.")
    ] = None,
    wait: Annotated[
        str, typer.Option(metavar="DURATION", help="How long to wait for answers after it.")
    ] = "60s",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every reading: .json, else CSV.")
    ] = None,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Ask every rank of a job for its readings, up to ten a second.

    Exit code 1: some ranks did not answer in time; they are named.
    """
    seconds, patience = _seconds("--for", length), _seconds("--wait", wait)
    if output is not None and not output.resolve().parent.is_dir():
        raise UsageError(f"--output: there is no directory {output.resolve().parent}")
    asked: dict[str, Any] = {"job": name, "seconds": seconds, "readings_per_second": rate}
    if cluster is not None:
        asked["cluster"] = cluster
    collector = Api(api)
    said = collector.post("/api/v1/captures", {**asked, "by": _me()}).data
    path = f"/api/v1/captures/{said['id']}"
    said = _await_answers(collector, path, said, seconds + BEGINS_SECONDS, patience)
    if output is not None and output.suffix != ".json":
        with output.open("wb") as file:
            collector.download(f"{path}.csv", file)
    elif output is not None or json:
        whole = {**said, "readings": list(_readings(collector, path, said))}
        text = msgspec.json.encode(whole).decode()
        if output is None:
            typer.echo(text)
        else:
            output.write_text(text + "\n", encoding="utf-8")
    if not json:
        ranks = [summary(slot) for slot in _readings(collector, path, said)]
        Console(highlight=False).print(table.ranks_table(f"{name} · capture {said['id']}", ranks))
    return _complain(said)


def summary(slot: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a slot's readings come to; None where nothing is known.

    ``readings_per_second`` is what was achieved, over the time from the first to the last reading.
    """
    times: Sequence[int] = slot["taken_unix_ms"]
    spent_ms = max(times, default=0) - min(times, default=0)
    columns = slot["columns"]
    active = _known(columns, "sm_active_ratio")
    return {
        "node": slot["node"],
        "slot": slot["slot"],
        "readings": len(times),
        "readings_per_second": (len(times) - 1) * 1000 / spent_ms if spent_ms else None,
        "sm_active_mean": _mean(active),
        "sm_active_min": min(active, default=None),
        "sm_clock_mhz_mean": _mean(_known(columns, "sm_clock_mhz")),
        "power_watts_mean": _mean(_known(columns, "power_watts")),
    }


def _known(columns: Mapping[str, Sequence[float | None]], name: str) -> list[float]:
    return [value for value in columns.get(name, ()) if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _await_answers(
    collector: Api, path: str, said: dict[str, Any], seconds: float, patience: float
) -> dict[str, Any]:
    """Watch the answers come; return what the API says when all are there, or time is up."""
    began = time.monotonic()
    with counted() as progress:
        bar = progress.add_task("recording", total=said["slots"])
        while said["answered"] < said["slots"] and time.monotonic() < began + seconds + patience:
            if time.monotonic() > began + seconds:
                progress.update(bar, description="ranks answered")
            time.sleep(POLL_SECONDS)
            said = collector.get(path, readings="false").data
            progress.update(bar, completed=said["answered"])
    return said


def _readings(collector: Api, path: str, said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the readings of every slot, asked for node by node: together they may be too large."""
    for node in sorted({rank["node"] for rank in said["ranks"]}):
        yield from collector.get(path, node=node).data["readings"]


def _complain(said: Mapping[str, Any]) -> int:
    """Name the ranks that did not answer; return the exit code."""
    silent = [rank for rank in said["ranks"] if rank["state"] != "answered"]
    if not silent:
        return 0
    names = ", ".join(f"{rank['node']} {rank['slot']}" for rank in silent[:NAMED_MAX])
    more = f" and {len(silent) - NAMED_MAX} more" if len(silent) > NAMED_MAX else ""
    typer.echo(
        f"flopwatch: {len(silent)} of {said['slots']} ranks did not answer in time: {names}{more}",
        err=True,
    )
    return 1


def _seconds(flag: str, text: str) -> float:
    try:
        return float(Duration.parse(text))
    except ValueError as exc:
        raise UsageError(f"{flag}: {exc}") from exc


def _me() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # no name for this uid
        return socket.gethostname()

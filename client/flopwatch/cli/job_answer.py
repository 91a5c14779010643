"""`flopwatch job ID`: the twenty-minute answer about one job."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from flopwatch.api import DEFAULT_URL, Answer, Api
from flopwatch.cli import job_table
from flopwatch.cli.options import ApiUrl, Json
from flopwatch.cli.progress import counted
from flopwatch_proto.errors import UsageError

LOOKED_BACK_S: Final = 60
POLL_SECONDS: Final = 1.0
WAIT_SECONDS: Final = 45.0


class JobGroup(TyperGroup):
    """A group whose first word may also be a job: `job ID` is `job show ID`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` before what names no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="The job, as its rows name it.")],
    window: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How far to look back; left out: the whole attempt."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where several clusters have the job.")
    ] = None,
    attempt: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of a job that was requeued; else the newest."),
    ] = None,
    receipt: Annotated[
        bool, typer.Option("--receipt", help="Print one line for an epilog or a comment.")
    ] = False,
    stragglers: Annotated[
        bool,
        typer.Option(
            "--stragglers", help="Ask its nodes for the last minute at 1 Hz, and name the culprit."
        ),
    ] = False,
    api: ApiUrl = DEFAULT_URL,
    json: Json = False,
) -> int:
    """Whose the losses of a job are: verdict, bridge, peers, causes, stragglers.

    Exit code 1 with --stragglers: somebody keeps it waiting.
    """
    if receipt and (json or stragglers):
        raise UsageError("--receipt: it stands alone, without --json and --stragglers")
    if stragglers and attempt is not None:
        raise UsageError(
            "--stragglers: nodes are asked about the newest attempt; leave out --attempt"
        )
    collector = Api(api)
    number = None if attempt is None else str(attempt)
    said = collector.subject("jobs", name, window=window, cluster=cluster, attempt=number)
    if receipt:
        typer.echo(said.data["answer"]["receipt"])
        return 0
    if stragglers:
        said = _looked_at(collector, name, said)
    if json:
        typer.echo(said.text)
    else:
        console = Console(highlight=False)
        found = said.data["answer"]["stragglers"]
        for part in job_table.stragglers(found) if stragglers else job_table.answer(said.data):
            console.print(part)
    return int(stragglers and bool(said.data["answer"]["stragglers"]["culprits"]))


def _looked_at(collector: Api, name: str, said: Answer) -> Answer:
    """Return the answer after the nodes sent the last minute of their readings."""
    if said.data["simulated"]:
        typer.echo("flopwatch: simulated nodes keep no readings; rows of 10 s it is", err=True)
        return said
    # The end of the answer is by the collector's clock, and what lies before it has been read.
    end = datetime.fromisoformat(said.data["end"]).astimezone(UTC)
    start = end - timedelta(seconds=LOOKED_BACK_S)
    asked = {
        "job": name,
        "cluster": said.data["cluster"],
        "from": _rfc3339(start),
        "to": _rfc3339(end),
        "by": "flopwatch job --stragglers",
    }
    capture = collector.post("/api/v1/captures", asked).data
    path = f"/api/v1/captures/{capture['id']}"
    give_up = time.monotonic() + WAIT_SECONDS
    with counted() as progress:
        bar = progress.add_task("ranks answered", total=capture["slots"])
        while capture["answered"] < capture["slots"] and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)
            capture = collector.get(path, readings="false").data
            progress.update(bar, completed=capture["answered"])
    if capture["answered"] < capture["slots"]:
        silent = capture["slots"] - capture["answered"]
        typer.echo(f"flopwatch: {silent} of {capture['slots']} ranks did not answer", err=True)
    return collector.subject("jobs", name, cluster=said.data["cluster"], capture=str(capture["id"]))


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

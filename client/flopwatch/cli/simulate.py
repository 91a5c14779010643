"""`simulate`: a scenario over the real wire, in real time or as fast as it is acknowledged."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from flopwatch.api import DEFAULT_URL, Api, ApiUnreachableError
from flopwatch.cli.options import ApiUrl
from flopwatch.cli.progress import counted
from flopwatch.simulate import scenario as scenarios
from flopwatch.simulate.scenario import Scenario
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_proto import logs
from flopwatch_proto.errors import FlopwatchError, UsageError

ANSWER_SECONDS_MAX: Final = 300.0
_ASK_SECONDS: Final = 0.5
_API_SECONDS_MAX: Final = 5.0
_INGEST: Final = "127.0.0.1:9751"


def simulate(
    scenario: Annotated[Path, typer.Option(metavar="FILE", help="What the nodes do, in TOML.")],
    collector: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The collector's ingest.")
    ] = _INGEST,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="The whole scenario as fast as it is acknowledged.")
    ] = False,
    api: ApiUrl = DEFAULT_URL,
) -> int:
    """Simulated nodes; everything after their driver is the agent's own code."""
    host, _, port = collector.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= 65_535:
        raise UsageError(f"--collector: {collector!r} is no HOST:PORT")
    played = scenarios.load(scenario)
    # A thousand streams that connect are no news; what goes wrong is, and stdout is for answers.
    logs.configure(logging.WARNING)
    if not backfill:
        asyncio.run(_live(collector, played))
        return 0
    if played.endless:
        raise UsageError(f"scenario {scenario}: scenario.duration: endless, and --backfill ends")
    start_unix_ms = played.start_unix_ms
    if start_unix_ms is None:  # then it ends now: rows of the future would be refused
        now = wall_unix_ms(SystemClock())
        start_unix_ms = now - now % played.interval_ms - played.duration_ms
    asyncio.run(_backfill(collector, played, start_unix_ms))
    _await_answer(Api(api, timeout_seconds=_API_SECONDS_MAX), played, start_unix_ms)
    return 0


async def _live(target: str, scenario: Scenario) -> None:
    from flopwatch.simulate.live import Live  # the wire's libraries load only when they are used

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    await Live(target, scenario, clock=SystemClock()).run(stop)


async def _backfill(target: str, scenario: Scenario, start_unix_ms: int) -> None:
    from flopwatch.simulate.backfill import Backfill

    intervals = -(-scenario.duration_ms // scenario.interval_ms)
    with counted() as progress:
        bar = progress.add_task(
            "node intervals", total=intervals * sum(c.nodes for c in scenario.clusters)
        )
        run = Backfill(
            target,
            scenario,
            start_unix_ms=start_unix_ms,
            clock=SystemClock(),
            on_played=lambda count: progress.advance(bar, count),
        )
        await run.run()
    if run.refused:
        told = ", ".join(f"{count} × {reason}" for reason, count in run.refused.items())
        raise FlopwatchError(f"the collector at {target} refused a part: {told}")


def _await_answer(api: Api, scenario: Scenario, start_unix_ms: int) -> None:
    """Wait until the API's answers include the scenario.

    Raises:
        FlopwatchError: they do not within five minutes.
    """
    start, end = (_rfc3339(start_unix_ms + ms) for ms in (0, scenario.duration_ms))
    names = {cluster.name for cluster in scenario.clusters}
    give_up = time.monotonic() + ANSWER_SECONDS_MAX
    while True:
        try:
            if _included(api, start, end, names):
                return
        except ApiUnreachableError:
            typer.echo(
                f"flopwatch simulate: everything is acknowledged; nobody answers at {api.url}, "
                "so whether figures include it was not asked (--api URL)",
                err=True,
            )
            return
        except FlopwatchError:
            if time.monotonic() >= give_up:
                raise
        if time.monotonic() >= give_up:
            raise FlopwatchError(
                f"everything is acknowledged, but {api.url} does not show it after "
                f"{ANSWER_SECONDS_MAX:.0f} s"
            )
        time.sleep(_ASK_SECONDS)


def _included(api: Api, start: str, end: str, names: set[str]) -> bool:
    # What is acknowledged is stored, and answers are judged from what is stored: rolled up or not.
    fleet = api.get("/api/v1/fleet", start=start, end=end).data
    return names <= {cluster.get("name") for cluster in fleet.get("clusters") or []}


def _rfc3339(unix_ms: int) -> str:
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

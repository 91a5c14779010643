"""`top`: this host, live, as its agent sees it. The driver is never touched: the agent has the numbers."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path
from typing import Annotated, Final

import httpx
import msgspec
import typer
from rich.console import Console, RenderableType
from rich.live import Live

from flopwatch.cli import top_view
from flopwatch.cli.options import Json
from flopwatch.cli.top_view import Who
from flopwatch_agent.config import load_config
from flopwatch_agent.now import Now
from flopwatch_proto.errors import RetryableError, UsageError
from flopwatch_proto.settings import Duration

ANSWER_SECONDS_MAX: Final = 5.0
PAUSE_SECONDS_MIN: Final = 0.2
_COMMAND_MAX: Final = 200


def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    interval: Annotated[
        str, typer.Option(metavar="DURATION", help="How often to look again.")
    ] = "2s",
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where the agent's /now is; left out: as configured."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """This host, live: its cards, what holds them back, and who runs what."""
    try:
        pause_seconds = max(PAUSE_SECONDS_MIN, Duration.parse(interval))
    except ValueError as exc:
        raise UsageError(f"--interval: {exc}") from exc
    address = agent or _configured()
    now = ask(address)
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(now)))
        return 0
    console = Console(highlight=False, markup=False)
    if once or not console.is_terminal:
        console.print(top_view.screen(now, console.width, who))
        return 0
    _live(console, address, now, pause_seconds)
    return 0


def ask(address: str) -> Now:
    """Return what the agent at HOST:PORT says.

    Raises:
        RetryableError: it says nothing, or something else than an agent would.
    """
    try:
        reply = httpx.get(f"http://{address}/now", timeout=ANSWER_SECONDS_MAX, trust_env=False)
        reply.raise_for_status()
        return msgspec.json.decode(reply.content, type=Now)
    except httpx.HTTPStatusError as exc:
        raise RetryableError(
            f"{address} is no agent: it answers {exc.response.status_code}"
        ) from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise RetryableError(
            f"no agent answers at {address}; start one: flopwatch agent; or name it: --agent HOST:PORT"
        ) from exc
    except msgspec.DecodeError as exc:
        raise RetryableError(f"{address} is no agent, or one of another version: {exc}") from exc


def who(pid: int, proc: Path = Path("/proc")) -> Who:
    """Return whose process it is, and its command line."""
    try:
        owner = (proc / str(pid)).stat().st_uid
        words = (proc / str(pid) / "cmdline").read_bytes()[:_COMMAND_MAX].split(b"\0")
    except OSError:
        return Who(user=None, command=None)
    command = " ".join(word.decode("utf-8", "replace") for word in words if word)
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    return Who(user=name, command=command or None)


def _live(console: Console, address: str, now: Now, pause_seconds: float) -> None:
    """Show it again and again until Ctrl-C; numbers of an agent that fell silent are not left standing."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        shown: RenderableType = top_view.screen(now, console.width, who, console.height)
        while True:
            live.update(shown, refresh=True)
            time.sleep(pause_seconds)
            try:
                shown = top_view.screen(ask(address), console.width, who, console.height)
            except RetryableError as exc:
                shown = top_view.silence(str(exc))


def _configured() -> str:
    listen = load_config(None, os.environ).metrics.listen
    if not listen or listen.endswith(":0"):
        raise UsageError(
            f"metrics.listen = {listen!r}: this host's agent has no fixed address; "
            "name it: --agent HOST:PORT"
        )
    return listen

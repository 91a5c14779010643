"""`page test`: whether every route takes a page, with the configuration of the collector."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Final

import typer

from flopwatch_agent.clock import SystemClock, wall_unix_ms

app: Final = typer.Typer(help="Pages.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def pages() -> None:
    """Pages."""


@app.command("test")
def try_page(
    route: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this one; left out: all.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The collector's, if not the default file.")
    ] = None,
) -> int:
    """Send a page that says it is a test over each route, and resolve it.

    Exit code 1 where a route did not take both.
    """
    from flopwatch_collector import config as configuration
    from flopwatch_collector.paging.trial import try_routes

    paging = configuration.load(config, os.environ, {}).paging
    clock = SystemClock()
    results = asyncio.run(try_routes(paging, os.environ, route, lambda: wall_unix_ms(clock)))
    for result in results:
        typer.echo(f"{result.route} ({result.kind}): {result.error or 'took the page and its end'}")
    return 1 if any(result.error for result in results) else 0

"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from flopwatch.api import DEFAULT_URL

ApiUrl = Annotated[
    str,
    typer.Option(
        "--api",
        envvar="FLOPWATCH_API",
        metavar="URL",
        help="Address of the collector.",
        show_default=DEFAULT_URL,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Window = Annotated[str, typer.Option(metavar="DURATION", help="How far to look back.")]
End = Annotated[
    str | None, typer.Option(metavar="RFC3339", help="End of the window; left out: now.")
]

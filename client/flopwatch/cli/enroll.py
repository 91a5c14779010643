"""`enroll`: gives this node its certificate, by a token. Run on the node, as root or as the agent's user."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from flopwatch_agent.config import load_config
from flopwatch_proto.errors import UsageError

TOKEN_CHARACTERS_MAX: Final = 1_000


def enroll(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="The collector's listen.enroll.")
    ],
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the token; left out: standard input does."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The agent's, if not the default file.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="The agent's data directory.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="If not as in the agent's file.")
    ] = None,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="If not as in the agent's file.")
    ] = None,
) -> int:
    """Let a token give this node a certificate; its agent uses it within seconds, and renews it."""
    if not address.rpartition(":")[2].isdigit() or not address.rpartition(":")[0]:
        raise UsageError(f"HOST:PORT: {address!r} is none; the port is that of listen.enroll")
    flags = {"--data": ("data", data), "--cluster": ("cluster", cluster), "--node": ("node", node)}
    agent = load_config(config, os.environ, flags)
    if agent.identity.certificate:
        raise UsageError("identity.certificate is brought: whoever brings it gives it too")
    token = _token(token_file)
    from flopwatch_agent.enrollment import (
        enroll as enrolled,
    )  # loads what makes keys: no other command does

    try:
        certificate = asyncio.run(enrolled(address, token, agent.data, agent.cluster, agent.node))
    except OSError as exc:
        raise UsageError(f"{exc.filename or agent.data}: {exc.strerror or exc}") from exc
    expires = datetime.fromtimestamp(certificate.expires_unix_ms / 1000, UTC)
    typer.echo(f"{certificate.name.uri} until {expires:%Y-%m-%d %H:%M} UTC, renewed by the agent")
    return 0


def _token(file: Path | None) -> str:
    """Never an argument: every user of the host can read those."""
    try:
        text = sys.stdin.read(TOKEN_CHARACTERS_MAX) if file is None else file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--token-file: {file} cannot be read: {exc}") from exc
    if not text.strip():
        raise UsageError("no token came: give it on standard input, or name its file: --token-file")
    return text.strip()

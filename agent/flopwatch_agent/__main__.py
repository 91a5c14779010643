"""``flopwatch agent``: the daemon of a node. Exit codes: 0 stopped, 2 wrong usage or configuration."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from flopwatch_agent.app import run_agent
from flopwatch_agent.config import load_config
from flopwatch_proto import logs
from flopwatch_proto.errors import UsageError

_FLAGS: Final = {
    "--collector": ("collector", "HOST:PORT", "the collector's ingest"),
    "--data": ("data", "DIR", "where the spool is kept"),
    "--cluster": ("cluster", "NAME", "the cluster this node belongs to"),
    "--node": ("node", "NAME", "this node's name"),
    "--http": ("metrics.listen", "HOST:PORT", "where the agent's own /metrics are; '' for none"),
    "--interval": ("interval", "DURATION", "length of a row, e.g. 10s"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest flag there is."""

    def error(self, message: str) -> NoReturn:
        wrong = next((word for word in message.split() if word.startswith("-")), "")
        flags = ["--config", "--help", *_FLAGS]
        near = difflib.get_close_matches(
            wrong.partition("=")[0].rstrip(":"), flags, n=1, cutoff=0.4
        )
        hint = f"; the nearest known is {near[0]}" if near and near[0] not in message else ""
        raise UsageError(f"{message}{hint}")


def main(argv: list[str] | None = None) -> int:
    """Run the agent and return its exit code."""
    parser = _Parser(
        prog="flopwatch agent", description="The daemon of a node.", allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="instead of the default file")
    for flag, (_, metavar, text) in _FLAGS.items():
        parser.add_argument(flag, metavar=metavar, help=text)
    logs.configure()
    try:
        given = vars(parser.parse_args(argv))
        flags = {flag: (dotted, given[flag[2:]]) for flag, (dotted, _, _) in _FLAGS.items()}
        config = load_config(given["config"], os.environ, flags)
        asyncio.run(run_agent(config))
    except SystemExit as exc:  # --help
        return int(exc.code or 0)
    except UsageError as exc:
        sys.stderr.write(f"flopwatch agent: {exc}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

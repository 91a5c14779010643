"""`flopwatch collector`: flags to configuration to a running collector. The only place that exits."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flopwatch_collector import config as configuration
from flopwatch_collector.app import serve
from flopwatch_collector.config import CollectorConfig
from flopwatch_collector.supervised import supervised
from flopwatch_proto import logs
from flopwatch_proto.errors import FlopwatchError, UsageError

STOP_SECONDS_MAX: Final = 25
"""From the signal to the end: more than the stages' bounds together, less than supervisors of ours wait."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the collector. Return the exit code: 0 stopped cleanly, 1 failed, 2 wrong configuration."""
    flags = _parser().parse_args(argv)
    logs.configure()
    try:
        config = configuration.load(
            flags.config,
            os.environ,
            {
                "--data": ("data", flags.data),
                "--http": ("listen.http", flags.http),
                "--grpc": ("listen.grpc", flags.grpc),
                "--inventory": ("inventory", flags.inventory),
            },
        )
        asyncio.run(_run(config))
    except UsageError as exc:
        if str(exc):
            sys.stderr.write(f"flopwatch collector: {exc}\n")
        return 2
    except FlopwatchError as exc:
        sys.stderr.write(f"flopwatch collector: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


async def _run(config: CollectorConfig) -> None:
    async with supervised() as ready:

        def say(line: str) -> None:
            _say(line)
            if line.startswith("dashboard "):  # the last part to start
                ready()

        await serve(config, say, _bound_the_end)


def _bound_the_end() -> None:
    """End the process in any case, with what each thread was at.

    A thread within a store that hangs would keep it for ever. Nothing is lost: what was acknowledged is on
    disk, agents send the rest again, and the web process ends when its pipe closes.
    """
    faulthandler.dump_traceback_later(STOP_SECONDS_MAX, exit=True)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flopwatch collector",
        description="Takes rows from agents, keeps the account, shows it and pages.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, help="TOML file (default /etc/flopwatch/collector.toml)"
    )
    parser.add_argument("--data", help="data directory")
    parser.add_argument("--http", help="dashboard and API, HOST:PORT (default 127.0.0.1:9750)")
    parser.add_argument("--grpc", help="ingest, HOST:PORT (default 127.0.0.1:9751)")
    parser.add_argument("--inventory", help="TOML file of the slots of record")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m flopwatch_collector.web`: flags to a serving process. The only place that exits."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_collector.web.answers import Answers
from flopwatch_collector.web.app import create_app
from flopwatch_collector.web.serving import listening, serve, url_of
from flopwatch_collector.web.sources import Control, Sources
from flopwatch_proto import logs
from flopwatch_proto.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the dashboard. Return the exit code: 0 ended, 2 wrong flag or busy port."""
    flags = _parser().parse_args(argv)
    logs.configure()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        listener = listening(flags.http)
    except UsageError as exc:
        sys.stderr.write(f"flopwatch web: {exc}\n")
        return 2
    sys.stdout.buffer.write(msgspec.json.encode({"http": url_of(listener)}) + b"\n")
    sys.stdout.flush()
    now_ns = time.time_ns

    async def run() -> None:
        stopping = asyncio.Event()
        sources = Sources(
            collector=RemoteStore(flags.data / "read.sock"),
            control=Control(flags.control),
            answers=Answers(time.monotonic),
            now_unix_ms=lambda: now_ns() // 1_000_000,
            deployment=flags.deployment,
            rules=msgspec.json.decode(flags.rules, type=RulesConfig),
            pagerduty_secret_file=flags.pagerduty_secret_file,
            reference_dtypes=dict(flags.reference_dtype),
        )
        await serve(create_app(sources, stopping), listener, stopping)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(run())
    sys.stderr.flush()
    # A query that still runs must not keep the process; what is written is one transaction each.
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flopwatch web",
        description="Dashboard and API of a collector. Ends with its standard input.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, required=True, help="the collector's data directory")
    parser.add_argument(
        "--http", required=True, help="HOST:PORT to listen on; port 0: any free one"
    )
    parser.add_argument("--control", required=True, help="DSN of the control store")
    parser.add_argument("--deployment", default="", help="name shown beside flopwatch")
    parser.add_argument("--rules", default="{}", help="settings of the rules, as JSON")
    parser.add_argument(
        "--pagerduty-secret-file", default="", help="what PagerDuty signs its webhooks with"
    )
    parser.add_argument(
        "--reference-dtype",
        action="append",
        nargs=2,
        default=[],
        metavar=("CLUSTER", "DTYPE"),
        help="dtype whose peak a cluster's waterfall is of",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
